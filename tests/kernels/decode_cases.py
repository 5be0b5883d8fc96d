"""Small networks for kernels/cuda/decode_step.cu, and what their steps must give."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from benchmarks.steps import SIZES
from kernels.decode_arguments import StepArguments, StepMemory, StepNetwork, arguments
from kernels.kv8 import FORMAT, Scales, dequantize_kv, quantize_kv
from kernels.quantize import Weight, Weight8, WeightKind, in_pairs, quantize
from kernels.rope import rope_table, rotation_table
from kernels.step_spec import StepLayer, StepSpec

SMALL = StepSpec(
    width=128,
    inner=256,
    padded_inner=256,
    heads=2,
    kv_heads=2,
    head_dim=64,
    head_rows=160,
    layers=2,
    eps=1e-6,
    activation="relu2",
    order="rope_norm",
    qk_scale=1.0,
    kind="bf16",
    block_size=16,
)
# Eight warps share its channels, where those of the others are four.
WIDE = replace(SMALL, width=256, heads=4, inner=1024, padded_inner=1024)
LLAMA = replace(
    SMALL, heads=4, kv_heads=2, width=128, inner=208, padded_inner=256, activation="swiglu", order="rope"
)

# As Qwen3, whose query-key norms have weights, and as Qwen2, with a bias behind q, k and v.
QWEN3 = replace(LLAMA, order="norm_rope", heads=4, kv_heads=2)
QWEN2 = replace(LLAMA, biased=True)

# Each warp brings the channels that it multiplies, one of four or of eight; of the last rows have two pieces.
BROAD = replace(SMALL, width=1024, layers=1)
WIDER = replace(SMALL, width=1024, heads=8, inner=2032, padded_inner=2048, layers=1)
BROADER = replace(LLAMA, width=4096, layers=1)

# For teams of eight, and wide enough for weights of eight bits.
EIGHT = replace(SMALL, width=512, heads=4, head_dim=128, inner=4080, padded_inner=4096, layers=1)

SMALL_KV8 = replace(SMALL, fp8_kv=True)
LLAMA_KV8 = replace(LLAMA, fp8_kv=True)
# Heads of the other size, six of them for a kv head, and pages that are no power of two.
LARGE_KV8 = replace(
    QWEN2, fp8_kv=True, head_dim=128, heads=6, kv_heads=1, block_size=48, width=256, order="norm_rope"
)

SPECS = {
    "nanochat": SMALL,
    "wide": WIDE,
    "llama": LLAMA,
    "qwen3": QWEN3,
    "qwen2": QWEN2,
    "nanochat-kv8": SMALL_KV8,
    "llama-kv8": LLAMA_KV8,
    "large-kv8": LARGE_KV8,
}
KINDS: tuple[WeightKind, ...] = ("bf16", "int8", "fp8")

# The model of the benchmarks, and a Llama of its size that has two query heads for a kv head.
D32, LLAMA_D32 = SIZES["d32"], replace(SIZES["llama-d32"], kv_heads=8)


def network(spec: StepSpec, seed: int = 0, device: str = "cpu") -> StepNetwork:
    """Random weights of the usual size."""
    random = torch.Generator().manual_seed(seed)

    def weight(outputs: int, inputs: int, used: int | None = None) -> Weight:
        made = torch.randn(outputs, inputs, generator=random) * (used or inputs) ** -0.5
        made[:, used or inputs :] = 0
        made = made.bfloat16().to(device)
        return made if spec.kind == "bf16" else quantize(made, spec.kind)

    dim = spec.head_dim
    qkv, wide = (spec.heads + 2 * spec.kv_heads) * dim, spec.inner * (1 + (spec.activation == "swiglu"))

    def vector(size: int, middle: float) -> torch.Tensor:
        return (middle + torch.randn(size, generator=random) / 8).bfloat16().to(device)

    normed = spec.order == "norm_rope"
    layers = [
        StepLayer(
            weight(qkv, spec.width),
            weight(spec.width, spec.heads * dim),
            weight(wide, spec.width),
            weight(spec.width, spec.padded_inner, spec.inner),
            vector(qkv, 0) if spec.biased else None,
            vector(dim, 1) if normed else None,
            vector(dim, 1) if normed else None,
        )
        for _ in range(spec.layers)
    ]
    norm = None
    if spec.activation == "swiglu":
        frequencies = 10000.0 ** (-torch.arange(0, dim, 2) / dim)
        own, other = rotation_table(4096, frequencies)
        norm = vector(spec.width, 1)
    else:
        own, other = rope_table(4096, dim, 10000.0, torch.float32)
    return StepNetwork(
        spec, layers, weight(spec.head_rows, spec.width), norm, own.to(device), other.to(device)
    )


@dataclass(slots=True)
class Case:
    """A step's inputs and what it writes to. pages: of each layer keys and values, [2, blocks, kv_heads,
    block_size, head_dim] in memory. scales: of keys and values of eight bits, [2, blocks, kv_heads,
    block_size] of each layer; else empty.
    """

    x: torch.Tensor
    rows: torch.Tensor
    positions: torch.Tensor
    tables: torch.Tensor
    pages: list[torch.Tensor]
    logits: torch.Tensor
    entry_tokens: torch.Tensor
    entry_positions: torch.Tensor
    scales: list[torch.Tensor]

    @property
    def scale_views(self) -> list[Scales | None]:
        return [(memory[0].transpose(1, 2), memory[1].transpose(1, 2)) for memory in self.scales]

    def kept(self, index: int) -> torch.Tensor:
        """float64 [2, blocks, kv_heads, block_size, head_dim], on the CPU: what a layer's pages stand for."""
        pages = self.pages[index].cpu()
        if not self.scales:
            return pages.double()
        return dequantize_kv(pages, self.scales[index].cpu()).double()

    @property
    def views(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(memory[0].transpose(1, 2), memory[1].transpose(1, 2)) for memory in self.pages]

    def only(self, entries: list[int]) -> "Case":
        """The same step of some of its entries."""
        pick = torch.tensor(entries, device=self.x.device)
        return Case(
            self.x[pick],
            self.rows[pick],
            self.positions[pick],
            self.tables,
            [memory.clone() for memory in self.pages],
            torch.full_like(self.logits[pick], float("nan")),
            torch.arange(len(entries), dtype=torch.int32, device=self.x.device),
            torch.full_like(self.entry_positions[pick], -7),
            [memory.clone() for memory in self.scales],
        )


def case(spec: StepSpec, positions: list[int], seed: int = 1, device: str = "cpu") -> Case:
    """positions: of each entry's token; -1 makes the entry padding. Slots behind a row's keys are NaN."""
    random = torch.Generator().manual_seed(seed)
    count = len(positions)
    needed = [max(position, 0) // spec.block_size + 1 for position in positions]
    width = max(needed) + 1
    free = iter((torch.randperm(sum(needed), generator=random) + 1).tolist())
    tables = torch.zeros(count + 2, width, dtype=torch.int32)
    rows = torch.randperm(count + 2, generator=random)[:count].int()
    shape = (2, sum(needed) + 1, spec.kv_heads, spec.block_size, spec.head_dim)
    pages = [torch.full(shape, float("nan"), dtype=torch.bfloat16) for _ in range(spec.layers)]
    scales: list[torch.Tensor] = []
    for entry, position in enumerate(positions):
        for index in range(needed[entry]):
            block = next(free)
            tables[rows[entry], index] = block
            known = min(max(position - index * spec.block_size, 0), spec.block_size)
            for memory in pages:
                filling = torch.randn(2, spec.kv_heads, known, spec.head_dim, generator=random)
                memory[:, block, :, :known] = filling.bfloat16()
        if position < 0:
            rows[entry] = -1
    if spec.fp8_kv:
        # What nobody has written has a scale that is no number, and bytes that are no numbers.
        scales = [quantize_kv(memory)[1] for memory in pages]
        pages = [_quantized(memory) for memory in pages]
    x = torch.randn(count, spec.width, generator=random).bfloat16()
    made = Case(
        x,
        rows,
        torch.tensor(positions, dtype=torch.int32).clamp(min=0),
        tables,
        pages,
        torch.full((count, spec.head_rows), float("nan"), dtype=torch.bfloat16),
        torch.where(rows >= 0, torch.arange(count, dtype=torch.int32), -1),
        torch.full((count,), -7, dtype=torch.int32),
        [memory.to(device) for memory in scales],
    )
    names = ("x", "rows", "positions", "tables", "logits", "entry_tokens", "entry_positions")
    for name in names:
        setattr(made, name, getattr(made, name).to(device))
    made.pages = [memory.to(device) for memory in made.pages]
    return made


def _quantized(memory: torch.Tensor) -> torch.Tensor:
    values = quantize_kv(memory)[0].view(torch.int8)
    return torch.where(memory.isnan(), 0x7F, values).view(FORMAT)


def _full(weight: Weight) -> torch.Tensor:
    if not isinstance(weight, Weight8):
        return weight.double()
    return in_pairs(weight.values).double() * weight.scales.double()[:, None]


def _norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def attended_of(
    net: StepNetwork, given: Case, index: int, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """float64: what the attention of layer `index` makes of the live entries' x [entries, width], and their
    new keys and values [2, entries, kv_heads, head_dim]. Everything on the CPU."""
    spec, live = net.spec, live_entries(given)
    group, dim = spec.heads // spec.kv_heads, spec.head_dim
    layer = net.layers[index]
    product = _norm(x, spec.eps) @ _full(layer.qkv).cpu().T
    if layer.qkv_bias is not None:
        product = product + layer.qkv_bias.double().cpu()
    q, k, v = product.view(len(live), -1, dim).split([spec.heads, spec.kv_heads, spec.kv_heads], dim=1)
    at = given.positions[live].long().cpu()
    own, other = net.own.cpu().double()[at][:, None], net.other.cpu().double()[at][:, None]

    def turned(part: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        if weight is not None:
            part = _norm(part, spec.eps) * weight.double().cpu()
        left, right = part.chunk(2, dim=-1)
        rotated = part * own + torch.cat((right, left), -1) * other
        return (_norm(rotated, spec.eps) if spec.order == "rope_norm" else rotated) * spec.qk_scale

    q, k = turned(q, layer.q_norm), turned(k, layer.k_norm)
    new = torch.stack((k, v))
    if spec.fp8_kv:  # what the pages will have is seen by the token itself, too
        new = dequantize_kv(*quantize_kv(new.bfloat16())).double()
    attended = torch.zeros(len(live), spec.heads, dim, dtype=torch.float64)
    for place, entry in enumerate(live):
        position = int(given.positions[entry])
        blocks = given.tables[int(given.rows[entry])].long().cpu()
        pages = given.kept(index)[:, blocks]
        old = pages.transpose(2, 3).reshape(2, -1, spec.kv_heads, dim)[:, :position]
        keys, values = torch.cat((old, new[:, place][:, None]), dim=1)
        keys, values = (t.repeat_interleave(group, dim=1) for t in (keys, values))
        weights = (torch.einsum("hd,thd->ht", q[place], keys) * dim**-0.5).softmax(-1)
        attended[place] = torch.einsum("ht,thd->hd", weights, values)
    return attended.flatten(1), new


def inner_of(net: StepNetwork, index: int, middle: torch.Tensor) -> torch.Tensor:
    """float64 [entries, inner] of `middle` [entries, width]: norm, first product of the MLP, activation."""
    inner = _norm(middle, net.spec.eps) @ _full(net.layers[index].mlp_in).cpu().T
    if net.spec.activation != "swiglu":
        return inner.relu().square()
    gate, up = inner.view(len(middle), -1, 2, 8).unbind(2)
    return (torch.nn.functional.silu(gate) * up).flatten(1)


def logits_of(net: StepNetwork, x: torch.Tensor) -> torch.Tensor:
    """float64 [entries, head_rows] of x [entries, width]."""
    x = _norm(x, net.spec.eps)
    if net.final_norm is not None:
        x = x * net.final_norm.double().cpu()
    return x @ _full(net.head).cpu().T


def output_of(net: StepNetwork, index: int, attended: torch.Tensor) -> torch.Tensor:
    """float64 [entries, width]: what attention adds to the residual stream."""
    return attended @ _full(net.layers[index].o).cpu().T


def down_of(net: StepNetwork, index: int, inner: torch.Tensor) -> torch.Tensor:
    """float64 [entries, width]: what the MLP adds."""
    return inner @ _full(net.layers[index].mlp_out).cpu().T[: net.spec.inner]


def live_entries(given: Case) -> list[int]:
    return [int(entry) for entry in (given.rows >= 0).nonzero()[:, 0]]


def expected(net: StepNetwork, given: Case) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """float64: logits of the live entries, and the new keys and values of each layer [2, entries, kv_heads,
    head_dim]. Everything on the CPU."""
    x = given.x[live_entries(given)].double().cpu()
    found: list[torch.Tensor] = []
    for index in range(net.spec.layers):
        attended, new = attended_of(net, given, index, x)
        found.append(new)
        x = x + output_of(net, index, attended)
        x = x + down_of(net, index, inner_of(net, index, x))
    return logits_of(net, x), found


def stored_of(spec: StepSpec, given: Case, index: int) -> torch.Tensor:
    """float64 [2, entries, kv_heads, head_dim]: what the pages have for the live entries' tokens."""
    found = []
    for entry in live_entries(given):
        position, row = int(given.positions[entry]), int(given.rows[entry])
        block = int(given.tables[row, position // spec.block_size])
        found.append(given.kept(index)[:, block, :, position % spec.block_size])
    return torch.stack(found, dim=1)


def check_phases(
    net: StepNetwork, given: Case, memory: StepMemory, launch: Callable[[int, int], None]
) -> None:
    """Each kernel of a chained step against float64 of what it was given, so that only its own roundings are
    between them. launch: runs the kernel of a layer and phase to its end.
    """
    spec, live = net.spec, live_entries(given)

    def words(name: str, channels: int) -> torch.Tensor:
        """What the blocks have given to each other: of eight bytes the first two numbers."""
        part = memory.exchange[name][: given.x.size(0) * channels // 2].view(torch.bfloat16)
        return part.view(-1, channels // 2, 4)[live, :, :2].flatten(1).double().cpu()

    def near(found: torch.Tensor, wanted: torch.Tensor, most: float) -> None:
        off = (found - wanted).norm(dim=-1) / wanted.norm(dim=-1)
        assert off.max() < most, off

    x = given.x[live].double().cpu()
    # Rotated, normalised and scaled, rounded each time; to eight bits a rounding before may decide which way.
    most = 6e-2 if spec.fp8_kv else 6e-3
    for index in range(spec.layers):
        launch(index, 0)
        wanted, new = attended_of(net, given, index, x)
        attended = words("attended", spec.heads * spec.head_dim)
        near(stored_of(spec, given, index), new, most)
        near(attended, wanted, most + 2e-3)
        launch(index, 1)
        middle = words("middle", spec.width)
        near(middle, x + output_of(net, index, attended), 2.5e-3)
        launch(index, 2)
        inner = words("inner", spec.inner)
        near(inner, inner_of(net, index, middle), 2.5e-3)
        launch(index, 3)
        x = words("stream", spec.width)
        near(x, middle + down_of(net, index, inner), 2.5e-3)
    launch(spec.layers, 4)
    near(given.logits[live].double().cpu(), logits_of(net, x), 4e-3)


def poison(memory: StepMemory) -> None:
    """Words of the exchange are NaNs with a tag that no step has: each must be written before it is read."""
    for words in memory.exchange.values():
        words.fill_(-1)


def memory_of(net: StepNetwork, given: Case, team: int, rows: int) -> StepMemory:
    made = StepMemory.allocate(net, team, rows, given.x.device)
    poison(made)
    made.bind(given.views, given.scale_views)
    return made


def arguments_of(net: StepNetwork, memory: StepMemory, given: Case) -> StepArguments:
    """What a launch over a case gets; the case must stay alive."""
    return arguments(
        net,
        memory,
        given.views[0][0],
        given.scale_views[0][0] if given.scales else None,
        x=given.x,
        rows=given.rows,
        positions=given.positions,
        tables=given.tables,
        logits=given.logits,
        entry_tokens=given.entry_tokens,
        entry_positions=given.entry_positions,
        pace=1,
    )
