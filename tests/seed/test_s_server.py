"""Rows U3, U4, S3, F3, F14, G0 and B9 on real servers, over HTTP."""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import pytest

from tests.app.server_process import GOLDEN, ROOT, SERVER, Server, finish, serving
from tests.tiers import tiered

CHAT_WEB = [sys.executable, "-m", "app.chat_web"]
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())["prompts"]
LOCAL = ["--host", "127.0.0.1", "--device", "cpu", "--dtype", "float32"]


async def features(session: aiohttp.ClientSession, server: Server) -> dict[str, tuple[str, str, str]]:
    async with session.get(f"http://127.0.0.1:{server.port}/v1/models") as response:
        (model,) = json.loads(await response.text())["data"]
    found: list[dict[str, str]] = []

    def walk(value: object) -> None:
        if isinstance(value, dict):
            found.extend(value.get("features", []))
            for inner in value.values():
                walk(inner)

    walk(model)
    return {row["feature"]: (row["asked"], row["used"], row["why"]) for row in found}


async def complete(
    session: aiohttp.ClientSession, server: Server, prompt: Sequence[int], new: int
) -> list[int]:
    body = {
        "prompt": list(prompt),
        "max_tokens": new,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    async with session.post(f"http://127.0.0.1:{server.port}/v1/completions", json=body) as response:
        answer = json.loads(await response.text())
        assert response.status == 200, answer
    ids: list[int] = answer["choices"][0]["token_ids"]
    return ids


BOTH = ["--enable-batch-decode", "--enable-dynamic-batching"]
SAMPLING = ["--temperature", "0.8", "--top-k", "50", "--max-tokens", "512"]
MODES = [
    ([], "single"),
    (["--enable-batch-decode"], "continuous"),
    (
        ["--enable-dynamic-batching", "--reuse-ids-buffer", "--batch-size", "3", "--batch-timeout-ms", "5"],
        "continuous",
    ),
    (
        [*BOTH, "--batch-size", "4", "--batch-timeout-ms", "10", *SAMPLING],
        "continuous",
    ),
]


@pytest.mark.parametrize(
    ("flags", "mode"), tiered(MODES, {0, 3}), ids=["s3 none", "decode", "dynamic", "u3 all"]
)
async def test_s3_u3_u4_the_seeds_command_lines(flags: list[str], mode: str) -> None:
    """Each serves upstream's own greedy tokens, single ones as well as those that share steps."""
    with serving(CHAT_WEB, str(GOLDEN), *LOCAL, *flags) as server:
        async with aiohttp.ClientSession() as session:
            rows = await features(session, server)
            assert rows["batching"][1] == mode
            answers = await asyncio.gather(
                *(complete(session, server, case["prompt"], 20) for case in EXPECTED)
            )
    assert answers == [case["greedy"][:20] for case in EXPECTED]


@pytest.mark.slow
def test_f14_a_hint_without_a_kernel_is_refused_once_the_model_is_known() -> None:
    """Its own flags could have asked for one."""
    done = finish([*SERVER, str(GOLDEN), "--port", "0", *LOCAL, "--use-cta-clustering"])
    assert done.returncode == 3, done.stderr
    assert "use_cta_clustering was asked for" in done.stderr and "Ready" not in done.stdout


CLUSTERED = ["--use-clustered-attention-kernel", "--clustered-attention-impl"]
PERSISTENT = ["--use-persistent-decode-kernel", "--persistent-decode-impl"]


@pytest.mark.parametrize(
    ("flags", "said"),
    tiered(
        [
            ([*PERSISTENT, "nowhere:f"], "--persistent-decode-impl: No module named 'nowhere'"),
            (
                [*CLUSTERED, "math:nothing"],
                "--clustered-attention-impl: the module math has no function nothing",
            ),
            (
                [*CLUSTERED, "math:sqrt"],
                "--clustered-attention-impl: math:sqrt must take 3 positional arguments",
            ),
            (["--use-flash3"], "--use-flash3 was asked for, but needs a CUDA device"),
            (["--use-cuda-graphs"], "--use-cuda-graphs was asked for, but needs a CUDA device"),
            (["--te-include-mlp"], "--te-include-mlp was asked for, but needs a CUDA device"),
            (["--use-clustered-attention-kernel"], "--use-clustered-attention-kernel: there is no kernel"),
            (["--use-persistent-decode-kernel"], "--use-persistent-decode-kernel: there is no kernel"),
            ([*CLUSTERED, "breaks:f"], "--clustered-attention-impl: breaks: ZeroDivisionError: of its own"),
            ([*CLUSTERED, "leaves:f"], "SystemExit: 0"),
        ],
        {1, 3, 7, 9},
    ),
    ids=lambda value: " ".join(value)[-30:] if isinstance(value, list) else "",
)
def test_f14_what_cannot_be_had_is_refused_before_the_port_opens(
    flags: list[str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "breaks.py").write_text("print('hello')\nraise ZeroDivisionError('of its own')\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(0)\n")
    places = f"{ROOT}{os.pathsep}{tmp_path}"
    done = finish([*SERVER, str(GOLDEN), "--port", "0", *LOCAL, *flags], PYTHONPATH=places)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr and "listening" not in done.stderr and "Traceback" not in done.stderr


async def test_f12_f13_kernels_of_ones_own_in_a_server(tmp_path: Path) -> None:
    """A module that lies beside the server's working folder, and ours."""
    (tmp_path / "mine.py").write_text(
        "from kernels.clustered_attention import clustered_attention as exact\n"
        "def twice_as_careful(q, k, v, *, attn_mask, causal, num_sm_clusters, enable_gqa):\n"
        "    return exact(q.double(), k.double(), v.double(), attn_mask=attn_mask, causal=causal,\n"
        "                 enable_gqa=enable_gqa).to(q.dtype)\n"
    )
    flags = ["--use-clustered-attention-kernel", "--clustered-attention-impl", "mine:twice_as_careful"]
    flags += ["--use-persistent-decode-kernel", "--persistent-decode-impl", "kernels.persistent_decode"]
    with serving(SERVER, str(GOLDEN), *LOCAL, *flags, cwd=tmp_path) as server:
        async with aiohttp.ClientSession() as session:
            rows = await features(session, server)
            case = EXPECTED[1]
            assert await complete(session, server, case["prompt"], 20) == case["greedy"][:20]
    assert rows["use_clustered_attention_kernel"][:2] == ("True", "mine:twice_as_careful")
    assert rows["use_persistent_decode_kernel"][1] == "kernels.persistent_decode:persistent_decode_step"
    assert rows["use_flash3"] == ("auto", "off", "needs a CUDA device")


async def test_b9_f3_tokens_of_a_batch_alternate() -> None:
    """Requests that come together share steps: events of each arrive before any of them has ended. Three fill
    the batch, so that nobody waits for the timeout.
    """
    flags = ["--enable-dynamic-batching", "--batch-size", "3", "--batch-timeout-ms", "2000"]
    order: list[int] = []
    with serving(CHAT_WEB, str(GOLDEN), *LOCAL, *flags) as server:
        url = f"http://127.0.0.1:{server.port}/v1/completions"

        async def stream(session: aiohttp.ClientSession, index: int) -> None:
            body = {"prompt": EXPECTED[index]["prompt"], "max_tokens": 12, "ignore_eos": True, "stream": True}
            async with session.post(url, json=body) as response:
                async for line in response.content:
                    if line.startswith(b"data: {"):
                        order.append(index)

        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(stream(session, index) for index in range(3)))
            async with session.get(f"http://127.0.0.1:{server.port}/stats") as response:
                stats = json.loads(await response.text())
    assert stats["max_rows"] == 3 and stats["generated_tokens"] == 3 * 12
    # Twelve steps for three answers, and a few around them: more than one row in each, on average.
    assert 12 <= stats["steps"] < stats["generated_tokens"] / 1.5
    ends = {index: len(order) - 1 - order[::-1].index(index) for index in range(3)}
    begins = {index: order.index(index) for index in range(3)}
    assert max(begins.values()) < min(ends.values()), order
