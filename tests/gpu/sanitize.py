"""Tiny launches of the CUDA kernels under NVIDIA's compute-sanitizer.

`python -m tests.gpu.sanitize [TOOL...]`: memcheck and racecheck unless other tools (synccheck, initcheck) are
named; `--only skinny`, `streamed`, `cluster`, `paged` or `decode` runs one part. Ends with 0 when no tool
finds anything and all results are right, 1 when one does, 2 where there is no compute-sanitizer.

Two kinds of races in decode steps are known and only counted. Words that others poll are meant to be looked
at while they are written: which chunk a slot of the ring has, and what blocks of a cluster send each other.
And in the ring the tool does not follow the order of a copy and of reads of what came to the same slot
before or after by warps that do not wait for that copy themselves: it goes through barriers of other warps
and the producer's, one after the other. tests/kernels/test_decode_step.py looks at the ring instead, with
copies that come late.
"""

import argparse
import glob
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from itertools import product

import torch

from kernels import nvrtc

TOOLS = ("memcheck", "racecheck")
FOLDERS = "/usr/local/cuda*/bin"
SECONDS = 50  # of a tool
FOUND = 9  # the sanitizer's exit status when it has found something
LINES = 60  # of a tool's report that are shown
RIGHT = "results are right"  # what a part says in the end
MARK = "=" * 9  # in front of a tool's lines
ACCESS = re.compile(r"(?:Read|Write) access at (.+?)\+0x")
POLLED = (("number_in(", "set_number("), ("put_to_peer(Word", "get_shared(", "get2_shared("))
READERS = ("multiply<", "hold<", "score_tile<Bulk", "add_tile<Bulk", "scale_of<Bulk", "clear_unseen<Bulk")
# Heads, kv heads, rows of `paged`.
ROTATED = ((2, 2, 3), (8, 1, 140), (16, 16, 20))


def find_sanitizer(folders: str = FOLDERS) -> str | None:
    """Its path, of several the newest toolkit's."""
    on_path = shutil.which("compute-sanitizer")
    return on_path or next(iter(sorted(glob.glob(f"{folders}/compute-sanitizer"), reverse=True)), None)


def skinny() -> None:
    """Every way to cut a product, each kind of weight, launched one behind the other."""
    from kernels.quantize import Weight, Weight8, WeightKind, quantize
    from kernels.skinny import Activation, Variant, skinny_linear
    from tests.kernels.test_skinny import exact, inputs

    kinds: tuple[WeightKind, ...] = ("bf16", "int8", "fp8")
    cuts: list[tuple[int, int, int, bool, int, Activation, bool]] = [
        # tiles, row groups, split, persistent, rows, activation, accumulate
        (1, 1, 1, False, 3, "swiglu", False),
        (2, 2, 2, True, 11, "none", True),
        (2, 1, 8, False, 5, "relu2", False),
    ]
    for kind, (tiles, groups, split, persistent, m, activation, accumulate) in product(kinds, cuts):
        n, k = 96, 576
        x, weight, residual = inputs(m, n, k)
        packed = weight if kind == "bf16" else quantize(weight, kind)
        on_device: Weight
        if isinstance(packed, torch.Tensor):
            on_device = packed.cuda()
        else:
            on_device = Weight8(packed.values.cuda(), packed.scales.cuda(), packed.dtype)
        columns = n // 2 if activation == "swiglu" else n
        out = (residual if accumulate else torch.full((m, columns), float("nan"), dtype=weight.dtype)).cuda()
        variant = Variant(tiles, groups, split, 2, 1, persistent, prefetch=2, kind=kind)
        eps = None if accumulate else 1e-5
        for pdl in (False, True):
            if accumulate:
                out.copy_(residual)
            skinny_linear(
                x.cuda(),
                on_device,
                out,
                eps=eps,
                activation=activation,
                accumulate=accumulate,
                variant=variant,
                pdl=pdl,
            )
        want = exact(x, packed, eps, activation, residual if accumulate else None)
        error = ((out.cpu().double() - want).norm() / want.norm()).item()
        assert error < 3e-3, f"{variant}: {error}"


def streamed() -> None:
    """Rows of every height, K whole and shared by clusters, with what stands around a product."""
    from kernels.skinny import Activation
    from kernels.streamed import Config, streamed_linear
    from tests.kernels.test_skinny import exact, inputs

    cuts: list[tuple[Config, int, Activation, bool]] = [
        # rows, activation, accumulate
        (Config(1, 1, 3), 3, "relu2", False),
        (Config(1, 4, 2), 11, "none", True),
        (Config(2, 2, 3), 27, "swiglu", False),
        (Config(2, 8, 2), 64, "none", True),
    ]
    for config, m, activation, accumulate in cuts:
        n, k = 208, 576
        x, weight, residual = inputs(m, n, k)
        columns = n // 2 if activation == "swiglu" else n
        eps = None if accumulate else 1e-5
        for pdl in (False, True):
            empty = torch.full((m, columns), float("nan"), dtype=weight.dtype)
            out = (residual if accumulate else empty).cuda()
            streamed_linear(
                *(x.cuda(), weight.cuda(), out),
                eps=eps,
                activation=activation,
                accumulate=accumulate,
                config=config,
                pdl=pdl,
            )
            want = exact(x, weight, eps, activation, residual if accumulate else None)
            error = ((out.cpu().double() - want).norm() / want.norm()).item()
            assert error < 4e-3, f"{config}: {error}"


def cluster() -> None:
    """Contexts across the borders of tiles and pages, with padding, for every size of a cluster."""
    from kernels.cluster import ClusterDecode, Shape, Variant
    from tests.kernels.cluster_cases import Batch
    from tests.kernels.triton.paged import Paged

    for size, (heads, kv_heads, head_dim, block), window in (
        (1, (2, 2, 128, 16), None),
        (2, (4, 1, 64, 48), 20),
        (4, (8, 1, 128, 32), None),
        (8, (2, 2, 64, 16), None),
    ):
        batch = Batch.of([1, 16, 17, 70, 300], heads, kv_heads, head_dim, block, True)
        p = batch.pages
        pages = Paged(p.k_pages.cuda(), p.v_pages.cuda(), p.tables.cuda(), p.keys, p.values)
        places = (pages.tables, batch.rows.cuda(), batch.positions.cuda())
        variant, shape = Variant(size, 4, 1), Shape(heads, kv_heads, head_dim, block)
        kernel = ClusterDecode(shape, 4096, torch.device("cuda"), size=2, threshold=1024, forced=variant)
        kernel.prepare(8)
        for pdl in (False, True):
            out = batch.out.cuda()
            arguments = (batch.query.cuda(), pages.k_pages, pages.v_pages, *places, out)
            kernel.decode(*arguments, scale=0.1, window=window, pdl=pdl)
            checked = Batch(p, batch.query, batch.rows, batch.positions, out.cpu())
            checked.check(0.1, window)


def decode() -> None:
    """Whole decode steps, in one kernel and as a chain, with teams that are clusters and without."""
    from tests.gpu.test_decode_step import POSITIONS, forms, kernels_for, run, same
    from tests.kernels.decode_cases import SMALL, WIDE, case, network

    for spec in (SMALL, WIDE):
        kernels = kernels_for(network(spec, device="cuda"))
        results = [run(kernels, cut, case(spec, POSITIONS, device="cuda")) for cut in forms(kernels, 4)]
        for other in results[1:]:
            same(results[0], other)


def paged(shapes: Iterable[tuple[int, int, int]] = ROTATED, device: str = "cuda") -> None:
    """Layers of attention that rotate for themselves, later ones reading early, in forms that serve.

    shapes: heads, kv heads, rows. device: the CPU has Triton's kernel instead, whose interpreter also makes
    the plans of the other.
    """
    from tests.gpu.test_rotation import Layers
    from tests.kernels.triton.mended_interpreter import mend_interpreter

    mend_interpreter()
    by, sizes = "cuda" if device == "cuda" else "triton", {"layers": 3, "longest": 300}
    for shape, eight_bits in product(shapes, (False, True)):
        layers = Layers(*shape, eight_bits, by, device=device, made_on="cpu", **sizes)
        layers.run(inside=True, pdl=True)
        found = layers.found
        assert found.numel() and torch.isfinite(found).all()


PARTS: dict[str, Callable[[], None]] = {
    "skinny": skinny,
    "streamed": streamed,
    "cluster": cluster,
    "paged": paged,
    "decode": decode,
}


def is_known(accesses: set[str]) -> bool:
    """Whether a race between these functions is of one of the two kinds."""
    names = {name.removeprefix("void ").removeprefix("float ") for name in accesses}
    others = {name for name in names if not name.startswith("copy_bulk(")}
    ring = len(names) > len(others) > 0 and all(name.startswith(READERS) for name in others)
    return bool(names) and (ring or any(all(name.startswith(words) for name in names) for words in POLLED))


def without_known(report: str) -> tuple[str, int, int]:
    """A tool's report without races that are known; how many they are, and how many findings are left. An
    entry begins with a line that is not indented."""
    left: list[str] = []
    known = others = 0
    for entry in re.split(rf"(?m)^(?={MARK} \S)", report):
        lines = entry.splitlines()
        if is_known(set(ACCESS.findall(entry))):
            known += 1
            left += [line for line in lines if not line.startswith(MARK)]
            continue
        others += entry.startswith(MARK) and "COMPUTE-SANITIZER" not in lines[0] and "SUMMARY" not in lines[0]
        left += lines
    return "\n".join(left), known, others


def launch(parts: list[str]) -> None:
    """In the process that a tool looks at, which shall know the names of functions."""
    plain = nvrtc._options
    nvrtc._options = lambda arch, defines: [*plain(arch, defines), "-lineinfo"]
    for name in parts:
        PARTS[name]()
        torch.cuda.synchronize()
        print(f"{name}: {RIGHT}", flush=True)


def supervised(command: list[str]) -> tuple[int, str]:
    """Exit status and output. Inputs are made on the CPU, and what Triton does is interpreted there, so that
    no kernels run but those to be checked; every tensor is an allocation of its own, so that a byte beside it
    is seen."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        text = output.decode(errors="replace") if isinstance(output, bytes) else output
        return 124, f"{text}\ntook more than {SECONDS} s"
    return done.returncode, done.stdout


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="CUDA kernels under compute-sanitizer")
    parser.add_argument("tools", nargs="*", default=list(TOOLS))
    parser.add_argument("--only", action="append", choices=list(PARTS))
    parser.add_argument("--launch", action="store_true", help="launch the kernels, without a tool")
    given = parser.parse_args(arguments)
    parts = given.only or list(PARTS)
    if given.launch:
        launch(parts)
        return 0
    sanitizer = find_sanitizer()
    if sanitizer is None:
        print(f"no compute-sanitizer on PATH or in {FOLDERS} (the CUDA toolkit's): nothing was checked")
        return 2
    plain = [sys.executable, "-m", "tests.gpu.sanitize", "--launch"]
    plain += [word for part in parts for word in ("--only", part)]
    options = ["--error-exitcode", str(FOUND), "--report-api-errors", "no", "--print-limit", "100000"]
    found = 0
    # Without a tool first: what is wrong by itself is told plainly, and all is compiled when a tool looks on.
    for tool in ("", *given.tools):
        began = time.monotonic()
        status, output = supervised([sanitizer, "--tool", tool, *options, *plain] if tool else plain)
        right = output.count(RIGHT) == len(parts)
        output, known, others = without_known(output)
        if status == FOUND and known and not others and right:
            status = 0
        word = "nothing found" if status == 0 else "ERRORS" if status == FOUND else f"failed ({status})"
        about = f", {known} races that are known" if known else ""
        print(f"== {tool or 'no tool'}: {word}{about}, {time.monotonic() - began:.0f} s", flush=True)
        lines = output.splitlines()
        print("\n".join(lines if len(lines) <= LINES else [*lines[:LINES], f"... {len(lines)} lines in all"]))
        found |= status != 0
        if status and not tool:
            break
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
