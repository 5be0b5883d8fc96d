"""The benchmark programs on tiny sizes: their definitions, and that they run to the end."""

import asyncio
import hashlib
import json
import math
import random
import sys
from pathlib import Path

import pytest
import torch
from aiohttp import web

from benchmarks import accuracy, cpu, decode, offline, peers, scheduling
from benchmarks.bandwidth import Reads
from benchmarks.client import Orders, prompts
from benchmarks.load import percentile, stream
from benchmarks.models import ByteTokenizer
from benchmarks.offline import Steady
from benchmarks.workloads import SEED_PROMPTS, WORKLOADS, Work
from engine.config import GPTConfig
from engine.model import GPT


def test_workloads_are_the_peers_own() -> None:
    works = {name: make(65_520) for name, make in WORKLOADS.items()}
    assert [len(prompt) for prompt in works["seed8"][0].prompts] == list(SEED_PROMPTS)
    assert (works["seed8"][0].new, works["one"][0].new) == ([64] * 8, [256])
    assert [work.streams for work in works["streams"]] == [8, 32, 64, 128, 256, 2, 4]
    assert {len(prompt) for work in works["streams"] for prompt in work.prompts} == {64}
    lengths = [len(prompt) for prompt in works["c256"][0].prompts]
    assert len(lengths) == 256 and min(lengths) >= 64 and max(lengths) <= 512
    assert works["qwen"][0].tokens == 150_245  # the count that vLLM's figure is about
    for name, made in works.items():
        for work in made:
            model = "qwen3-0.6b" if name == "qwen" else "llama-d32"
            figure = peers.offline(model, name, work.streams)
            known = name != "context1k" and work.streams not in (2, 4)  # nobody measured vLLM there
            assert (figure is not None and figure.vllm > 400) == known


def test_prompts_of_the_load_are_those_of_the_peers_generator() -> None:
    rng = random.Random(8)
    expected = []
    for _ in range(24):
        length = rng.randint(64, 512)
        expected.append([rng.randrange(3, 65_000) for _ in range(length)])
    assert prompts(8, 24, 64, 512, 65_000) == expected


def test_bytes_that_decoding_reads() -> None:
    config = GPTConfig.for_generation(
        "G2",
        n_layer=4,
        n_embd=64,
        n_head=4,
        n_kv_head=2,
        vocab_size=96,
        sequence_len=32,
        window_pattern="SSSL",
    )
    reads = Reads.of(GPT(config))
    table = 96 * 64 * 4
    assert reads.weights == sum(p.numel() * 4 for p in GPT(config).parameters()) - table
    per_layer = 2 * 2 * 16 * 4
    assert reads.windows == (16, 16, 16, None) and reads.kv_per_layer == per_layer
    assert reads.context(10) == 4 * 10 * per_layer and reads.context(30) == (3 * 17 + 30) * per_layer
    work = Work("x", [[1] * 30, [1] * 5], [2, 3])
    contexts = [30, 31, 5, 6, 7]
    assert reads.total(work, 3) == 3 * reads.weights + sum(map(reads.context, contexts))
    plain = Reads(10, 8, (None, None))
    assert plain.total(work, 1) == 10 + sum(map(plain.context, contexts))


def test_what_came_while_all_streams_decoded() -> None:
    """From the last one's first token to the first one's last: three tokens of each, the second's from its
    third on.
    """
    early, late, long = [1.0, 3.0, 5.0, 7.0], [4.0, 5.0, 6.0, 7.5], [0.5, 2.0, 4.0, 5.0, 6.5, 9.0]
    steady = Steady.of([early, late, long])
    assert steady.seconds == 3.0 and steady.spans == ((2, 2), (1, 2), (3, 2)) and steady.tokens == 6
    work = Work("any", [[1] * 10, [1] * 20, [1] * 30], [4, 4, 6])
    reads = Reads(1000, 8, (None, None))
    contexts = [10 + 2, 10 + 3, 20 + 1, 20 + 2, 30 + 3, 30 + 4]
    assert steady.bytes(reads, work) == 2 * 1000 + 16 * sum(contexts)
    assert Steady.of([[1.0, 2.0], [2.0, 3.0]]).tokens == 0, "the first has ended when the second begins"


def test_decode_writes_a_row_per_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"n_layer": 1, "n_embd": 64, "n_head": 2, "n_kv_head": 2, "vocab_size": 512, "sequence_len": 128}
    monkeypatch.setitem(offline.models.SIZES, "tiny", small)
    monkeypatch.setattr(offline, "read_bandwidth", lambda device: 1e10)
    out = tmp_path / "decode.json"
    arguments = "--workload one,seed8,streams --streams 8,64 --size tiny --device cpu --shrink 32 --runs 2"
    failing = offline.measure

    async def measure(engine: object, work: Work, *rest: object) -> offline.Row:
        if work.streams == 64:
            raise RuntimeError("not this one")
        return await failing(engine, work, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(offline, "measure", measure)
    with pytest.raises(SystemExit) as ended:
        decode.main([*arguments.split(), "--max-rows", "8", "--max-model-len", "128", "--out", str(out)])
    assert ended.value.code == 1, "for one case failed"
    saved = json.loads(out.read_text())
    assert saved["machine"]["cpu"] and saved["settings"]["weights_bytes"] > 0
    rows = saved["rows"]
    assert [(row["workload"], row["streams"]) for row in rows] == [
        ("one", 1),
        ("seed8", 8),
        ("streams", 8),
        ("streams", 64),
    ]
    assert [bool(row["error"]) for row in rows] == [False, False, False, True]
    assert all(row["tok_s"] > 0 and row["steps"] > 0 and row["mbu"] > 0 for row in rows[:3])
    assert rows[0]["decode_tok_s"] > rows[0]["tok_s"] and rows[0]["decode_mbu"] > 0, "one has no prefill then"
    assert "not this one" in capsys.readouterr().out


def test_a_cpu_beside_llama_cpp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The peer is a program of its own, here one that answers at once."""
    small = {"n_layer": 2, "n_embd": 64, "n_head": 2, "n_kv_head": 1, "vocab_size": 512, "sequence_len": 128}
    monkeypatch.setitem(offline.models.SIZES, "tiny", small)
    monkeypatch.setattr(cpu, "read_bandwidth", lambda device: 1e10)
    peer, seen = tmp_path / "python", tmp_path / "seen.jsonl"
    peer.write_text(
        f"""#!{sys.executable}
import json, sys
settings = json.loads(sys.argv[2])
open({str(seen)!r}, "a").write(json.dumps(settings) + "\\n")
rows = [{{"streams": n, "tok_s": 100.0 * n}} for n in settings["streams"]]
print(json.dumps({{"version": "0", "rows": rows}}))
"""
    )
    peer.chmod(0o755)
    sizes = "--device cpu --workload cpu --size tiny --runs 2 --new 8 --prompt-len 4 --streams 1,3"
    for more, there in ((["--llama-cpp", str(peer)], True), (["--weights", "int8"], False)):
        out = tmp_path / f"{there}.json"
        decode.main([*sizes.split(), *more, "--out", str(out)])
        kept = json.loads(out.read_text())
        kinds = cpu.FORMATS if there else {"int8": "Q8_0"}
        columns = "system", "weights", "streams", "sampling"
        assert [tuple(row[column] for column in columns) for row in kept["rows"]] == [
            (system, weights, streams, how)
            for ours, theirs in kinds.items()
            for streams in (1, 3)
            for system, weights, how in (
                ("fastpath", ours, "greedy"),
                ("llama.cpp", theirs, "greedy"),
                ("fastpath", ours, "chat"),
            )
        ]
        for row in kept["rows"]:
            if row["system"] != "fastpath":
                continue
            assert row["tok_s"] > 0 and row["spread"] >= 0
            assert row["forward_ms"] + row["overhead_ms"] == pytest.approx(row["step_ms"])
            assert row["bandwidth"] == pytest.approx(row["step_bytes"] / (row["step_ms"] / 1e3) / 1e10)
            compared = there and row["sampling"] == "greedy"
            assert row["ratio"] == (pytest.approx(row["tok_s"] / row["streams"] / 100) if compared else None)
        assert ("not installed" in capsys.readouterr().out) != there
        assert kept["settings"]["bandwidth_gb_s"] == 10
    asked = [json.loads(line) for line in seen.read_text().splitlines()]
    assert [one["format"] for one in asked] == ["int8", "bf16", "float32"] * 2
    shape = asked[0]["shape"]
    # What a layer of either has: attention, and two matrices or three.
    assert abs(3 * 64 * shape["n_inner"] - 8 * 64 * 64) <= 16 * 3 * 64 and shape["n_inner"] % 32 == 0


@pytest.mark.parametrize(
    "arguments, said",
    [
        ("--weights int4", "measures int8, bf16, float32"),
        ("--size llama-tiny", "of a nanochat model"),
        ("--workload cpu,one", "stand alone"),
    ],
)
def test_what_a_cpu_does_not_measure(arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        decode.main(["--device", "cpu", *arguments.split()])
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_scheduling_measures_every_part() -> None:
    row = scheduling.measure(8, 20)
    assert row.steps == 19 + 1 or row.steps == 20
    assert min(row.plan_us, row.launch_us, row.process_us, row.emit_us) > 0
    assert row.total_us < 20_000


async def test_client_processes_see_what_the_server_sent() -> None:
    seen_prompts: list[list[int]] = []
    most = active = 0

    async def completions(request: web.Request) -> web.StreamResponse:
        nonlocal most, active
        body = await request.json()
        seen_prompts.append(body["prompt"])
        if len(body["prompt"]) == 3:
            return web.json_response({"error": {"message": "three is a crowd"}}, status=400)
        active += 1
        most = max(most, active)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for token in range(body["max_tokens"]):
            await asyncio.sleep(0.002)
            event = {"choices": [{"index": 0, "text": str(token)}], "usage": None}
            await response.write(b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n")
        usage = {"choices": [], "usage": {"completion_tokens": body["max_tokens"]}}
        await response.write(b"data: " + json.dumps(usage, separators=(",", ":")).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        active -= 1
        return response

    app = web.Application()
    app.router.add_post("/v1/completions", completions)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    orders = Orders(f"http://{host}:{port}", 4, 5, seed=3, count=12, low=3, high=4, vocabulary=50)
    try:
        seen = await stream(orders, processes=2)
    finally:
        await runner.cleanup()
    expected = prompts(3, 12, 3, 4, 50)
    assert sorted(seen_prompts) == sorted(expected)
    refused = sum(len(prompt) == 3 for prompt in expected)
    assert len(seen.errors) == refused > 0 and "crowd" in seen.errors[0]
    assert len(seen.streams) == 12 - refused and most <= 4
    for one in seen.streams:
        assert one.tokens == len(one.stamps) == 5
        assert one.ttft >= 0.002 and all(gap >= 0 for gap in one.gaps) and one.tpot >= 0.0015
    assert seen.seconds > 0 and seen.cpu > 0


def test_percentiles_are_those_of_the_peers_generator() -> None:
    values = [float(value) for value in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile([], 0.5)) == (51, 100, 0)


def test_accuracy_against_the_dense_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is that of the model's own forward, the first system is its own measure, others are not."""
    small = {"n_layer": 2, "n_embd": 64, "n_head": 2, "n_kv_head": 2, "vocab_size": 512, "sequence_len": 128}
    monkeypatch.setitem(offline.models.SIZES, "tiny", small)
    written, out = tmp_path / "text.txt", tmp_path / "accuracy.json"
    written.write_text("The river was high that spring, and nobody crossed it before noon. " * 8)
    sizes = f"--model-size tiny --device cpu --rows 3 --length 20 --text {written}"
    speed = f"--streams 2 --new 4 --runs 1 --out {out}"
    accuracy.main([*sizes.split(), "--systems", "full,int8,te,kv8", *speed.split()])
    kept = json.loads(out.read_text())
    full, eight, te, kv8 = kept["rows"]
    data = written.read_bytes()
    digest = hashlib.sha256(data).hexdigest()[:16]
    assert kept["settings"]["text"] == [{"name": "text.txt", "bytes": len(data), "sha256": digest}]
    args = accuracy.arguments(sizes.split())
    model, tokenizer, _ = accuracy.model_of(args)
    text = accuracy.text_of(args, tokenizer, 512)
    windows = torch.tensor(text.windows)
    assert windows.shape[1:] == (3, 21) and full["tokens"] == windows[..., 1:].numel() > 100
    with torch.inference_mode():
        logits = model(windows[..., :-1].reshape(-1, 20)).flatten(0, 1)
    want = torch.nn.functional.cross_entropy(logits, windows[..., 1:].reshape(-1)).item()
    assert full["nats"] == pytest.approx(want, abs=1e-4) and full["nats_more"] == 0
    assert full["bits_per_byte"] == pytest.approx(want / math.log(2) / text.bytes_per_token, abs=1e-4)
    assert full["cosine_min"] == pytest.approx(1, abs=1e-6) and full["same_top"] == 1
    assert 0.9 < eight["cosine_min"] < eight["cosine_mean"] < 1 - 1e-7
    assert full["tok_s"]["2"] > 0 and te["error"].startswith("unavailable: use_te_weight_only")
    assert kv8["error"].startswith("unavailable: kv_dtype is fp8, but that needs a CUDA device")
    shown = out.with_suffix(".md").read_text()
    assert "| int8 |" in shown and "- te: unavailable" in shown


def test_accuracy_refuses_what_does_not_fill_a_step(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("too short")
    args = accuracy.arguments(["--text", str(text), "--device", "cpu"])
    with pytest.raises(ValueError, match="does not fill 16 passages of 256"):
        accuracy.text_of(args, ByteTokenizer(512), 512)


def test_decode_takes_flags_as_well_as_fields() -> None:
    pairs = ["--engine", "use_te_weight_only=true", "--engine", "weight_dtype=int8", "--engine", "max_rows=7"]
    config = offline.engine_config(decode.arguments(["--workload", "one", *pairs]))
    assert config.flags == {"use_te_weight_only": True}
    assert (config.weight_dtype, config.max_rows) == ("int8", 7)
