"""Decode attention that rotates for itself, on the device: captured, launched early, layer upon layer.

Kernels are imported inside the tests, as in test_kernels.py.
"""

import random

import pytest
import torch

BLOCK, DIM, LAYERS, STEPS, REPLAYS = 16, 128, 6, 3, 10


class Layers:
    """Steps of several layers of attention, each of which finds the result of the one in front of it among
    its queries. Of every five entries one is padding.
    """

    def __init__(
        self,
        heads: int,
        kv_heads: int,
        rows: int,
        eight_bits: bool,
        by: str,
        *,
        layers: int = LAYERS,
        longest: int = 700,
        device: str = "cuda",
        made_on: str = "cuda",
    ) -> None:
        """by: triton or cuda, whose kernel rotates. longest: context at first. made_on: the device whose
        kernels fill what is on `device`.
        """
        from kernels.cluster import Shape
        from kernels.kv8 import FORMAT
        from kernels.paged_decode import PagedDecode
        from kernels.rope import rope_table
        from kernels.triton.decode import DecodeWorkspace
        from kernels.triton.rope import RotarySpec

        generator = torch.Generator(made_on).manual_seed(heads + rows)

        def floats(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
            made = torch.randn(shape, generator=generator, device=made_on).bfloat16()
            return made.to(dtype).to(device)

        self.width, kept = heads * DIM, FORMAT if eight_bits else torch.bfloat16
        self.spec = RotarySpec(heads, kv_heads, DIM, "rope_norm", 1e-6, 1.2)
        possible = [context for context in (1, 15, 16, 17, 40, 300, 700) if context <= longest]
        contexts = [random.Random(row).choice(possible) for row in range(rows)]
        room = longest + 100
        blocks = 1 + room // BLOCK
        order = torch.randperm(rows * blocks, generator=generator, device=made_on)
        self.tables = (order.int().view(rows, -1) + 1).to(device)
        self.rows = torch.arange(rows, dtype=torch.int32, device=device)
        self.rows[1::5] = -1
        self.positions = torch.tensor(contexts, dtype=torch.int32, device=device) - 1
        self.slots = torch.zeros(rows, dtype=torch.int32, device=device)
        self.fed = [floats(rows, (heads + 2 * kv_heads) * DIM) for _ in range(layers + 1)]
        self.start = self.fed[0].clone()
        shape = (rows * blocks + 1, kv_heads, BLOCK)
        self.pages = [
            [floats(*shape, DIM, dtype=kept).transpose(1, 2) for _ in range(2)] for _ in range(layers)
        ]
        scales = [[floats(*shape).abs().transpose(1, 2) for _ in range(2)] for _ in range(layers)]
        self.scales = [(keys, values) if eight_bits else None for keys, values in scales]
        self.table = [part.to(device) for part in rope_table(1024, DIM, 1e4, torch.float32)]
        self.kernel: PagedDecode | None = None
        if by == "cuda":
            self.kernel = PagedDecode(Shape(heads, kv_heads, DIM, BLOCK, eight_bits), torch.device(device))
            if self.kernel.variant(rows) is None:
                pytest.skip("such batches are Triton's")
        rule = None if self.kernel is None else self.kernel.plan
        model = (rows, heads, kv_heads, DIM, room, device)
        self.space = DecodeWorkspace.allocate(*model, dtype=kept, config=rule)

    def run(self, inside: bool, pdl: bool) -> None:
        from kernels.triton.decode import Fresh, paged_decode, plan_decode
        from kernels.triton.rope import rotate_and_store

        for _ in range(STEPS):
            at = (self.positions // BLOCK).long()[:, None]
            places = self.tables.gather(1, at)[:, 0] * BLOCK + self.positions % BLOCK
            self.slots.copy_(torch.where(self.rows < 0, -1, places))
            self.fed[0].copy_(self.start)
            plan_decode(self.rows, self.positions, self.space, window=None, pdl=pdl)
            for layer, pages in enumerate(self.pages):
                scales = self.scales[layer]
                fresh = Fresh(self.fed[layer], self.slots, *self.table, self.spec)
                if not inside:
                    rotate_and_store(
                        *(fresh.qkv, self.positions, self.slots, *self.table, *pages, self.spec),
                        scales=scales,
                        pdl=pdl,
                    )
                given = (fresh.query, *pages, self.tables, self.rows, self.positions)
                out = self.fed[layer + 1][:, : self.width]
                how = {"scale": DIM**-0.5, "window": None, "scales": scales, "pdl": pdl}
                how |= {"fresh": fresh if inside else None}
                if self.kernel is None:
                    paged_decode(*given, out, self.space, **how)
                else:
                    self.kernel.decode(*given, out, self.space, ahead=inside and layer > 0, **how)
            self.positions += 1

    @property
    def kept(self) -> list[torch.Tensor]:
        scales = [part for pair in self.scales if pair is not None for part in pair]
        return [part for pages in self.pages for part in pages] + scales

    @property
    def found(self) -> torch.Tensor:
        """On the CPU: under compute-sanitizer no other kernels shall be looked at."""
        return self.fed[-1].cpu()[self.rows.cpu() >= 0, : self.width].float()


SHAPES = [(16, 16, 1), (16, 16, 8), (16, 16, 12), (16, 16, 64), (16, 16, 256), (32, 8, 8), (32, 8, 64)]


@pytest.mark.parametrize("by", ["triton", "cuda"])
@pytest.mark.parametrize("eight_bits", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "rows"), SHAPES)
def test_one_kernel_does_what_two_do(heads: int, kv_heads: int, rows: int, eight_bits: bool, by: str) -> None:
    ours = Layers(heads, kv_heads, rows, eight_bits, by)
    theirs = Layers(heads, kv_heads, rows, eight_bits, "triton")
    ours.run(inside=True, pdl=False)
    theirs.run(inside=False, pdl=False)
    # Norms are summed up in another order, and what a layer finds is the next one's query.
    assert torch.isfinite(ours.found).all()
    off = (ours.found - theirs.found).norm() / theirs.found.norm()
    # Tensor cores take weights in bfloat16; what that changes in queries grows with the next layers' scores,
    # which keys in eight bits, with scales of any size, make large.
    assert off <= (1e-1 if by == "cuda" and eight_bits else 3e-2)
    for index, (mine, right) in enumerate(zip(ours.kept, theirs.kept, strict=True)):
        differ = mine.float() != right.float()
        assert differ.float().mean() <= 1e-3, index
        close = (mine.float() - right.float()).abs() <= 2**-3 * right.float().abs() + 1e-2
        assert close.all(), index


@pytest.mark.parametrize("by", ["triton", "cuda"])
@pytest.mark.parametrize("eight_bits", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "rows"), SHAPES)
def test_graphs_and_early_launch_change_no_bit(
    heads: int, kv_heads: int, rows: int, eight_bits: bool, by: str
) -> None:
    eager, captured, warm = (Layers(heads, kv_heads, rows, eight_bits, by) for _ in range(3))
    warm.run(inside=True, pdl=True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.run(inside=True, pdl=True)
    for _ in range(REPLAYS):
        eager.run(inside=True, pdl=False)
        torch.cuda.synchronize()
        graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(eager.positions, captured.positions)
    assert torch.equal(eager.found, captured.found)
    for mine, right in zip(captured.kept, eager.kept, strict=True):
        assert torch.equal(mine.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8))
    assert not captured.space.counters.any()
