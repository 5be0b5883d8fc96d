"""What the compiler says of a kernel inside a cubin: an ELF file with notes of its own (.nv.info)."""

import struct
from dataclasses import dataclass

_REGISTERS, _FRAME = 0x2F, 0x11  # EIATTR_REGCOUNT, EIATTR_FRAME_SIZE
_SIZED = 4  # an entry whose payload has a length; all others have two bytes
_SYMBOLS = 2  # SHT_SYMTAB


@dataclass(slots=True)
class Resources:
    """registers: of a thread. frame: bytes a thread of local memory, which spills and arrays with variable
    indices take."""

    registers: int = 0
    frame: int = 0


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    kind: int
    link: int
    data: bytes


def _text(data: bytes, start: int) -> str:
    return data[start : data.index(b"\0", start)].decode()


def _sections(cubin: bytes) -> list[_Section]:
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    rows = [struct.unpack_from("<IIQQQQIIQQ", cubin, table + size * i) for i in range(count)]
    strings = cubin[rows[names][4] : rows[names][4] + rows[names][5]]
    return [_Section(_text(strings, row[0]), row[1], row[6], cubin[row[4] : row[4] + row[5]]) for row in rows]


def resources(cubin: bytes) -> dict[str, Resources]:
    """By the kernels' names."""
    sections, found = _sections(cubin), dict[str, Resources]()
    table = next(section for section in sections if section.kind == _SYMBOLS)
    names = sections[table.link].data
    info = next(section.data for section in sections if section.name == ".nv.info")
    at = 0
    while at < len(info):
        form, kind, size = struct.unpack_from("<BBH", info, at)
        if form == _SIZED and kind in (_REGISTERS, _FRAME):
            symbol, value = struct.unpack_from("<II", info, at + 4)
            (name,) = struct.unpack_from("<I", table.data, symbol * 24)
            of = found.setdefault(_text(names, name), Resources())
            if kind == _REGISTERS:
                of.registers = value
            else:
                of.frame = value
        at += 4 + (size if form == _SIZED else 0)
    return found
