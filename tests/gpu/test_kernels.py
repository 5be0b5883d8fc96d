"""The kernels on a GPU: their own tests without the interpreter, in a captured graph, and with early launch.

Kernels are imported inside the tests: on a machine without a GPU triton must not be imported before the tests
that run in its interpreter have said so.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).parents[1] / "kernels" / "triton"
REPOSITORY = SHARED.parents[2]


def test_shared_tests_without_the_interpreter() -> None:
    """In a process of its own: triton decides at its import whether it interprets."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(SHARED)]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


class SmallStep:
    """The small kernels of a step one behind the other, each reading what the one before wrote."""

    def __init__(self, tokens: int, dtype: torch.dtype) -> None:
        from kernels.rope import rope_table
        from kernels.triton.rope import RotarySpec

        generator = torch.Generator("cuda").manual_seed(tokens)

        def floats(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device="cuda").to(dtype)

        def ints(*shape: int, value: int = 0) -> torch.Tensor:
            return torch.full(shape, value, dtype=torch.int32, device="cuda")

        rows, width = tokens + 3, 1024
        self.spec = RotarySpec(8, 4, 128, "rope_norm", 1e-6, 1.2)
        self.rows = torch.arange(tokens, dtype=torch.int32, device="cuda")
        self.rows[1 : tokens // 2 : 3] = -1
        self.unknown = ints(tokens, value=-1)
        self.last = torch.arange(rows, dtype=torch.int32, device="cuda") % 97
        self.previous, self.length = ints(rows), ints(rows)
        self.tables = (1 + torch.arange(rows * 4, dtype=torch.int32, device="cuda")).view(rows, 4)
        self.step = [ints(tokens) for _ in range(4)]
        self.table, self.weight, self.factor = floats(97, width), floats(1, 24), floats(1).float()
        self.x, self.first, self.normed = (
            torch.zeros(tokens, width, dtype=dtype, device="cuda") for _ in range(3)
        )
        self.scalars = torch.tensor([1.03, 0.2], device="cuda")
        self.gate_weight, self.gates = floats(4, 12), torch.zeros(tokens, 4, dtype=dtype, device="cuda")
        self.qkv = torch.zeros(tokens, 2048, dtype=dtype, device="cuda")
        self.own, self.other = (part.cuda() for part in rope_table(64, 128, 1e4, torch.float32))
        pages = [torch.zeros(4 * rows + 1, 4, 16, 128, dtype=dtype, device="cuda") for _ in range(2)]
        self.pages = [page.transpose(1, 2) for page in pages]
        self.embedding = floats(97, 512)
        self.hidden = torch.zeros(tokens, 2048, dtype=dtype, device="cuda")
        self.out = torch.zeros(tokens, width, dtype=dtype, device="cuda")
        self.ring, self.counter = ints(4, 2, tokens), ints(1)
        self.sampled, self.valid = ints(tokens), torch.ones(tokens, dtype=torch.int32, device="cuda")
        self.index = torch.arange(tokens, dtype=torch.int32, device="cuda")
        self.places = ints(tokens)

    def run(self, pdl: bool) -> None:
        from kernels.triton.activation import relu_squared
        from kernels.triton.nanochat import embed_smear, value_gate
        from kernels.triton.norm import rms_norm
        from kernels.triton.rope import rotate_and_store
        from kernels.triton.step import finish_step, gather_rows, prepare_step

        ids, before, positions, slots = self.step
        unknown, state = self.unknown, (self.last, self.previous, self.length)
        prepare_step(
            self.rows,
            unknown,
            unknown,
            unknown,
            *state,
            self.tables,
            16,
            ids,
            before,
            positions,
            slots,
            pdl=pdl,
        )
        embed_smear(
            ids,
            before,
            positions,
            self.table,
            self.weight,
            self.factor,
            self.x,
            eps=1e-6,
            copy=self.first,
            pdl=pdl,
        )
        mix = (self.first, self.scalars[:1], self.scalars[1:])
        value_gate(self.x, self.gate_weight, self.gates, scale=3.0, eps=1e-6, mix=mix, pdl=pdl)
        rms_norm(self.x, None, 1e-6, self.normed, pdl=pdl)
        torch.cat((self.normed, self.normed), dim=1, out=self.qkv)
        rotate_and_store(
            self.qkv,
            positions,
            slots,
            self.own,
            self.other,
            *self.pages,
            self.spec,
            value_embedding=self.embedding,
            value_ids=ids,
            gate=self.gates,
            pdl=pdl,
        )
        relu_squared(self.qkv, self.hidden, pdl=pdl)
        rms_norm(self.hidden[:, :1024], None, 1e-6, self.normed, residual=self.x, pdl=pdl)
        gather_rows(
            self.x,
            self.index,
            self.out,
            eps=1e-6,
            backout=(self.first, self.factor),
            positions=(positions, self.places),
            pdl=pdl,
        )
        self.sampled.copy_(self.places * 7 % 97)
        finish_step(
            self.rows,
            self.index,
            positions,
            ids,
            self.sampled,
            *state,
            self.ring[:, 0],
            self.valid,
            self.ring[:, 1],
            self.counter,
            pdl=pdl,
        )

    def state(self) -> list[torch.Tensor]:
        return [self.out, self.x, self.qkv, *self.pages, self.last, self.previous, self.length, self.ring]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("tokens", [1, 7, 64, 2048])
def test_graphs_and_early_launch_change_no_bit(tokens: int, dtype: torch.dtype) -> None:
    eager, captured = SmallStep(tokens, dtype), SmallStep(tokens, dtype)
    warm = SmallStep(tokens, dtype)
    warm.run(pdl=True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.run(pdl=True)
    for _ in range(30):
        eager.run(pdl=False)
        torch.cuda.synchronize()
        graph.replay()
    torch.cuda.synchronize()
    assert eager.counter.item() == captured.counter.item() == 30
    for ours, theirs in zip(captured.state(), eager.state(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.isfinite(eager.out).all() and eager.length[0] == 30


@pytest.mark.parametrize("width", [2048, 8192])
def test_a_row_is_the_same_at_every_number_of_rows(width: int) -> None:
    from kernels.triton.norm import rms_norm

    x = torch.randn(8192, width, device="cuda").bfloat16()
    whole = torch.empty_like(x)
    rms_norm(x, None, 1e-6, whole)
    for tokens in (1, 3, 64, 1000):
        part = torch.empty_like(x[:tokens])
        rms_norm(x[-tokens:].clone(), None, 1e-6, part)
        assert torch.equal(part, whole[-tokens:])
    exact = x[:64].double() / (x[:64].double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert (whole[:64].double() - exact).norm() <= 4e-3 * exact.norm()


def test_split_prefill_gives_the_same_bits_again_and_again() -> None:
    """Hundreds of launches of different shapes over one workspace, back to back and overlapping, in a graph:
    programs that share a tile merge in a fixed order, so every launch of a shape gives the first one's bits.
    """
    from kernels.triton.prefill import PrefillWorkspace, paged_prefill
    from kernels.triton.prefill_config import PrefillConfig

    heads, size, blocks = 4, 16, 400
    generator = torch.Generator("cuda").manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda").to(torch.bfloat16)

    def ints(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device="cuda")

    pages = random(blocks, size, heads, 128), random(blocks, size, heads, 128)
    table = torch.randperm(blocks, generator=generator, device="cuda")[None, :].int().repeat(3, 1)
    space = PrefillWorkspace.allocate(128, "cuda")
    cases = []
    for lengths, contexts, rows, splits in (
        ((40,), (5000,), 64, 8),
        ((7, 100), (600, 3000), 64, 4),
        ((16, 16, 5), (900, 6000, 5), 16, 8),
        ((130,), (130,), 64, 2),
    ):
        borders = [0]
        for length in lengths:
            borders.append(borders[-1] + length)
        config = PrefillConfig(block_m=rows, block_n=64, num_warps=4, num_stages=2, splits=splits)
        arguments = (
            random(borders[-1], heads, 128),
            *pages,
            table,
            ints(*range(len(lengths))),
            ints(*borders),
        )
        cases.append((arguments, ints(*contexts), config))

    def launch(case: int, pdl: bool) -> torch.Tensor:
        arguments, contexts, config = cases[case]
        out = torch.zeros(arguments[0].size(0), heads * 128, dtype=torch.bfloat16, device="cuda")
        paged_prefill(
            *arguments, contexts, out, scale=128**-0.5, window=None, workspace=space, config=config, pdl=pdl
        )
        return out

    first = [launch(case, pdl=False) for case in range(len(cases))]
    order = [(index * 7) % len(cases) for index in range(200)]
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        for case in range(len(cases)):
            launch(case, pdl=True)
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            outs = [launch(case, pdl=True) for case in order]
        for _ in range(3):
            graph.replay()
        stream.synchronize()
    for case, out in zip(order, outs, strict=True):
        assert torch.equal(out, first[case])
    assert not space.counters.any()
