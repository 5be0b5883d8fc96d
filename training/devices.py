"""The device of a flag."""

from argparse import ArgumentTypeError

import torch


def device_name(text: str) -> str:
    """`text`, where it names a CPU or a CUDA device of this machine. Raises ArgumentTypeError."""
    try:
        if torch.device(text).type not in ("cpu", "cuda"):
            raise ArgumentTypeError(f"{text!r} is neither cpu nor cuda")
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        reason = str(error).splitlines()[0]
        raise ArgumentTypeError(f"{text!r} is no device of this machine ({reason})") from error
    return text
