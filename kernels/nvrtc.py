"""Compiles CUDA C++ at run time with NVRTC, which comes with torch, and keeps the machine code on disk.

Sources use no headers, for there is no folder of CUDA headers that every machine has. `compile_cubin` works
without a GPU; kernels.cuda_driver loads what it returns. A file of the cache is named by what went into it
and ends with a digest of what came out, so that one that is damaged is made again.
"""

import contextlib
import ctypes
import functools
import glob
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "cuda"
LOG_TAIL = 3000  # characters of a failed compile's log that go into the error
_DIGEST_BYTES = hashlib.sha256().digest_size


class CompileError(RuntimeError):
    """NVRTC is missing or does not accept a source."""


def read_source(*names: str) -> str:
    """Files of kernels/cuda, one behind the other."""
    return "\n".join((SOURCES / name).read_text() for name in names)


def cache_folder() -> Path:
    """Where compiled kernels and measured choices are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastpath"


def write_atomically(path: Path, data: bytes) -> None:
    """Other processes see the old file, the new one, or none; a disk that cannot be written is not an
    error."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)


@dataclass(frozen=True, slots=True)
class Nvrtc:
    """The loaded library."""

    library: ctypes.CDLL
    path: str
    version: str

    def compile(self, source: str, name: str, options: Sequence[str]) -> bytes:
        """The cubin of `source`. Raises CompileError with the end of the compiler's log."""
        lib, program = self.library, ctypes.c_void_p()
        self._check(
            lib.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None),
            "nvrtcCreateProgram",
        )
        try:
            encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            status: int = lib.nvrtcCompileProgram(program, len(options), encoded)
            if status:
                log = self._text(program, "nvrtcGetProgramLog").decode(errors="replace")
                raise CompileError(
                    f"NVRTC {self.version} cannot compile {name} {' '.join(options)}:\n{log[-LOG_TAIL:]}"
                )
            return self._text(program, "nvrtcGetCUBIN")
        finally:
            lib.nvrtcDestroyProgram(ctypes.byref(program))

    def _text(self, program: ctypes.c_void_p, getter: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self.library, getter + "Size")(program, ctypes.byref(size)), getter + "Size")
        buffer = ctypes.create_string_buffer(size.value)
        self._check(getattr(self.library, getter)(program, buffer), getter)
        return buffer.raw

    def _check(self, status: int, call: str) -> None:
        if status:
            get = self.library.nvrtcGetErrorString
            get.restype = ctypes.c_char_p
            reason: bytes = get(status)
            raise CompileError(f"{call}: {reason.decode()}")


def _candidates() -> Iterator[str]:
    """Places of libnvrtc: torch's wheels first, then the system's."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or [] if spec else []:
        for pattern in ("cu*/lib/libnvrtc.so.*", "cuda_nvrtc/lib/libnvrtc.so.*"):
            yield from sorted(glob.glob(f"{folder}/{pattern}"), reverse=True)
    torch = importlib.util.find_spec("torch")
    if torch and torch.origin:
        yield from sorted(glob.glob(f"{Path(torch.origin).parent}/lib/libnvrtc[.-]*so*"))
    for pattern in ("lib64", "targets/*/lib"):
        yield from sorted(glob.glob(f"/usr/local/cuda*/{pattern}/libnvrtc.so.*"), reverse=True)
    yield from ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")


def _load_builtins(path: str) -> None:
    """NVRTC opens its second library by name and finds it where the system looks, or once it is loaded."""
    if "/" not in path:
        return
    for builtins in glob.glob(f"{glob.escape(os.path.dirname(path))}/libnvrtc-builtins*.so*"):
        if ".alt." not in builtins:
            ctypes.CDLL(builtins)


def _open(path: str) -> Nvrtc:
    """Raises OSError or AttributeError for what is no NVRTC."""
    _load_builtins(path)
    library = ctypes.CDLL(path)
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return Nvrtc(library, path, f"{major.value}.{minor.value}")


@functools.cache
def load_nvrtc() -> Nvrtc:
    """The first libnvrtc that loads. Raises CompileError with what was tried."""
    tried: list[str] = []
    for path in _candidates():
        if "builtins" in path or ".alt." in path:
            continue
        try:
            return _open(path)
        except (OSError, AttributeError) as error:
            tried.append(str(error))
    raise CompileError(
        "no libnvrtc; torch's CUDA builds and the wheel nvidia-cuda-nvrtc bring one. Tried: "
        + "; ".join(tried)
    )


def _cubin_path(source: str, options: list[str], nvrtc: Nvrtc) -> Path:
    key = hashlib.sha256("\0".join([source, *options, nvrtc.version]).encode()).hexdigest()
    return cache_folder() / "cubin" / f"{key}.cubin"


def _options(arch: str, defines: dict[str, int]) -> list[str]:
    return [f"--gpu-architecture={arch}", "--std=c++17", *(f"-D{k}={v}" for k, v in defines.items())]


def _cached(path: Path) -> bytes | None:
    """What `_keep` has written there, whole, or None."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    cubin, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    return cubin if hashlib.sha256(cubin).digest() == digest else None


def _keep(path: Path, cubin: bytes) -> None:
    write_atomically(path, cubin + hashlib.sha256(cubin).digest())


def compile_cubin(source: str, name: str, arch: str, defines: dict[str, int]) -> bytes:
    """Machine code for `arch` ("sm_90a"), from the cache where it has been compiled before.

    Raises CompileError. Safe to call from several threads and processes.
    """
    nvrtc, options = load_nvrtc(), _options(arch, defines)
    path = _cubin_path(source, options, nvrtc)
    cubin = _cached(path)
    if cubin is None:
        cubin = nvrtc.compile(source, name, options)
        _keep(path, cubin)
    return cubin


def compile_many(
    source: str, name: str, arch: str, all_defines: Sequence[dict[str, int]]
) -> Callable[[], None]:
    """Begins to fill the cache; returns what waits for that. NVRTC compiles one source at a time in a
    process, so each core gets a process.

    Failures are left to `compile_cubin`, which meets them again.
    """
    nvrtc = load_nvrtc()
    flags = [_options(arch, defines) for defines in all_defines]
    jobs = [options for options in flags if _cached(_cubin_path(source, options, nvrtc)) is None]
    count = min(len(jobs), len(os.sched_getaffinity(0)))
    if count < 2:
        return lambda: None
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", "from kernels.nvrtc import work; work()"]
    workers = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
        )
        for _ in range(count)
    ]
    for i, worker in enumerate(workers):
        assert worker.stdin is not None
        with contextlib.suppress(OSError), worker.stdin as pipe:
            json.dump({"library": nvrtc.path, "source": source, "name": name, "jobs": jobs[i::count]}, pipe)

    def wait() -> None:
        for worker in workers:
            worker.wait()

    return wait


def work() -> None:
    """A process of `compile_many`: compiles what standard input lists, and can be compiled, into the
    cache."""
    order = json.load(sys.stdin)
    nvrtc = _open(order["library"])
    for options in order["jobs"]:
        with contextlib.suppress(CompileError):
            cubin = nvrtc.compile(order["source"], order["name"], options)
            _keep(_cubin_path(order["source"], options, nvrtc), cubin)
