"""Decoding speed of the engine alone: `python -m benchmarks.decode --workload NAME[,NAME...]`.

cpu: what a CPU has for weights (int8, bf16, torch's float32) for 1 and 8 streams, greedy and with the
sampling that the embedded model's card recommends (chat), beside llama.cpp (greedy) where --llama-cpp names
an interpreter that has it, with where a step's time goes (the default on a CPU).
modes: the three batching modes beside transformers' `generate`, for 1 and 8 streams.
seed8, one, streams, c256, qwen: the offline workloads of benchmarks/workloads.py, with what vLLM reaches on
the same work, times to the first token and between tokens, and the share of the memory bandwidth (the default
on a GPU is the first four). context1k: 64 streams behind 1,024 tokens each; what counts there is "decode",
the rate while all of them decode, and `--engine prefill_stretch=0` lets their prompts in at once. --profile N
adds where the device's time goes in a run of N streams.
--path graph,chained,persistent: one and streams (1, 4 and 8, or --streams) by each of these decode paths, and
where a step's time goes in each.
"""

import argparse
import asyncio
from pathlib import Path
from typing import get_args

import torch

from benchmarks import cpu, models, modes, offline, options
from benchmarks.report import save
from benchmarks.workloads import WORKLOADS
from engine.cores import free_cores
from engine.worker import new_event_loop
from kernels.step_spec import StepPath

ALONE = ("cpu", "modes")
PATHS: tuple[str, ...] = get_args(StepPath)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workload",
        help=f"cpu, modes, or any of {', '.join(WORKLOADS)} with commas between them, or all",
    )
    parser.add_argument(
        "--model-size",
        "--size",
        dest="size",
        type=options.size,
        help="default: embedded for cpu, tiny for modes, d32 on a GPU",
    )
    here = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=options.device, default=here)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: float32 on a CPU")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--streams", type=options.counts, default="", help="stream counts of cpu, modes and streams"
    )
    parser.add_argument("--threads", type=int, default=free_cores())
    parser.add_argument("--prompt-len", type=int, default=32, help="cpu and modes")
    parser.add_argument("--new", type=int, default=128, help="cpu and modes")
    parser.add_argument(
        "--llama-cpp",
        type=Path,
        metavar="PYTHON",
        help="cpu: an interpreter that has llama-cpp-python and gguf, to measure beside",
    )
    parser.add_argument("--weights", default="int8,bf16,float32", help="cpu: which, with commas between them")
    parser.add_argument("--no-peer", action="store_true", help="modes: leave transformers out")
    parser.add_argument("--max-rows", type=int, default=256)
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument(
        "--engine",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of EngineConfig, or a flag",
    )
    parser.add_argument(
        "--profile", type=options.counts, default="", metavar="N[,N]", help="kernel times of N streams"
    )
    parser.add_argument(
        "--path", dest="paths", default="", metavar="NAME[,NAME]", help="graph, chained, persistent"
    )
    parser.add_argument("--shrink", type=int, default=1, help="divide all lengths, to try the program out")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    args = parser.parse_args(argv)
    _complete(parser, args)
    return args


def _complete(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Defaults that depend on other settings, and errors for those that do not go together."""
    cuda = args.device.startswith("cuda")
    args.paths = [name for name in args.paths.split(",") if name]
    if args.paths and (not cuda or args.workload or set(args.paths) - set(PATHS)):
        parser.error(f"--path {','.join(args.paths)}: {', '.join(PATHS)}, on a GPU and without --workload")
    args.workload = args.workload or ("seed8,one,streams,c256" if cuda else "cpu")
    args.size = args.size or ("d32" if cuda else models.EMBEDDED if args.workload == "cpu" else "tiny")
    args.dtype = args.dtype or ("bfloat16" if cuda else "float32")
    args.workloads = list(WORKLOADS) if args.workload == "all" else args.workload.split(",")
    unknown = [name for name in args.workloads if name not in WORKLOADS and name not in ALONE]
    if unknown or (set(ALONE) & set(args.workloads) and len(args.workloads) > 1):
        parser.error(
            f"--workload {args.workload}: cpu and modes stand alone, the others are {', '.join(WORKLOADS)}"
        )
    try:
        options.engine_settings(args.engine)
    except options.Unfit as error:
        parser.error(str(error))
    if args.workload in ALONE:
        args.streams = args.streams or [1, 8]
    if args.workload == "cpu":
        args.weights = args.weights.split(",")
        unknown = sorted(set(args.weights) - set(cpu.FORMATS))
        if unknown or cuda or args.size in models.CONFIGS:
            parser.error(f"--workload cpu measures {', '.join(cpu.FORMATS)} of a nanochat model on a CPU")
    if args.workload == "modes" and args.size not in models.SIZES:
        parser.error(f"--size {args.size}: modes knows {', '.join(models.SIZES)}")


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    if args.paths:
        from benchmarks import paths  # Triton is not everywhere

        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            rows = runner.run(paths.measure_paths(args))
    elif args.workload == "modes":
        rows = modes.run(args)
    elif args.workload == "cpu":
        rows = cpu.run(args)
    else:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:  # the loop of the engine process
            rows = runner.run(offline.measure_all(args))
    kind = "decode-paths" if args.paths else "decode"
    name = f"{kind}-{args.device}-{args.size}" + (f"-{args.dtype}" if args.workload != "cpu" else "")
    if args.save or args.out:
        settings = {key: value for key, value in vars(args).items() if key not in ("save", "out")}
        print("kept in", save(name, rows, settings, out=args.out))
    if any(row.get("error") for row in rows):
        raise SystemExit(1)  # what went wrong has been printed


if __name__ == "__main__":
    main()
