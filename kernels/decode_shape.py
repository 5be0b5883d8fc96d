"""How the blocks of kernels/cuda/decode_step.cu share a network, and what memory they need for it.

The figures here are those of decode_network.cu, which computes them from the same constants.
"""

import math
from dataclasses import dataclass, replace

from kernels.step_spec import StepSpec

UNIT = 16  # rows of a weight that belong together
PRODUCERS = 2  # warps
CHUNK_BYTES = 16384
HALF = 4  # rows of a tile that are copied together
SKEW = 64
TILE = 16  # keys
READERS = 2  # warps that attend for a row
MOST_PARTS = (
    32  # of a row of x that is multiplied in one piece after the other, each with a factor of its own
)
EXCHANGES = 4  # of a layer
ORDERS = ("rope", "rope_norm", "norm_rope")
SHARED_LIMIT = 227 * 1024
SLOTS = (12, 10, 8, 6, 4)  # of a ring, of which as many as fit are taken


@dataclass(frozen=True, slots=True)
class Cut:
    """One compiled form of the step. rows: most entries. team: blocks for each kv head. warps: consumers of a
    block. slots: of a block's ring. resident: the whole step in one kernel. clustered: a team is a thread
    block cluster. mlp_out_whole: each block has all inputs of its own outputs of the MLP's second product,
    and not a share of them for its team. delay: most nanoseconds that a block waits in front of a phase, for
    tests. traced: where the blocks' time goes is counted.
    """

    rows: int
    team: int
    warps: int
    slots: int
    resident: bool = True
    clustered: bool = False
    mlp_out_whole: bool = False
    delay: int = 0
    traced: bool = False

    @property
    def threads(self) -> int:
        """Of a block, its producers included."""
        return (self.warps + PRODUCERS) * 32


def defines(spec: StepSpec, cut: Cut) -> dict[str, int]:
    """Compile-time constants of decode_step.cu."""
    constants = {
        "WIDTH": spec.width,
        "HEADS": spec.heads,
        "KV_HEADS": spec.kv_heads,
        "D": spec.head_dim,
        "INNER": spec.inner,
        "PADDED": spec.padded_inner,
        "HEAD_ROWS": spec.head_rows,
        "LAYERS": spec.layers,
        "BLOCK_SIZE": spec.block_size,
        "SWIGLU": int(spec.activation == "swiglu"),
        "GROUP": spec.heads // spec.kv_heads,
        "ORDER": ORDERS.index(spec.order),
        "BIASED": int(spec.biased),
        "ROWS": cut.rows,
        "TEAM": cut.team,
        "WARPS": cut.warps,
        "SUBS": subs_of(spec, cut.team) or 0,
        "SLOTS": cut.slots,
    }
    flags = {
        "RESIDENT": cut.resident,
        "CLUSTERED": cut.clustered,
        "MLP_OUT_WHOLE": cut.mlp_out_whole,
        "TRACED": cut.traced,
        "KV_FP8": spec.fp8_kv,
        "WEIGHT_INT8": spec.kind == "int8",
        "WEIGHT_FP8": spec.kind == "fp8",
    }
    constants |= {name: 1 for name, on in flags.items() if on}
    return constants | ({"DELAY": cut.delay} if cut.delay else {})


def _weight_bytes(spec: StepSpec) -> int:
    return 2 if spec.kind == "bf16" else 1


def _pieces(spec: StepSpec, k: int, subs: int) -> int | None:
    """Parts that rows of k channels are copied in, or None where they cannot be cut so."""
    size = _weight_bytes(spec)
    most, least = CHUNK_BYTES // HALF // size, subs * 4 * (16 // size)
    found = (n for n in range(1, MOST_PARTS // subs + 1) if k % n == 0 and k // n % least == 0)
    return next((n for n in found if k // n <= most), None)


def subs_of(spec: StepSpec, team: int) -> int | None:
    """Warps that share a product's channels, the same for every product: eight, or four where the channels of
    one cannot be shared by eight; None where four cannot either. What a product gives depends on it, so no
    form of a step may have a number of its own.
    """
    inputs = (spec.width, spec.heads * spec.head_dim, spec.padded_inner // team)
    return next((subs for subs in (8, 4) if all(_pieces(spec, k, subs) for k in inputs)), None)


def may_be_whole(spec: StepSpec, team: int, rows: int) -> bool:
    """Whether blocks of a form for so many rows can take all inputs of the MLP's second product: the sums of
    all warps for all shares of a unit must have room, and blocks as much to do as each other.
    """
    share, subs = spec.padded_inner // team, subs_of(spec, team)
    pieces = _pieces(spec, share, subs) if subs else None
    if subs is None or pieces is None:
        return False
    return team * pieces * subs <= _partials(rows) and spec.width // UNIT % (spec.kv_heads * team) == 0


def mail_words(spec: StepSpec, cut: Cut) -> int:
    """What a team sends to one of its blocks, in words of 8 bytes."""
    group, piece = spec.heads // spec.kv_heads, spec.head_dim // cut.team
    owned = 0 if cut.mlp_out_whole else math.ceil(spec.width // UNIT // spec.kv_heads / cut.team)
    of_a_row = (group + 2) * spec.head_dim // 2 + cut.team * group * (piece + 2) + cut.team * owned * UNIT
    return cut.rows * of_a_row


def _partials(rows: int) -> int:
    """Warps' sums of a unit that wait to be added."""
    return 32 if rows > 4 else 64


def _rounded(size: int) -> int:
    return -(-size // 16) * 16


def shared_bytes(spec: StepSpec, cut: Cut) -> int:
    """Dynamic shared memory of a block."""
    dim, group = spec.head_dim, spec.heads // spec.kv_heads
    number = 1 if spec.fp8_kv else 2
    row = dim * number // 16
    stage = TILE * row + TILE // 4 * (4 * row + 2) + (4 if spec.fp8_kv else 0)
    slot = -(-max(CHUNK_BYTES, 2 * stage * 16) // 128) * 128 + SKEW
    longest = max(spec.width, spec.heads * dim, spec.padded_inner // (1 if cut.mlp_out_whole else cut.team))
    x = cut.rows * (longest + (32 if spec.kind == "bf16" else 8)) * 2
    finds = cut.rows * (READERS + 1)
    sums, stats = finds * group * dim * 4, _rounded(finds * group * 8)
    partial = (1 + cut.resident) * _partials(cut.rows) * cut.rows * UNIT * 4
    squares = _rounded(cut.rows * (spec.width // 128) * 4)
    parts = _partials(cut.rows) if cut.mlp_out_whole else MOST_PARTS
    inverse = cut.rows * parts * 4 if spec.kind == "fp8" else 0
    query = cut.warps // READERS * READERS * group * dim * 2
    new = cut.rows * 2 * dim * number + (_rounded(cut.rows * 4) if spec.fp8_kv else 0)
    barriers = cut.slots * 16 + _rounded(cut.slots * 4) + 16 + 64
    mail = mail_words(spec, cut) * 8 if cut.clustered else 0
    return cut.slots * slot + x + sums + partial + squares + inverse + stats + query + new + barriers + mail


def fitted(spec: StepSpec, cut: Cut) -> Cut | None:
    """The same with as many slots as a block's memory has room for; None where the fewest are too many."""
    cuts = (replace(cut, slots=slots) for slots in SLOTS)
    return next((one for one in cuts if shared_bytes(spec, one) <= SHARED_LIMIT), None)


def unsupported(spec: StepSpec, team: int) -> str | None:
    """Why teams of so many blocks cannot run this network, or None."""
    dim, blocks = spec.head_dim, team * spec.kv_heads
    if dim not in (64, 128):
        return f"head_dim {dim} is neither 64 nor 128"
    if spec.heads % spec.kv_heads or not 1 <= spec.heads // spec.kv_heads <= 8:
        return f"{spec.heads} query heads for {spec.kv_heads} kv heads; 1 to 8 for each can be served"
    if dim % (team * UNIT):
        return f"heads of {dim} channels cannot be cut for teams of {team}"
    if spec.block_size % TILE:
        return f"blocks of {spec.block_size} keys are no multiple of {TILE}"
    if spec.width % (UNIT * spec.kv_heads):
        return f"a width of {spec.width} is no multiple of {UNIT} times {spec.kv_heads} kv heads"
    if spec.padded_inner % team:
        return f"{spec.padded_inner} inner channels cannot be cut for teams of {team}"
    if spec.inner % UNIT or spec.head_rows % UNIT:
        return f"{spec.inner} inner channels or {spec.head_rows} outputs are no multiple of {UNIT}"
    if spec.inner * (2 if spec.activation == "swiglu" else 1) // UNIT < blocks:
        return f"{spec.inner} inner channels leave some of {blocks} blocks without work"
    if subs_of(spec, team) is None:
        return (
            f"rows of {spec.width}, {spec.heads * dim} or {spec.padded_inner // team} channels cannot be cut"
        )
    return None
