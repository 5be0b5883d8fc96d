"""Launches as the driver gets them, and its errors, with a driver that only keeps books."""

import ctypes
import itertools
from types import SimpleNamespace

import pytest
import torch

from kernels import cuda_driver
from kernels.cuda_driver import Driver, DriverError, Kernel, Module, argument_addresses, load_driver

COOPERATIVE, CLUSTER, PROGRAMMATIC = 2, 4, 6  # CUlaunchAttributeID
MULTIPROCESSORS = 132


class Books:
    """libcuda, as far as the loader calls it. statuses: what calls return that fail, by name."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.statuses: dict[str, int] = {}
        self.launches: list[dict[str, object]] = []
        self.blocks_each, self.clusters = 2, 16

    def __getattr__(self, name: str) -> object:
        def call(*arguments: object) -> int:
            self.calls.append(name)
            status = self.statuses.get(name, 0)
            return status or getattr(self, f"do_{name}", lambda *_: 0)(*arguments)

        if name.startswith("do_"):
            raise AttributeError(name)
        return call

    def do_cuGetErrorName(self, status: int, name: object) -> int:
        name._obj.value = b"CUDA_ERROR_OF_A_KIND"  # type: ignore[attr-defined]
        return 0

    def do_cuGetErrorString(self, status: int, text: object) -> int:
        text._obj.value = b"what it means"  # type: ignore[attr-defined]
        return 0

    def do_cuModuleGetFunction(self, function: object, module: object, name: bytes) -> int:
        function._obj.value = {b"first": 1, b"second": 2}.get(name)  # type: ignore[attr-defined]
        return 0 if name in (b"first", b"second") else 500

    def do_cuLaunchKernelEx(
        self, config: object, function: ctypes.c_void_p, arguments: object, _: None
    ) -> int:
        c = config._obj  # type: ignore[attr-defined]
        chosen = [c.attributes[i] for i in range(c.attribute_count)]
        attributes = {one.id: tuple(one.value[: 3 if one.id == CLUSTER else 1]) for one in chosen}
        shape = {"grid": tuple(c.grid), "block": tuple(c.block), "shared": c.shared_bytes, "stream": c.stream}
        self.launches.append(shape | {"function": function.value, "attributes": attributes})
        return 0

    def do_cuOccupancyMaxActiveClusters(self, found: object, function: object, config: object) -> int:
        found._obj.value = self.clusters  # type: ignore[attr-defined]
        return 0

    def do_cuOccupancyMaxActiveBlocksPerMultiprocessor(
        self, found: object, function: object, block: int, shared: ctypes.c_size_t
    ) -> int:
        found._obj.value = self.blocks_each  # type: ignore[attr-defined]
        return 0

    def do_cuDeviceGetAttribute(self, found: object, attribute: int, device: object) -> int:
        found._obj.value = {16: MULTIPROCESSORS}[attribute]  # type: ignore[attr-defined]
        return 0


@pytest.fixture
def books(monkeypatch: pytest.MonkeyPatch) -> Books:
    books = Books()
    monkeypatch.setattr(cuda_driver, "load_driver", lambda: Driver(books))  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=77))
    return books


class Arguments(ctypes.Structure):
    _fields_ = (("pointer", ctypes.c_void_p), ("count", ctypes.c_int), ("scale", ctypes.c_float))


def addresses() -> ctypes.Array[ctypes.c_void_p]:
    return argument_addresses(Arguments())


def test_attributes_can_all_be_used_together(books: Books) -> None:
    """In every combination, one after the other on one kernel, so that none is left over from before."""
    kernel = Module(b"code", 0).kernel("first", 1000)
    choices = list(itertools.product((1, 2, 8), (False, True), (False, True)))
    for cluster, pdl, cooperative in (*choices, *reversed(choices)):
        kernel.launch(16, 256, addresses(), cluster=cluster, pdl=pdl, cooperative=cooperative)
        launch, wanted = books.launches[-1], dict[int, tuple[int, ...]]()
        if cluster > 1:
            wanted[CLUSTER] = (cluster, 1, 1)
        if pdl:
            wanted[PROGRAMMATIC] = (1,)
        if cooperative:
            wanted[COOPERATIVE] = (1,)
        assert launch["attributes"] == wanted
        assert launch["grid"] == (16, 1, 1) and launch["block"] == (256, 1, 1)
        assert launch["shared"] == 1000 and launch["stream"] == 77


def test_functions_of_one_module(books: Books) -> None:
    module = Module(b"code", 0)
    first, second = module.kernel("first"), module.kernel("second", 60_000)
    first.launch(1, 32, addresses())
    second.launch(2, 64, addresses())
    assert [launch["function"] for launch in books.launches] == [1, 2]
    assert [launch["shared"] for launch in books.launches] == [0, 60_000]
    assert books.calls.count("cuModuleLoadData") == 1
    assert books.calls.count("cuFuncSetAttribute") == 1, "only what is above 48 KiB must be asked for"
    with pytest.raises(DriverError, match=r"find third: CUDA_ERROR_OF_A_KIND \(500\), what it means"):
        module.kernel("third")


@pytest.mark.parametrize("cluster", [1, 2, 4])
def test_a_grid_that_cannot_be_resident_is_refused(cluster: int, books: Books) -> None:
    kernel = Module(b"code", 0).kernel("first", 70_000)
    room = MULTIPROCESSORS * books.blocks_each if cluster == 1 else books.clusters * cluster
    assert kernel.resident_blocks(512, cluster) == room
    kernel.launch(room, 512, addresses(), cluster=cluster, cooperative=True)
    asked = len(books.calls)
    kernel.launch(room, 512, addresses(), cluster=cluster, cooperative=True)
    assert len(books.calls) == asked + 1, "the driver is asked for a shape once"
    launches = len(books.launches)
    for launching in (True, False):
        with pytest.raises(DriverError) as caught:
            if launching:
                kernel.launch(room + cluster, 512, addresses(), cluster=cluster, cooperative=True)
            else:
                kernel.require_resident(room + cluster, 512, cluster)
        for part in (
            "first",
            f"{room + cluster} blocks of 512",
            f"clusters of {cluster}",
            "70000",
            f"{room} ",
        ):
            assert part in str(caught.value)
    assert len(books.launches) == launches
    kernel.launch(room + cluster, 512, addresses(), cluster=cluster)  # others need not be


def test_failures_are_named(books: Books) -> None:
    kernel = Module(b"code", 0).kernel("first", 1234)
    books.statuses["cuLaunchKernelEx"] = 701
    with pytest.raises(DriverError) as caught:
        kernel.launch(8, 128, addresses(), cluster=4, pdl=True, cooperative=True)
    for part in (
        "first",
        "8 blocks of 128",
        "clusters of 4",
        "1234 bytes",
        "programmatic",
        "cooperative",
        "701",
    ):
        assert part in str(caught.value)
    books.statuses = {"cuModuleLoadData": 209}
    with pytest.raises(DriverError, match="cuModuleLoadData of 4 bytes"):
        Module(b"code", 0)
    books.statuses = {"cuFuncSetAttribute": 1}
    with pytest.raises(DriverError, match="300000 bytes of shared memory for second"):
        Kernel(kernel.module, "second", 300_000)
    for query, cluster in (
        ("cuOccupancyMaxActiveBlocksPerMultiprocessor", 1),
        ("cuOccupancyMaxActiveClusters", 2),
    ):
        books.statuses = {query: 1}
        with pytest.raises(DriverError, match="occupancy of first"):
            kernel.require_resident(2, 128, cluster)


def test_a_thread_without_a_context_gets_one(books: Books) -> None:
    kernel = Module(b"code", 0).kernel("first")
    entered = books.calls.count("cuCtxSetCurrent")

    def once(*arguments: object) -> int:
        del books.do_cuLaunchKernelEx
        return 201

    books.do_cuLaunchKernelEx = once  # type: ignore[assignment,method-assign]
    kernel.launch(1, 32, addresses())
    assert books.calls.count("cuCtxSetCurrent") == entered + 1 and len(books.launches) == 1


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(DriverError, match=r"no NVIDIA driver: libcuda\.so\.1"):
        load_driver.__wrapped__()


def test_argument_addresses() -> None:
    arguments = Arguments(1 << 40, -3, 0.5)
    found = argument_addresses(arguments)
    assert ctypes.c_void_p.from_address(found[0] or 0).value == 1 << 40
    assert ctypes.c_int.from_address(found[1] or 0).value == -3
    assert ctypes.c_float.from_address(found[2] or 0).value == 0.5
