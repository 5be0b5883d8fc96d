"""Grammars on a GPU's path: masks go up in front of their steps, and whole steps keep to them.

The engine's core over a network of device kernels, without streams and graphs; one step runs ahead.
"""

import re
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

import pytest
import torch

from engine.blocks import BlockPool
from engine.core import EngineCore
from engine.decoder import Decoder
from engine.gpu.cache import PagedKV
from engine.gpu.graphs import Buckets
from engine.gpu.inputs import device_inputs
from engine.gpu.linears import build_linears
from engine.gpu.network import Network
from engine.gpu.rows import DeviceRows
from engine.gpu.staging import StepStaging
from engine.gpu.weights import network_weights
from engine.messages import Request, SamplingParams
from engine.plan import Plan
from engine.prefix import PrefixCache
from engine.scheduler import Scheduler, SchedulerConfig
from engine.steps import SampledToken, StepHandle, StepResult
from engine.text import load_tokenizer
from kernels.backends.base import AttentionBackend, AttentionSpec, short_keys
from kernels.backends.reference import TorchBackend
from kernels.kv8 import FORMAT
from tests.engine.checkpoints import make_model
from tests.engine.golden import G1

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="tests/gpu/test_grammar.py has the real one"
)
CPU, ROWS, BLOCK = torch.device("cpu"), 4, 16
TOKENIZER = load_tokenizer(G1 / "tokenizer")
END = TOKENIZER.encode_special("<|assistant_end|>")


class Steps:
    """A runner that has done a step when `launch` returns; what it read of the host must have been there."""

    early_masks, graph_recaptures, path_failures = True, 0, 0

    def __init__(
        self,
        model: Decoder | None = None,
        backend: Callable[[AttentionSpec], AttentionBackend] = TorchBackend,
        kept: torch.dtype = torch.bfloat16,
    ) -> None:
        """kept: of keys and values."""
        if model is None:
            model = make_model("G1", 1, n_embd=64, n_head=2, n_kv_head=2, n_layer=1).to(torch.bfloat16)
        weights, config = network_weights(model), model.config
        rotary = weights.layers[0].rotary
        self.vocab_size = weights.vocab_size
        spec = AttentionSpec(
            *(rotary.heads, rotary.kv_heads, rotary.head_dim, BLOCK, torch.bfloat16, ROWS, 128, CPU),
            fp8_kv=kept == FORMAT,
        )
        rows = DeviceRows(ROWS, 9, weights.vocab_size, CPU)
        linears = build_linears(weights, "auto", 64, False)
        self.network = Network(weights, linears, rows, backend(spec), 64, ROWS)
        self.cache = PagedKV(config.n_layer, 40, BLOCK, config.n_kv_head, config.head_dim, kept, CPU)
        self.network.cache = self.cache
        buckets = Buckets.up_to(ROWS, 64, partial(short_keys, self.network.attention))
        self.staging = StepStaging(buckets, CPU)
        self.full: list[bool] = []

    @torch.inference_mode()
    def launch(self, plan: Plan) -> StepHandle:
        rows = self.network.rows
        rows.stage(plan, (END,))
        staged = self.staging.stage(plan)
        self.full.append(rows.needs_full(plan))
        buffer = self.staging.decode if staged.decode else self.staging.mixed
        self.network.step(staged.shape, device_inputs(buffer, staged.shape), self.full[-1])
        sampled, future = self.network.sampled, Future[StepResult]()
        tokens = sampled.tokens[: len(staged.entries)].tolist()
        future.set_result(StepResult([SampledToken(token) for token in tokens], 0.01, 0.01))
        return StepHandle(plan, future)

    async def collect(self, handle: StepHandle) -> StepResult:
        raise AssertionError("nobody waits")

    async def grow(self, blocks: int) -> None:
        raise AssertionError("nothing grows")

    def close(self) -> None:
        pass


def run(
    requests: list[Request], steps: Steps | None = None
) -> tuple[dict[int, list[int]], dict[int, str], Steps]:
    """Tokens and ends by stream, and the runner."""
    steps = steps or Steps()
    pool = BlockPool(40, BLOCK)
    config = SchedulerConfig(max_rows=ROWS, max_batched_tokens=64, max_model_len=128)
    core = EngineCore(Scheduler(config, pool, PrefixCache(pool)), steps, TOKENIZER, (END,))
    tokens: dict[int, list[int]] = {request.id: [] for request in requests}
    ends: dict[int, str] = {}
    for request in requests:
        core.add(request)
    in_flight: StepHandle | None = None
    while core.scheduler.unfinished():
        launched = core.launch()
        if in_flight is not None:
            core.process(in_flight.plan, in_flight.future.result())
        elif launched is None:
            for sequence in core.scheduler.unfinished():
                if sequence.grammar is not None:
                    sequence.grammar.mask.result(timeout=30)
        in_flight = launched
        frame = core.take_frame()
        if frame is not None:
            for stream, token in zip(frame.streams, frame.tokens, strict=True):
                tokens[stream].append(token)
            ends |= {finish.stream: finish.reason for finish in frame.finished}
    core.forms.close()
    return tokens, ends, steps


def asked(id: int, grammar: str | None, **params: object) -> Request:
    prompt = [(7 * k + id) % 500 for k in range(1 + id % 2)]
    given = {"max_tokens": 40, "seed": id, "grammar": grammar} | params
    return Request(id=id, prompt=prompt, params=SamplingParams(**given))  # type: ignore[arg-type]


def test_steps_keep_to_the_masks_of_their_own_rows() -> None:
    """Six rows' worth of requests for four rows, so that a row gets another grammar, and then none."""
    patterns = {1: "[a-f]{2}", 2: "yes|no", 3: "[0-9]{2}", 5: "x?y"}
    free = [
        asked(4, None, max_tokens=4, ignore_eos=True, temperature=0),
        asked(6, None, max_tokens=6, ignore_eos=True, temperature=0),
    ]
    formed = [
        asked(id, f"start: /{pattern}/", temperature=0.0 if id == 3 else 1.0, top_k=3 * (id == 2))
        for id, pattern in patterns.items()
    ]
    tokens, ends, steps = run(sorted([*free, *formed], key=lambda request: request.id))
    for id, pattern in patterns.items():
        text = TOKENIZER.decode(tokens[id][:-1])
        assert ends[id] == "stop" and tokens[id][-1] == END, (id, text)
        assert re.fullmatch(pattern, text), (id, text)
    assert any(steps.full) and not all(steps.full)  # steps without a grammar are served as ever
    alone, _, plain = run(free)
    assert {id: tokens[id] for id in alone} == alone and not any(plain.full)
