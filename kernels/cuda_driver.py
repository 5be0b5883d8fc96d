"""Loads compiled kernels and launches them on torch's streams, through the CUDA driver alone.

Everything runs in torch's own context of a device, and launches may be captured into a CUDA graph like
torch's.
"""

import ctypes
import functools
from dataclasses import dataclass

import torch

from kernels.nvrtc import compile_cubin

# Numbers of cuda.h.
_MAX_DYNAMIC_SHARED, _MULTIPROCESSORS = 8, 16
_COOPERATIVE, _CLUSTER_DIMENSION, _PROGRAMMATIC_SERIALIZATION = 2, 4, 6
_INVALID_CONTEXT = 201
_STATIC_SHARED_LIMIT = 48 * 1024


class DriverError(RuntimeError):
    """A call of the CUDA driver failed."""


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: an id, and a union of 64 bytes of which three integers are enough here."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_uint * 16))


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("attribute_count", ctypes.c_uint),
    )


@dataclass(frozen=True, slots=True)
class Driver:
    """libcuda."""

    library: ctypes.CDLL

    def check(self, status: int, call: str) -> None:
        """Raises DriverError for anything but success."""
        if status:
            name, text = ctypes.c_char_p(), ctypes.c_char_p()
            self.library.cuGetErrorName(status, ctypes.byref(name))
            self.library.cuGetErrorString(status, ctypes.byref(text))
            known = f"{(name.value or b'unknown error').decode()} ({status})"
            raise DriverError(f"{call}: {known}" + (f", {text.value.decode()}" if text.value else ""))

    def enter(self, device: int) -> None:
        """Makes torch's context of this device the calling thread's."""
        handle, context = ctypes.c_int(), ctypes.c_void_p()
        self.check(self.library.cuDeviceGet(ctypes.byref(handle), device), "cuDeviceGet")
        retain = self.library.cuDevicePrimaryCtxRetain
        self.check(retain(ctypes.byref(context), handle), "cuDevicePrimaryCtxRetain")
        self.check(self.library.cuCtxSetCurrent(context), "cuCtxSetCurrent")


@functools.cache
def load_driver() -> Driver:
    """Raises DriverError where there is no NVIDIA driver."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise DriverError(f"no NVIDIA driver: {error}") from error
    driver = Driver(library)
    driver.check(library.cuInit(0), "cuInit")
    return driver


@functools.cache
def architecture(device: int) -> str:
    """What to compile for: sm_90a on a Hopper, code for exactly this chip from compute capability 9 on."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}{'a' if major >= 9 else ''}"


class Module:
    """Code on one device, as long as the process lives; `kernel` takes functions from it."""

    def __init__(self, cubin: bytes, device: int) -> None:
        """Raises DriverError."""
        self.driver, self.device = load_driver(), device
        torch.cuda.current_stream(device)  # torch makes its context
        self.driver.enter(device)
        self.handle = ctypes.c_void_p()
        load = self.driver.library.cuModuleLoadData
        status: int = load(ctypes.byref(self.handle), cubin)
        self.driver.check(status, f"cuModuleLoadData of {len(cubin)} bytes")

    def kernel(self, name: str, shared_bytes: int = 0) -> "Kernel":
        """shared_bytes: dynamic shared memory of every launch. Raises DriverError."""
        return Kernel(self, name, shared_bytes)


class Kernel:
    """One function on one device. Not for two threads at once: the launch configuration is reused."""

    def __init__(self, module: Module, name: str, shared_bytes: int) -> None:
        """shared_bytes: dynamic shared memory of every launch. Raises DriverError."""
        self.module, self.driver, self.device, self.name = module, module.driver, module.device, name
        library = self.driver.library
        self.function = ctypes.c_void_p()
        find = library.cuModuleGetFunction
        self.driver.check(find(ctypes.byref(self.function), module.handle, name.encode()), f"find {name}")
        if shared_bytes > _STATIC_SHARED_LIMIT:
            setter = library.cuFuncSetAttribute
            self.driver.check(
                setter(self.function, _MAX_DYNAMIC_SHARED, shared_bytes),
                f"{shared_bytes} bytes of shared memory for {name}",
            )
        self._attributes = (_Attribute * 3)()
        self._config = _Config(shared_bytes=shared_bytes)
        self._config.attributes = ctypes.cast(self._attributes, ctypes.POINTER(_Attribute))
        self._resident: set[tuple[int, int, int]] = set()  # what `require_resident` has found to fit

    def launch(
        self,
        grid: int,
        block: int,
        arguments: ctypes.Array[ctypes.c_void_p],
        *,
        cluster: int = 1,
        pdl: bool = False,
        cooperative: bool = False,
    ) -> None:
        """Queues the kernel on torch's current stream of its device.

        arguments: addresses of the parameters' values, which are copied before this returns. pdl: may start
        before the kernel in front of it has ended (programmatic stream serialization). cooperative: all
        blocks run at one time, or none does. The three can be used together. Raises DriverError.
        """
        if cooperative:
            self.require_resident(grid, block, cluster)
        config, count = self._config, 0
        config.grid[0], config.grid[1], config.grid[2] = grid, 1, 1
        config.block[0], config.block[1], config.block[2] = block, 1, 1
        config.stream = torch.cuda.current_stream(self.device).cuda_stream
        if cluster > 1:
            count = self._attribute(count, _CLUSTER_DIMENSION, cluster, 1, 1)
        if pdl:
            count = self._attribute(count, _PROGRAMMATIC_SERIALIZATION, 1)
        if cooperative:
            count = self._attribute(count, _COOPERATIVE, 1)
        config.attribute_count = count
        launch = self.driver.library.cuLaunchKernelEx
        status: int = launch(ctypes.byref(config), self.function, arguments, None)
        if status == _INVALID_CONTEXT:  # the first CUDA call of this thread
            self.driver.enter(self.device)
            status = launch(ctypes.byref(config), self.function, arguments, None)
        if status:
            kinds = (" programmatic," if pdl else "") + (" cooperative," if cooperative else "")
            self.driver.check(status, f"launch of {self.name},{kinds} {self._shape(grid, block, cluster)}")

    def active_clusters(self, cluster: int, block: int) -> int:
        """How many clusters of `cluster` blocks of `block` threads the device runs at one time."""
        config, found = self._config, ctypes.c_int()
        config.grid[0], config.grid[1], config.grid[2] = cluster, 1, 1
        config.block[0], config.block[1], config.block[2] = block, 1, 1
        config.attribute_count = self._attribute(0, _CLUSTER_DIMENSION, cluster, 1, 1)
        self.driver.enter(self.device)
        query = self.driver.library.cuOccupancyMaxActiveClusters
        status: int = query(ctypes.byref(found), self.function, ctypes.byref(config))
        self.driver.check(status, f"occupancy of {self.name} by clusters of {cluster}")
        return found.value

    def resident_blocks(self, block: int, cluster: int = 1) -> int:
        """How many blocks of `block` threads the device runs at one time, where nothing else runs."""
        if cluster > 1:
            return cluster * self.active_clusters(cluster, block)
        each, count, handle = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        library, shared = self.driver.library, ctypes.c_size_t(self._config.shared_bytes)
        self.driver.enter(self.device)
        query = library.cuOccupancyMaxActiveBlocksPerMultiprocessor
        self.driver.check(
            query(ctypes.byref(each), self.function, block, shared), f"occupancy of {self.name}"
        )
        self.driver.check(library.cuDeviceGet(ctypes.byref(handle), self.device), "cuDeviceGet")
        status: int = library.cuDeviceGetAttribute(ctypes.byref(count), _MULTIPROCESSORS, handle)
        self.driver.check(status, "cuDeviceGetAttribute")
        return each.value * count.value

    def require_resident(self, grid: int, block: int, cluster: int = 1) -> None:
        """Raises DriverError for a grid whose blocks cannot all run at one time: they would wait for each
        other for ever. Asks the driver once for each shape."""
        if (grid, block, cluster) in self._resident:
            return
        room = self.resident_blocks(block, cluster)
        if grid > room:
            shape = self._shape(grid, block, cluster)
            raise DriverError(f"{self.name}: {shape} cannot all be resident, {room} blocks can")
        self._resident.add((grid, block, cluster))

    def _shape(self, grid: int, block: int, cluster: int) -> str:
        shared = self._config.shared_bytes
        return (
            f"{grid} blocks of {block} threads in clusters of {cluster} with {shared} bytes of shared memory"
        )

    def _attribute(self, index: int, which: int, *values: int) -> int:
        attribute = self._attributes[index]
        attribute.id = which
        for i, value in enumerate(values):
            attribute.value[i] = value
        return index + 1


def load_module(source: str, name: str, device: int, defines: dict[str, int]) -> Module:
    """Compiles (or finds in the cache) and loads. name: for messages. Raises CompileError or DriverError."""
    return Module(compile_cubin(source, name, architecture(device), defines), device)


def load_kernel(source: str, name: str, device: int, defines: dict[str, int], shared_bytes: int) -> Kernel:
    """The one function of a source. Raises CompileError or DriverError."""
    return load_module(source, name, device, defines).kernel(name, shared_bytes)


def argument_addresses(arguments: ctypes.Structure) -> ctypes.Array[ctypes.c_void_p]:
    """Addresses of a structure's fields, as `Kernel.launch` wants them; keep the structure alive."""
    base = ctypes.addressof(arguments)
    names = [field[0] for field in type(arguments)._fields_]
    offsets = [getattr(type(arguments), name).offset for name in names]
    return (ctypes.c_void_p * len(offsets))(*(base + offset for offset in offsets))
