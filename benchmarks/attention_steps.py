"""Whole decode steps by who attends: `python -m benchmarks.attention_steps --rows 8,64 --keys 192,1088`.

A nanochat model of random weights, each product as it is fastest by itself, steps replayed as a CUDA graph
with no engine around them. Beside Triton's kernel and clusters stands our CUDA kernel in the form in which it
serves, and with --forms in others: attention alone does not tell what its blocks cost the kernels around it.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import torch

from benchmarks import options
from benchmarks.models import random_model
from benchmarks.report import save, table
from engine.decoder import Decoder
from engine.gpu.cache import PagedKV
from engine.gpu.linears import build_linears
from engine.gpu.network import Network, programmatic_launch
from engine.gpu.path_trial import Trial, fill
from engine.gpu.rows import DeviceRows
from engine.gpu.weights import network_weights
from kernels.backends import ClusterRule, select_backend
from kernels.backends.base import AttentionBackend, AttentionSpec
from kernels.backends.clustered import ClusteredBackend
from kernels.kv8 import FORMAT
from kernels.timing import GraphTimer, Timer

BLOCK, SPREAD, REPLAYS = 16, 7, 40
FEW = 4  # rows, for which clusters are built
Form = tuple[int, ...]  # warps of a block, stages, units for each multiprocessor, tiles of a warp at least


@dataclass(slots=True)
class StepRow:
    """Milliseconds of a step of `rows` entries with `keys` keys each and up to six more."""

    kv: str
    rows: int
    keys: int
    who: str
    ms: float


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-size", "--size", type=options.size, default="d32", dest="size")
    parser.add_argument("--rows", type=options.counts, default=[1, 4, 8, 64])
    parser.add_argument(
        "--keys", type=options.counts, default=[192, 1088], help="in front of each entry's own"
    )
    parser.add_argument("--kv-dtype", default="bf16", help="bf16, fp8 or both with a comma between them")
    parser.add_argument(
        "--forms",
        type=forms_of,
        default=[],
        metavar="W/S/U/T[,...]",
        help="of the CUDA kernel: see kernels.paged_decode.Variant",
    )
    parser.add_argument("--out", type=Path, help="write the result there")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    args = parser.parse_args(argv)
    args.kv_dtype = args.kv_dtype.split(",")
    if set(args.kv_dtype) - {"bf16", "fp8"}:
        parser.error(f"--kv-dtype {','.join(args.kv_dtype)}: there are bf16 and fp8")
    return args


def forms_of(text: str) -> list[Form]:
    """From "8/2/1/1,4/3/2/1"."""
    found = [part.split("/") for part in text.split(",")]
    if any(
        len(form) != 4 or not all(number.isdecimal() and int(number) for number in form) for form in found
    ):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form W/S/U/T[,...]")
    return [tuple(map(int, form)) for form in found]


def backends(spec: AttentionSpec, rows: int, forms: Sequence[Form]) -> Iterator[tuple[str, AttentionBackend]]:
    """Who attends in a step of so many rows, as far as the device has it."""
    shape = {
        "heads": spec.heads,
        "kv_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "block_size": spec.block_size,
        "dtype": spec.dtype,
        "max_rows": spec.max_rows,
        "max_context": spec.max_context,
        "device": spec.device,
        "fp8_kv": spec.fp8_kv,
    }
    if spec.device.type != "cuda":
        yield "torch", select_backend("torch", **shape)[0]  # type: ignore[arg-type]
        return
    yield "triton-rotating", select_backend("triton-rotating", **shape)[0]  # type: ignore[arg-type]
    if rows <= FEW:
        rule = ClusterRule(2, 1, required=True)
        clustered = select_backend("auto", clusters=rule, **shape)[0]  # type: ignore[arg-type]
        if isinstance(clustered, ClusteredBackend) and clustered.clustered(rows):
            yield "clusters", clustered
    yield "cuda", select_backend("cuda", **shape)[0]  # type: ignore[arg-type]
    from kernels.backends.cuda import CudaBackend, kernel_for
    from kernels.paged_decode import Variant

    for form in forms:
        kernel = kernel_for(spec)
        kernel.forced = Variant(*form)
        yield f"cuda {'/'.join(map(str, form))}", CudaBackend(spec, kernel)


def measure(
    model: Decoder,
    rows: Sequence[int],
    keys: Sequence[int],
    kinds: Sequence[str],
    forms: Sequence[Form],
    timer: Timer,
) -> Iterator[StepRow]:
    """Everything with everything."""
    weights = network_weights(model)
    device, dtype = weights.embedding.device, weights.embedding.dtype
    rotary, longest, most = weights.layers[0].rotary, max(keys) + SPREAD, max(rows)
    linears = build_linears(weights, "auto", most, programmatic_launch(device))
    sizes = (rotary.heads, rotary.kv_heads, rotary.head_dim, BLOCK, dtype, most, longest, device)
    entries = DeviceRows(most, 1 + longest // BLOCK, weights.vocab_size, device)
    for kind, count, length in product(kinds, rows, keys):
        spec = replace(AttentionSpec(*sizes), fp8_kv=kind == "fp8")
        network: Network | None = None
        for who, attention in backends(spec, count, forms):
            if network is None:
                network = Network(weights, linears, entries, attention, most, most)
                blocks, kept = 1 + count * (1 + longest // BLOCK), FORMAT if spec.fp8_kv else dtype
                config = model.config
                network.cache = PagedKV(
                    config.n_layer, blocks, BLOCK, config.n_kv_head, config.head_dim, kept, device
                )
                fill(network.cache)
            network.attention = attention
            trial = Trial.of(network, count, [length + number % SPREAD for number in range(count)])
            yield StepRow(kind, count, length, who, 1e3 * timer(partial(trial.run, "graph")))


def main() -> None:
    args = arguments()
    if not torch.cuda.is_available():
        raise SystemExit("this measures a GPU, and there is none")
    model = random_model(args.size, torch.bfloat16, "cuda")
    found: list[StepRow] = []
    for row in measure(model, args.rows, args.keys, args.kv_dtype, args.forms, GraphTimer(REPLAYS)):
        found.append(row)
        print(f"{row.kv}, {row.rows} rows of {row.keys} keys, {row.who}: {row.ms:.4f} ms", flush=True)
    print(table(["kv", "rows", "keys", "who", "ms"], [[r.kv, r.rows, r.keys, r.who, r.ms] for r in found]))
    if args.out or args.save:
        print("kept in", save("attention-steps-cuda", [*map(asdict, found)], vars(args), out=args.out))


if __name__ == "__main__":
    main()
