"""transformers' NanoChat as a second oracle: a folder of its format, served by us, gives its tokens."""

import asyncio
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.e2e.api import Answer, Api, connected, random_prompt
from tests.e2e.conftest import start
from tests.engine.checkpoints import write_checkpoint
from tests.optional import missing
from tests.tiers import tiered

PROMPTS = [random_prompt(1 + (k * 37) % 190, seed=k) for k in range(64)]
NEW = 12
CLEAR = 1e-3  # where their two best logits are closer than this, either is right
HEADS = {"MHA": (4, 4), "GQA": (4, 2)}

Greedy = tuple[list[int], list[float]]  # tokens, and by how much each was the best


def theirs(folder: Path) -> list[Greedy]:
    """What transformers says, in a process that cannot see this project."""
    if find_spec("transformers") is None:
        missing("the oracle, transformers, is not installed")
    root = folder.parent
    (root / "prompts.json").write_text(json.dumps(PROMPTS))
    script = Path(__file__).with_name("transformers_greedy.py")
    arguments = [root / "prompts.json", NEW, folder]
    done = subprocess.run(
        [sys.executable, "-P", str(script), *map(str, arguments)],
        cwd=root,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (answers,) = json.loads(done.stdout)
    return answers


@pytest.mark.parametrize("name", tiered(HEADS, {1}))
async def test_greedy_tokens(name: str, tmp_path: Path) -> None:
    heads, kv = HEADS[name]
    sizes = {"n_layer": 3, "n_head": heads, "n_kv_head": kv}
    folder = write_checkpoint(tmp_path / name, "G1", layout="transformers", seed=3, **sizes)
    wanted = theirs(folder)
    with start(folder, "--prefill-chunk", "32") as server:
        async with connected(server) as api:
            ours = await asyncio.gather(*(ask(api, prompt) for prompt in PROMPTS))
    compared = 0
    for prompt, answer, (tokens, margins) in zip(PROMPTS, ours, wanted, strict=True):
        # After a near tie the two may go on differently.
        clear = next((k for k, margin in enumerate(margins) if margin <= CLEAR), NEW)
        assert answer.tokens[:clear] == tokens[:clear], f"prompt of {len(prompt)} tokens"
        compared += clear
    print(f"{compared} of {len(PROMPTS) * NEW} tokens compared")
    assert compared > 0.9 * len(PROMPTS) * NEW


async def ask(api: Api, prompt: list[int]) -> Answer:
    return await api.complete(prompt, stream=False, max_tokens=NEW, temperature=0, ignore_eos=True)
