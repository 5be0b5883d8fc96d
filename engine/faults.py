"""What kind of fault an exception from the device is."""

_MEMORY = ("out of memory", "cudaErrorMemoryAllocation", "CUBLAS_STATUS_ALLOC_FAILED")
# After one of these nothing that the process still holds on the device can be trusted, and most calls fail.
_DEVICE = (
    "CUDA error",
    "Triton Error [CUDA]",
    "CUDA driver error",
    "CUBLAS_STATUS_",
    "device-side assert",
    "illegal memory access",
    "unspecified launch failure",
)


class PathFailed(RuntimeError):
    """A step ran by kernels that have given up, or behind one that did: nothing that it computed counts.
    They are not used any more, so the same work can be done again. known: an earlier step has said so, and
    this one had been launched by then.
    """

    def __init__(self, known: bool = False) -> None:
        super().__init__("the kernels of the decode path gave up")
        self.known = known


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller step might have gone well."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _MEMORY)


def is_device_lost(error: BaseException) -> bool:
    """Whether only a new process can use the device again."""
    if is_out_of_memory(error):
        return False
    if type(error).__name__ == "AcceleratorError":
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _DEVICE)
