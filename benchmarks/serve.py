"""Serving speed over HTTP: `python -m benchmarks.serve`.

--load modes (the default on a CPU): one server after the other, in each batching mode, with 1 and 8 clients.
--load peers (the default on a GPU): the load that the other engines' figures come from, closed loops of 1, 8,
64 and 256 clients, prompts uniform in 64..512 ids, 128 new tokens, 3 rounds, with vLLM's row beside ours.
--scenario long-prompt: 32 streams decode while 2,000-token prompts arrive, and what that does to their pace.

Clients run in processes of their own. TTFT is the time to the first event with a choice, ITL the gap between
two such events, TPOT (last - first) / (tokens - 1), tokens are the server's own usage figure. Of TTFT and ITL
each row has p50, p90 and p99, in milliseconds, printed in this order.
"""

import argparse
import asyncio
import tempfile
import traceback
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import models, options, peers
from benchmarks.client import Orders
from benchmarks.load import Clients, Row, Seen, closed_loop, percentile, stream
from benchmarks.report import save, table
from benchmarks.server import Server, server

MODES = ("continuous", "static", "single")


def vocabulary(args: argparse.Namespace) -> int:
    """Ids below this are ordinary tokens."""
    if args.vocabulary:
        return int(args.vocabulary)
    config = models.dummy_config(args.size)
    described = config.get("model_config", config)
    assert isinstance(described, dict)
    return int(described["vocab_size"]) - 16


async def modes(model: str, args: argparse.Namespace) -> list[dict[str, object]]:
    """Each batching mode on a server of its own."""
    rows: list[dict[str, object]] = []
    for mode in args.modes.split(","):
        try:
            async with server(model, [*arguments(args), "--batching", mode]) as running:
                rows += await loops(running, mode, args)
        except Exception as error:
            rows.append(failed(mode, error))
    return rows


async def as_peers(model: str, args: argparse.Namespace) -> list[dict[str, object]]:
    try:
        async with server(model, arguments(args)) as running:
            print(f"ready after {running.ready:.1f} s", flush=True)
            return await loops(running, "fastpath", args)
    except Exception as error:
        return [failed("fastpath", error)]


async def loops(running: Server, mode: str, args: argparse.Namespace) -> list[dict[str, object]]:
    """One row for each number of clients, behind a warm-up of four requests."""
    low, high = (int(part) for part in args.prompt_len.split(","))
    sizes = {"low": low, "high": high, "vocabulary": vocabulary(args)}
    rows: list[dict[str, object]] = []
    await stream(Orders(running.url, 4, args.new, seed=1, count=4, **sizes))
    for count in map(int, args.clients.split(",")):
        orders = Orders(running.url, count, args.new, seed=count, count=count * args.rounds, **sizes)
        try:
            row = await closed_loop(running, mode, orders, args.client_processes)
        except Exception as error:
            rows.append(failed(mode, error) | {"clients": count})
            continue
        print(_line(row), flush=True)
        rows.append(asdict(row) | _beside(row, args))
    return rows


def _beside(row: Row, args: argparse.Namespace) -> dict[str, object]:
    """vLLM's figures and the goals, where they are about the same work."""
    peer, goal = peers.HTTP.get(row.clients), peers.http_target(row.clients)
    if args.load != "peers" or peer is None or goal is None or peers.MODEL_CLASSES.get(args.size) != "d32":
        return {}
    return {"vllm": asdict(peer), "target": asdict(goal)}


def _line(row: Row) -> str:
    parts = [
        f"{row.mode} {row.clients}: {row.tok_s:,.1f} tok/s",
        f"TTFT {row.ttft_p50_ms:.1f} / {row.ttft_p90_ms:.1f} / {row.ttft_p99_ms:.1f}",
        f"TPOT {row.tpot_ms:.3f}, ITL {row.itl_p50_ms:.3f} / {row.itl_p90_ms:.3f} / {row.itl_p99_ms:.3f} ms",
        f"client {row.client_cpu:.2f} and server {row.server_cpu:.2f} cores",
    ]
    if row.errors:
        parts.append(f"{row.errors} errors: {row.error}")
    return ", ".join(parts)


def failed(mode: str, error: Exception) -> dict[str, object]:
    traceback.print_exc()
    return {"mode": mode, "error": f"{type(error).__name__}: {error}"}


# -- a long prompt beside streams
# --------------------------------------------------------------------------------------------------------


async def long_prompt(model: str, args: argparse.Namespace) -> list[dict[str, object]]:
    """Streams that decode, and a few long prompts one after the other. A row for each of them: the streams'
    gaps while it was prefilled (from its arrival to its first token) beside the undisturbed ones just before,
    when the streams' contexts were as long.
    """
    try:
        async with server(model, arguments(args)) as running:
            sizes = {"vocabulary": vocabulary(args)}
            await stream(Orders(running.url, 4, 16, seed=1, count=4, low=64, high=512, **sizes))
            count = args.beside
            background = Clients(
                Orders(running.url, count, args.beside_new, seed=2, count=count, low=64, high=64, **sizes), 2
            )
            try:
                await background.prepare()
                background.begin()
                await asyncio.sleep(args.settle)
                long: list[Seen] = []
                for number in range(args.repeats):
                    prompt = {"low": args.long_prompt, "high": args.long_prompt, "seed": 100 + number}
                    long.append(await stream(Orders(running.url, 1, 8, count=1, **prompt, **sizes)))
                    await asyncio.sleep(args.pause)
                seen = await background.seen()
            finally:
                background.kill()
            return _long_rows(long, seen, args)
    except Exception as error:
        return [failed("long-prompt", error)]


def _long_rows(long: list[Seen], seen: Seen, args: argparse.Namespace) -> list[dict[str, object]]:
    errors = [*seen.errors, *(error for one in long for error in one.errors)]
    if errors:
        raise RuntimeError(f"{len(errors)} requests failed: {errors[0]}")
    begun = max(one.stamps[0] for one in seen.streams)
    ended = min(one.stamps[-1] for one in seen.streams)
    windows = [(one.streams[0].started, one.streams[0].stamps[0]) for one in long]

    def gaps(since: float, until: float) -> list[float]:
        return [
            after - before
            for one in seen.streams
            for before, after in zip(one.stamps, one.stamps[1:], strict=False)
            if since <= after <= until
        ]

    rows: list[dict[str, object]] = []
    # A long prompt's stream decodes a few tokens beside the others before it is quiet again.
    calm = [begun, *(one.streams[0].stamps[-1] for one in long)]
    for number, (since, until) in enumerate(windows):
        if until > ended:
            rows.append({"mode": "long-prompt", "number": number, "error": "the streams had ended by then"})
            continue
        quiet, during = gaps(max(calm[number], since - args.pause), since), gaps(since, until)
        if not quiet or not during:
            error = f"no gap of the streams ended {'before' if not quiet else 'while'} it was prefilled"
            rows.append({"mode": "long-prompt", "number": number, "error": error})
            continue
        alone, p50, p99 = (
            1e3 * value
            for value in (percentile(quiet, 0.5), percentile(during, 0.5), percentile(during, 0.99))
        )
        rows.append(
            {
                "mode": "long-prompt",
                "number": number,
                "streams": len(seen.streams),
                "prompt": args.long_prompt,
                "itl_alone_p50_ms": alone,
                "itl_p50_ms": p50,
                "itl_p99_ms": p99,
                "ratio": p99 / alone if alone else 0.0,
                "ratio_in_window": p99 / p50 if p50 else 0.0,
                "ttft_ms": 1e3 * (until - since),
                "gaps": len(during),
                "target": peers.LONG_PROMPT_RATIO_TARGET,
            }
        )
    return rows


def arguments(args: argparse.Namespace) -> list[str]:
    """For every server. Without prefix cache, as the peers ran: warm-up and load share prompts."""
    made = ["--device", args.device, "--dtype", args.dtype, "--no-prefix-caching"]
    if args.model is None:
        made += ["--load-format", "dummy"]
    if args.threads:
        made += ["--threads", str(args.threads)]
    return [*made, *args.server_args.split()]


async def run(args: argparse.Namespace) -> list[dict[str, object]]:
    kinds = {"modes": modes, "peers": as_peers, "long-prompt": long_prompt}
    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            models.write_dummy_folder(args.size, Path(folder))
        return await kinds[args.scenario or args.load](args.model or folder, args)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--load", choices=["modes", "peers"], default="peers" if cuda else "modes")
    parser.add_argument("--scenario", choices=["long-prompt"])
    parser.add_argument("--model", help="a checkpoint; without it random weights of --model-size")
    parser.add_argument(
        "--model-size", "--size", dest="size", type=options.size, default="d32" if cuda else "tiny"
    )
    parser.add_argument("--device", type=options.device, default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if cuda else "auto")
    parser.add_argument(
        "--compare", dest="modes", metavar="MODES", help=f"load modes, with these only: {','.join(MODES)}"
    )
    parser.add_argument("--clients", help="1,8 of modes, 1,8,64,256 of peers")
    parser.add_argument("--client-processes", type=int, help="one for every 32 clients")
    parser.add_argument("--prompt-len", help="shortest,longest: 32,32 of modes, 64,512 of peers")
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, help="ids below this are ordinary tokens")
    parser.add_argument("--beside", type=int, default=32, help="long-prompt: streams")
    parser.add_argument("--beside-new", type=int, default=1500, help="long-prompt: tokens of each stream")
    parser.add_argument("--long-prompt", type=int, default=2000, help="long-prompt: its tokens")
    parser.add_argument("--repeats", type=int, default=5, help="long-prompt: how many, one after the other")
    parser.add_argument("--settle", type=float, default=0.7, help="long-prompt: seconds before the first")
    parser.add_argument("--pause", type=float, default=0.25, help="long-prompt: seconds between two")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--server-args", default="", help="more settings for every server")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    args = parser.parse_args(argv)
    if args.modes is not None:
        args.load = "modes"
        if wrong := sorted(set(args.modes.split(",")) - set(MODES)):
            parser.error(f"--compare: there is no mode {', '.join(wrong)}; there are {', '.join(MODES)}")
    if "--allow-kernel-stub-fallback" in args.server_args.split():
        parser.error("--server-args: --allow-kernel-stub-fallback is for debugging, no row may rest on it")
    args.modes = args.modes or ",".join(MODES)
    as_modes = args.load == "modes"
    args.clients = args.clients or ("1,8" if as_modes else "1,8,64,256")
    args.prompt_len = args.prompt_len or ("32,32" if as_modes else "64,512")
    return args


def show(rows: list[dict[str, object]]) -> None:
    """One table for each kind of row, without what is nested in them."""
    kinds: dict[tuple[str, ...], list[list[object]]] = {}
    for row in rows:
        flat = {
            name: value for name, value in row.items() if not isinstance(value, dict) and value is not None
        }
        kinds.setdefault(tuple(flat), []).append(list(flat.values()))
        for name in ("vllm", "target"):
            other = row.get(name)
            if isinstance(other, dict):
                beside = {n: other.get(n, "") if n not in ("mode", "clients") else v for n, v in flat.items()}
                kinds[tuple(flat)].append(list((beside | {"mode": name}).values()))
    for header, cells in kinds.items():
        print(table(header, cells))


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    rows = asyncio.run(run(args))
    show(rows)
    if args.save or args.out:
        settings = {name: value for name, value in vars(args).items() if name not in ("save", "out")}
        name = f"serve-{args.scenario or args.load}-{args.device}-{args.size}-{args.dtype}"
        if args.load == "modes" and not args.scenario:
            name = f"serve-{args.device}-{args.size}-{args.dtype}"
        print("kept in", save(name, rows, settings, out=args.out))


if __name__ == "__main__":
    main()
