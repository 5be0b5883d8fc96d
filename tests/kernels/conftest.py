"""Fixtures of the tests that run CUDA sources on the host (emulation.h)."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from kernels.decode_shape import Cut, defines
from kernels.step_spec import StepSpec
from tests.kernels.decode_host import Build
from tests.optional import missing

HERE = Path(__file__).parent


class HostCode:
    """Libraries of emulate_*.cpp, compiled once for each set of constants; who asks for the same shares it.
    What all of them need of emulation.cpp is compiled once. A failed compile raises CalledProcessError."""

    def __init__(self, compiler: str, folder: Path) -> None:
        self._compiler = [compiler, "-std=c++17", "-w", "-fPIC"]
        self._folder = folder
        self._emulation = folder / "emulation.o"
        self._built: dict[tuple[str, ...], ctypes.CDLL] = {}

    def __call__(self, source: str, defines: dict[str, int]) -> ctypes.CDLL:
        key = (source, *sorted(f"-D{name}={value}" for name, value in defines.items()))
        if key not in self._built:
            if not self._emulation.exists():
                self._compile("-O2", "-c", str(HERE / "emulation.cpp"), into=self._emulation)
            path = self._folder / f"{len(self._built)}.so"
            self._compile("-O1", "-shared", *key[1:], str(HERE / source), str(self._emulation), into=path)
            self._built[key] = ctypes.CDLL(str(path))
        return self._built[key]

    def _compile(self, *arguments: str, into: Path) -> None:
        try:
            command = [*self._compiler, *arguments, "-o", str(into)]
            subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)
        except subprocess.CalledProcessError as error:
            error.add_note(error.stderr)
            raise


@pytest.fixture(scope="session")
def host_code(tmp_path_factory: pytest.TempPathFactory) -> HostCode:
    compiler = shutil.which("g++")
    if compiler is None:
        missing("needs g++")
    return HostCode(compiler, tmp_path_factory.mktemp("host_code"))


@pytest.fixture
def build(host_code: HostCode) -> Build:
    """Decode steps in a form, see emulate_decode.cpp."""

    def get(spec: StepSpec, cut: Cut) -> ctypes.CDLL:
        library = host_code("emulate_decode.cpp", defines(spec, cut))
        library.failure.restype = ctypes.c_char_p
        return library

    return get
