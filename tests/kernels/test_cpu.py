"""The compiled kernels of a CPU against float64; and a row does not depend on its company."""

import ctypes
import math
import mmap
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from engine.messages import SamplingParams
from engine.sampler import SamplingRow, sampling_batch
from engine.state import RowState
from kernels.quantize import dequantize, quantize
from kernels.rope import rope_table, rotate_and_norm
from kernels.sampling import sample
from kernels.spec import CompiledKind
from tests.optional import missing
from tests.tiers import tiered

try:
    import numba
except ImportError:
    missing("there is no numba")

from kernels.cpu import isa as isas
from kernels.cpu.isa import ISAS, OUTPUTS, Isa, NoVectors, choose
from kernels.cpu.packing import huge, pack_bf16, pack_int8

try:
    HOST = isas.host()
except NoVectors as error:
    missing(str(error))

from engine.compiled import Draws
from engine.compiled_runner import draws_of
from kernels.cpu import draw as drawing
from kernels.cpu import layers
from kernels.cpu.tiles import ADD, SQUARE, STORE, tile


def _here() -> list[Isa]:
    """Those whose instructions this processor has."""
    if HOST.name == "128 bits":
        return [HOST]
    import llvmlite.binding as llvm

    has = {name for name, there in llvm.get_host_cpu_features().items() if there}
    needs = {"AVX-512 VNNI": {"avx512vnni"}, "AVX-512": {"avx512bw"}, "AVX-VNNI": {"avxvnni"}}
    return [isa for name, isa in ISAS.items() if needs.get(name, set()) <= has]


def _called(function, arguments: int):  # type: ignore[no-untyped-def]
    """A kernel that takes so many int64, callable from here."""
    names = ", ".join(f"a{i}" for i in range(arguments))
    scope = {"function": function}
    exec(f"def call({names}):\n    function({names})", scope)
    return numba.njit((numba.types.int64,) * arguments, error_model="numpy")(scope["call"])


def _tile(kind: CompiledKind, rows: int, isa: Isa):  # type: ignore[no-untyped-def]
    """tile(packed, x, stats, mode, a, b, x0, out) of tensors; x0: None or as out."""
    function = tile(kind, rows, isa)
    i, f = numba.types.int64, numba.types.float32

    @numba.njit((i,) * 7 + (f,) * 2 + (i,) * 3, error_model="numpy")
    def call(w, s, x, stride, steps, stats, mode, a, b, x0, out, out_stride):  # type: ignore[no-untyped-def]
        function(w, s, x, stride, steps, stats, mode, a, b, x0, out, out_stride)

    def run(packed, x, stats, mode, a, b, x0, out) -> None:  # type: ignore[no-untyped-def]
        stride, group = x.stride(0) * x.element_size(), 4 if kind == "int8" else 2
        weights, steps = (packed.weights.data_ptr(), packed.scales.data_ptr()), packed.inputs // group
        old = 0 if x0 is None else x0.data_ptr()
        place = out.data_ptr(), 4 * out.stride(0)
        call(*weights, x.data_ptr(), stride, steps, stats.data_ptr(), mode, a, b, old, *place)

    return run


@pytest.mark.parametrize("isa", _here(), ids=lambda isa: isa.name)
@pytest.mark.parametrize("kind", ["int8", "bf16"])
def test_tiles(isa: Isa, kind: CompiledKind) -> None:
    """Right; and the same numbers for a row in every tile and with every set of instructions."""
    generator = torch.Generator().manual_seed(0)
    reference = _tile(kind, 1, HOST)
    calls = {rows: _tile(kind, rows, isa) for rows in (1, 2, 4, 8) if rows <= isa.rows}
    for inputs in (4, 32, 516):
        weight = torch.randn(OUTPUTS, inputs, generator=generator)
        stats = torch.zeros(8, 4)
        if kind == "int8":
            packed = pack_int8(weight)
            x = torch.randint(-127, 128, (8, inputs), generator=generator).to(torch.int8)
            x[0], x[1] = 127, -127  # the largest sums
            stats[:, 0] = torch.rand(8, generator=generator)
            stats.view(torch.int32)[:, 1] = 128 * x.sum(1)
            product = x.double() @ dequantize(quantize(weight, "int8")).double().T * stats[:, :1].double()
        else:
            packed = pack_bf16(weight)
            x = torch.randn(8, inputs, generator=generator)
            product = x.double() @ weight.bfloat16().double().T
        before, x0 = (torch.randn(8, 40, generator=generator) for _ in range(2))
        for mode, old, wanted in (
            (STORE, None, product),
            (SQUARE, None, product.clamp(min=0).square()),
            (ADD, None, product + 0.5 * before[:, :OUTPUTS].double()),
            (ADD, x0, product + 0.5 * before[:, :OUTPUTS].double() - 0.25 * x0[:, :OUTPUTS].double()),
        ):
            alone = before.clone()
            for row in range(8):
                first = None if old is None else old[row]
                reference(packed, x[row:], stats[row], mode, 0.5, -0.25, first, alone[row:])
            torch.testing.assert_close(alone[:, :OUTPUTS].double(), wanted, rtol=1e-5, atol=1e-4)
            assert torch.equal(alone[:, OUTPUTS:], before[:, OUTPUTS:])
            for rows, call in calls.items():
                out = before.clone()
                for row in range(0, 8, rows):
                    first = None if old is None else old[row]
                    call(packed, x[row:], stats[row], mode, 0.5, -0.25, first, out[row:])
                assert torch.equal(out, alone), (inputs, mode, rows)


def test_sums_of_eight_bits_are_exact() -> None:
    """Also those that float32 could not count up to: 2,048 inputs at both ends of what there is."""
    weight = torch.full((OUTPUTS, 2048), 127.0)
    weight[1] = -127.0
    weight[2, 1::2] = -127.0
    packed = pack_int8(weight)
    x = torch.full((1, 2048), 127, dtype=torch.int8)
    x[0, 0] = 126
    stats = torch.ones(1, 4)
    stats.view(torch.int32)[0, 1] = 128 * int(x.sum())
    for isa in _here():
        out = torch.empty(1, OUTPUTS)
        _tile("int8", 1, isa)(packed, x, stats, STORE, 0.0, 0.0, None, out)
        exact = (x.long() @ weight.long().T).float()
        assert torch.equal(out, exact), isa.name


def test_a_tile_passes_on_what_is_no_number() -> None:
    packed, stats = pack_bf16(torch.ones(OUTPUTS, 4)), torch.zeros(1, 4)
    for mode in (STORE, SQUARE, ADD):
        out = torch.zeros(1, OUTPUTS)
        x = torch.tensor([[1.0, math.nan, 1.0, 1.0]])
        _tile("bf16", 1, HOST)(packed, x, stats, mode, 1.0, 0.0, None, out)
        assert out.isnan().all(), mode


@pytest.mark.parametrize("outputs, inputs", [(32, 64), (40, 32), (1, 4), (96, 516)])
def test_packing_keeps_every_weight(outputs: int, inputs: int) -> None:
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(outputs))
    packed = pack_int8(weight)
    whole = (packed.weights.float() - 128).permute(0, 2, 1, 3).reshape(-1, inputs)
    values = whole * packed.scales.unsqueeze(1)
    assert torch.equal(values[:outputs], dequantize(quantize(weight, "int8")))
    assert values[outputs:].abs().sum() == 0 and packed.weights.data_ptr() % 64 == 0
    short = pack_bf16(weight)
    assert torch.equal(short.weights.permute(0, 2, 1, 3).reshape(-1, inputs)[:outputs], weight.bfloat16())


def test_exponentials() -> None:
    call = _elementwise(layers.exp)
    x = torch.cat([-torch.logspace(-6, math.log10(87), 20_000), torch.zeros(1)])
    wanted = x.double().exp()
    assert ((call(x).double() - wanted).abs() / wanted).max() < 1e-5
    assert call(torch.tensor([-200.0, -math.inf])).abs().max() < 1e-37
    gate = _elementwise(layers.sigmoid)
    y = torch.linspace(-30, 30, 10_001)
    assert (gate(y).double() - y.double().sigmoid()).abs().max() < 2e-7


def _elementwise(function):  # type: ignore[no-untyped-def]
    from kernels.cpu.machine import load_f32, store_f32

    @numba.njit("void(int64, int64, int64)", error_model="numpy")
    def run(x, count, out):  # type: ignore[no-untyped-def]
        for i in range(count):
            store_f32(out, i, function(load_f32(x, i)))

    def call(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        run(x.data_ptr(), x.numel(), out.data_ptr())
        return out

    return call


@pytest.mark.parametrize("width", [32, 96, 512])
def test_activations_of_eight_bits(width: int) -> None:
    from kernels.cpu.layers import quantise

    @numba.njit("void(int64, float32, int64, int64, int64)", error_model="numpy")
    def call(row, factor, width, out, stats):  # type: ignore[no-untyped-def]
        quantise(row, factor, width, out, stats)

    rows = torch.randn(5, width, generator=torch.Generator().manual_seed(width))
    rows[1] *= 1e-30
    rows[4] *= 1e-39
    rows[2] = 0
    for row in rows:
        out, stats = torch.empty(width, dtype=torch.int8), torch.empty(4)
        call(row.data_ptr(), 0.5, width, out.data_ptr(), stats.data_ptr())
        scale, extra = stats[0].double(), stats.view(torch.int32)[1]
        assert int(extra) == 128 * int(out.sum())
        assert (out * scale - row.double() * 0.5).abs().max() <= scale * 0.5001 + 1e-35
        assert out.abs().max() == (127 if row.abs().max() > 1e-35 else 0)
    for odd in (math.nan, math.inf, -math.inf):
        row[3] = odd
        call(row.data_ptr(), 0.5, width, out.data_ptr(), stats.data_ptr())
        assert not out.any() and stats[0].isnan()


def test_rounding_to_bfloat16() -> None:
    """As torch does; of every NaN it makes the usual one."""
    call = _called(layers.to_bf16, 3)
    bits = torch.randint(-(2**31), 2**31, (5000,), generator=torch.Generator().manual_seed(4))
    odd = [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x3F808000, 0x3F818000]
    row = torch.cat([bits, torch.tensor(odd)]).to(torch.int32).view(torch.float32)
    out = torch.empty(row.numel(), dtype=torch.bfloat16)
    call(row.data_ptr(), row.numel(), out.data_ptr())
    torch.testing.assert_close(out, row.bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_large_pages_are_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses(mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise OSError("no large pages")

    monkeypatch.setattr("kernels.cpu.packing.mmap.mmap", Refuses)
    monkeypatch.setattr("kernels.cpu.packing.mmap.MADV_HUGEPAGE", 14, raising=False)
    assert not huge((3, 5), torch.float32).any()


def test_who_goes_to_sleep_is_seen_on_arm() -> None:
    """A load that stays behind the store before it is `ldar`; `ldapr` may overtake it."""
    import llvmlite.binding as llvm
    from llvmlite import ir

    from kernels.cpu.machine import _reads

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    try:
        target = llvm.Target.from_triple("aarch64-unknown-linux-gnu")
    except RuntimeError as error:
        missing(str(error))
    machine = target.create_target_machine(features="+rcpc")
    for order, wanted in (("seq_cst", "ldar"), ("acquire", "ldapr")):
        word, module = ir.IntType(64), ir.Module()
        module.triple = "aarch64-unknown-linux-gnu"
        function = ir.Function(module, ir.FunctionType(word, [word]), "look")
        builder = ir.IRBuilder(function.append_basic_block())
        builder.ret(_reads(order)(None, builder, None, function.args))
        assembly = machine.emit_assembly(llvm.parse_assembly(str(module)))
        assert {line.split()[0] for line in assembly.splitlines() if "\tld" in line} == {wanted}


@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_rotation_and_norm(head_dim: int) -> None:
    from kernels.cpu.layers import rotate

    @numba.njit("void(int64, int64, int64, int64, float32, float32)", error_model="numpy")
    def call(head, own, other, head_dim, eps, scale):  # type: ignore[no-untyped-def]
        rotate(head, own, other, head_dim, eps, scale)

    own, other = rope_table(64, head_dim, 1e4, torch.float32)
    heads = torch.randn(64, 1, head_dim, generator=torch.Generator().manual_seed(1))
    wanted = rotate_and_norm(
        heads.double(), own.double().unsqueeze(1), other.double().unsqueeze(1), 1e-6, 1.15
    )
    for position in range(64):
        mine = heads[position, 0].clone()
        call(mine.data_ptr(), own[position].data_ptr(), other[position].data_ptr(), head_dim, 1e-6, 1.15)
        torch.testing.assert_close(mine.double(), wanted[position, 0].double(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("head_dim", tiered([16, 64, 128], {0, 2}))
@pytest.mark.parametrize("block_size, in_order", [(1, False), (16, True), (16, False), (24, False)])
def test_attention_reads_the_pages(head_dim: int, block_size: int, in_order: bool) -> None:
    """Against float64; and bit for bit what blocks of another size and in other places give."""
    call = _called(layers.attend, 11)
    generator = torch.Generator().manual_seed(2)
    most, heads = 300, 2
    keys, values = (torch.randn(most, heads, head_dim, generator=generator).bfloat16() for _ in range(2))
    query = torch.randn(head_dim, generator=generator)

    def attend(size: int, order: list[int], first: int, position: int) -> torch.Tensor:
        blocks = -(-most // size)
        pool = torch.full((2, (blocks + 1) * size, heads, head_dim), 3e4, dtype=torch.bfloat16)
        for index in range(most):
            slot = order[index // size] * size + index % size
            pool[0, slot], pool[1, slot] = keys[index], values[index]
        table = torch.tensor(order)
        weights, out = torch.empty(most), torch.empty(head_dim)
        at = [pool[i, :, 1].data_ptr() for i in range(2)]
        stride = pool.stride(1) * 2
        call(
            query.data_ptr(), *at, table.data_ptr(), size, stride, first, position, head_dim,
            weights.data_ptr(), out.data_ptr(),
        )  # fmt: skip
        return out

    blocks = -(-most // block_size)
    order = [1 + i for i in range(blocks)]
    if not in_order:
        order = [1 + int(i) for i in torch.randperm(blocks, generator=generator)]
    for first, position in ((0, 0), (0, 15), (0, 16), (3, 40), (100, 299), (0, 299)):
        seen = slice(first, position + 1)
        shares = (keys[seen, 1].double() @ query.double()).softmax(0)
        out = attend(block_size, order, first, position)
        torch.testing.assert_close(out.double(), shares @ values[seen, 1].double(), rtol=0, atol=3e-6)
        assert torch.equal(out, attend(32, list(range(1, 11)), first, position))


def test_caps_and_choice() -> None:
    from kernels.cpu.layers import cap_and_choose

    @numba.njit("void(int64, int64, float32, int64)", error_model="numpy")
    def call(logits, count, cap, chosen):  # type: ignore[no-untyped-def]
        cap_and_choose(logits, count, cap, chosen)

    chosen = ctypes.c_int64()
    place = ctypes.addressof(chosen)
    raw = 20 * torch.randn(503, generator=torch.Generator().manual_seed(3))
    raw[7], raw[400], raw[401] = 90.0, 91.0, 91.0  # capped to the same number: the lowest id counts
    mine = raw.clone()
    call(mine.data_ptr(), 503, 15.0, place)
    torch.testing.assert_close(mine.double(), 15 * (raw.double() / 15).tanh(), rtol=0, atol=3e-6)
    assert chosen.value == int(mine.argmax()) and mine[chosen.value] == mine.max()
    assert not (mine[: chosen.value] == mine.max()).any()
    for odd, valid in ((math.inf, True), (-math.inf, True), (math.nan, False), (-math.nan, False)):
        other = raw.clone()
        other[5] = odd
        call(other.data_ptr(), 503, 15.0, place)
        assert (chosen.value >= 0) == valid


@pytest.fixture(scope="module")
def draw() -> Callable[[torch.Tensor, Draws], list[int]]:
    """Samples each row of [rows, vocabulary] float32 logits, whose best ids it looks up first."""
    call = _called(drawing.draw, 6)

    def run(logits: torch.Tensor, draws: Draws) -> list[int]:
        rows, vocabulary = logits.shape
        scratch = np.empty(3 * vocabulary)
        chosen = np.where(logits.isnan().any(dim=1), -1, logits.nan_to_num().argmax(dim=1))
        for row in range(rows):
            place = row * chosen.itemsize + chosen.ctypes.data
            whole, numbers = draws.whole[row].ctypes.data, draws.numbers[row].ctypes.data
            call(logits[row].data_ptr(), vocabulary, whole, numbers, scratch.ctypes.data, place)
        return chosen.tolist()

    return run


def _either(rng: random.Random, off: float, *others: float) -> float:
    return off if rng.random() < 0.4 else rng.choice(others)


def _asked(rng: random.Random) -> SamplingParams:
    return SamplingParams(
        max_tokens=1,
        temperature=_either(rng, 0.7, 0.0, 1e-9, 0.3, 1.0, 40.0),
        top_k=int(_either(rng, 0, 1, 2, 40, 200, 502, 503, 5000)),
        top_p=_either(rng, 1.0, 1e-6, 0.3, 0.95, 0.999999),
        min_p=_either(rng, 0.0, 0.001, 0.3, 1.0),
        repetition_penalty=_either(rng, 1.0, 0.5, 1.3),
        presence_penalty=_either(rng, 0.0, -1.0, 1.5),
        frequency_penalty=_either(rng, 0.0, -0.4, 0.3),
        seed=rng.getrandbits(64) - 2**63,
    )


@pytest.mark.parametrize("spread", [0.01, 1.0, 6.0])
@pytest.mark.parametrize("ties", [False, True])
def test_draws_are_those_of_the_reference(
    draw: Callable[[torch.Tensor, Draws], list[int]], spread: float, ties: bool
) -> None:
    rng, generator = random.Random(5), torch.Generator().manual_seed(7)
    vocabulary, rows = 503, 400
    state = RowState(rows, vocabulary, torch.device("cpu"))
    asked = [SamplingRow(row, _asked(rng), rng.randrange(3), rng.randrange(5000), ()) for row in range(rows)]
    for row in asked:
        words = [[rng.randrange(vocabulary) for _ in range(40)] for _ in range(2)]
        state.reset_counts(row.row, *words)
    logits = spread * torch.randn(rows, vocabulary, generator=generator)
    if ties:
        logits = (logits / spread).round() * spread
    logits[3, 100] = math.nan
    wanted = sample(logits.clone(), sampling_batch(asked, state, torch.device("cpu")))
    every = torch.arange(rows)
    before = state.counts(every)[1].clone()
    found = draw(logits, draws_of(asked, state))
    tokens = torch.where(wanted.valid, wanted.tokens, -1)
    assert found == tokens.tolist()
    for row, token in zip(asked, found, strict=True):
        if row.penalised and token >= 0:
            before[row.row, token] += 1
    assert torch.equal(state.counts(every)[1], before)


def test_draws_follow_the_weights(draw: Callable[[torch.Tensor, Draws], list[int]]) -> None:
    """Of many positions each id gets its share, and filtered ones get none."""
    logits, count = torch.tensor([0.0, 1.0, 2.0, -1.0]), 20_000
    params = SamplingParams(max_tokens=1, temperature=1.0, top_k=3, seed=11)
    rows = [SamplingRow(0, params, 0, position, ()) for position in range(count)]
    state = RowState(1, 4, torch.device("cpu"))
    found = torch.bincount(torch.tensor(draw(logits.repeat(count, 1), draws_of(rows, state))), minlength=4)
    shares = torch.softmax(torch.tensor([0.0, 1.0, 2.0, -math.inf]), dim=0)
    assert found[3] == 0
    torch.testing.assert_close(found / count, shares, rtol=0, atol=0.015)


def test_which_instructions_are_taken() -> None:
    base = {"avx2": True, "fma": True}
    wide = {"avx512f": True, "avx512bw": True, "avx512vl": True}
    assert choose(base, True).name == "AVX2"
    assert choose(base | {"avxvnni": True}, True).name == "AVX-VNNI"
    assert choose(base | wide, True).name == "AVX-512"
    assert choose(base | wide | {"avx512vnni": True, "avxvnni": True}, True).name == "AVX-512 VNNI"
    assert choose({"neon": True}, False).name == "128 bits"
    with pytest.raises(NoVectors, match="no AVX2 and FMA"):
        choose({"avx2": True, "fma": False}, True)
