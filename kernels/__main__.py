"""What this machine's kernels are and why: `python -m kernels [--json]`."""

import argparse
import json
from dataclasses import asdict

from kernels.caps import DeviceCaps
from kernels.registry import Choice, explain


def describe(caps: DeviceCaps) -> str:
    """The device in a few lines."""
    lines = [f"device      {caps.name}"]
    if caps.compute is not None:
        major, minor = caps.compute
        lines.append(
            f"            compute capability {major}.{minor}, {caps.multiprocessors} multiprocessors, "
            f"{caps.l2_bytes / 2**20:.0f} MiB of L2, {caps.memory_bytes / 2**30:.0f} GiB"
        )
        nvrtc = "found" if caps.nvrtc else "missing"
        lines.append(
            f"            CUDA {caps.cuda_version}, driver {caps.driver or 'unknown'}, NVRTC {nvrtc}"
        )
    lines.append(f"torch       {caps.torch_version}")
    packages = ", ".join(f"{name} {version}" for name, version in sorted(caps.packages.items()))
    lines.append(f"found       {packages or 'none of the optional packages'}")
    return "\n".join(lines)


def report(choices: list[Choice]) -> str:
    """The choices as text: what is used and why, and below it what was passed over."""
    width = max(len(choice.op) for choice in choices)
    lines = []
    for choice in choices:
        lines.append(f"{choice.op:<{width}}  {choice.name}: {choice.why}")
        lines += [f"{'':<{width}}    not {name}: {reason}" for name, reason in choice.rejected]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m kernels", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--device", default=None, help="cuda, cuda:1, cpu; the first GPU if there is one")
    args = parser.parse_args()
    caps = DeviceCaps.of(args.device)
    choices = explain(caps)
    if args.json:
        print(json.dumps({"device": asdict(caps), "choices": [asdict(choice) for choice in choices]}))
    else:
        print(describe(caps), report(choices), sep="\n\n")


if __name__ == "__main__":
    main()
