"""The cache of compiled kernels, and where the compiler is looked for."""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kernels import nvrtc
from kernels.nvrtc import CompileError, Nvrtc, cache_folder, compile_cubin, load_nvrtc, write_atomically


class Counting(Nvrtc):
    """A compiler whose code says what it was made of, and that counts."""

    def compile(self, source: str, name: str, options: object) -> bytes:
        compiled.append(source)
        return f"{source} {options} {self.version}".encode() * 50


compiled: list[str] = []


@pytest.fixture(autouse=True)
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counting:
    compiled.clear()
    made = Counting(ctypes.CDLL(None), "libnvrtc.so.13", "13.0")
    monkeypatch.setattr(nvrtc, "load_nvrtc", lambda: made)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return made


def cached() -> list[Path]:
    return sorted((cache_folder() / "cubin").iterdir())


def test_compiles_once_for_each_content(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_of_them() -> list[bytes]:
        return [
            compile_cubin(source, "name", arch, defines)
            for source in ("a", "b")
            for arch in ("sm_90a", "sm_100a")
            for defines in ({}, {"K": 1}, {"K": 2}, {"K": 1, "L": 2})
        ]

    first = all_of_them()
    assert len(set(first)) == len(first) == len(compiled) == len(cached())
    assert all_of_them() == first and len(compiled) == len(first)
    other = Counting(ctypes.CDLL(None), "libnvrtc.so.13", "13.1")
    monkeypatch.setattr(nvrtc, "load_nvrtc", lambda: other)
    assert not set(all_of_them()) & set(first), "another compiler's code"


def test_a_damaged_file_is_made_again() -> None:
    want = compile_cubin("a", "name", "sm_90a", {})
    (path,) = cached()
    whole = path.read_bytes()
    places = [i * (len(whole) - 1) // 3 for i in range(4)]
    flipped = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in places]
    cut = [whole[:length] for length in (0, 1, 31, 32, 33, len(whole) // 2, len(whole) - 1)]
    for damaged in (*cut, *flipped, want, whole + b"x"):
        path.write_bytes(damaged)
        before = len(compiled)
        assert compile_cubin("a", "name", "sm_90a", {}) == want
        assert path.read_bytes() == whole and len(compiled) == before + 1
        assert compile_cubin("a", "name", "sm_90a", {}) == want and len(compiled) == before + 1


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compile_cubin("a", "name", "sm_90a", {}).startswith(b"a")


def test_writers_and_readers_at_once(tmp_path: Path) -> None:
    """Who reads sees one writer's data, whole; nothing is left beside it."""
    path = tmp_path / "one" / "file"
    values = [bytes([i]) * (5000 * i + 1) for i in range(8)]
    write_atomically(path, values[0])

    def write(value: bytes) -> set[bytes]:
        seen = set()
        for _ in range(30):
            write_atomically(path, value)
            seen.add(path.read_bytes())
        return seen

    with ThreadPoolExecutor(8) as pool:
        for seen in pool.map(write, values):
            assert seen <= set(values)
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: Path) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    write_atomically(tmp_path / "folder" / "file", b"data")
    assert not list((tmp_path / "folder").iterdir())


def test_no_compiler_says_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "_candidates", lambda: iter(["/none/libnvrtc.so.13", "libnone-either.so"]))
    with pytest.raises(CompileError) as caught:
        load_nvrtc.__wrapped__()
    for part in ("nvidia-cuda-nvrtc", "/none/libnvrtc.so.13", "libnone-either.so"):
        assert part in str(caught.value)


@pytest.mark.parametrize("folder", ["cu13", "cuda_nvrtc"])
def test_wheels_are_found(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "nvidia" / folder / "lib" / "libnvrtc.so.13"
    library.parent.mkdir(parents=True)
    library.touch()
    monkeypatch.syspath_prepend(tmp_path)
    found = list(nvrtc._candidates())
    assert str(library) in found and found.index(str(library)) < found.index("libnvrtc.so.13")
