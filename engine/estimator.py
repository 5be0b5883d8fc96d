"""How long a step will take, learned while serving: what prefill is sized by.

Two small linear models, fitted by recursive least squares with forgetting, in the time of a few microseconds:

    decode  = a + b * rows + d * kv_tokens                         from steps that only decode
    prefill = f + c * tokens + e * tokens * context                from what mixed steps take beyond that

Learned apart, a minute of decoding does not wear out what is known about prefill, and each coefficient is
fitted only by steps that say something about it. The curve of a real device has a knee (bound by memory, then
by arithmetic); near the sizes that were lately used a line is close, and forgetting keeps it there.
"""

from typing import NamedTuple

FORGETTING = 0.97  # of decoding about the last 33 steps count
MIN_DECODE_STEPS = 8
MIN_PREFILL_STEPS = 2
MIXED_RUN = 16
EARLY_OUTLIER = 3.0  # times the median of the first steps
SHORT_MEMORY = 16  # steps
LEAST_SHARE = 0.25  # of the usual cost of a prefill token: no more may be the overhead of prefilling at all
SURPRISES = 4  # so many outliers in a row are the new truth
PROBE_TOKENS = 128  # of prefill in a step, while nothing is known about it
# A device that is bound by memory takes some prefill for nothing, and then suddenly not: the line is quick to
# forget, and trusted for little more than the largest step of late. Beyond that counts what large steps cost.
PREFILL_FORGETTING = 0.8
TRUST = 1.25
BULK_TOKENS = 1024
PREFILL_OUTLIER = 2.5  # times its prediction: the most that a step with prefill counts for
PENDING = 16  # steps with prefill that came before decoding was known
# A single step counts for at most so much beyond its prediction: times the usual deviation, plus a share.
OUTLIER, OUTLIER_SHARE = 4.0, 0.1
DEFAULT_STRETCH = 1.75
PRIOR = 1_000.0  # variance of a coefficient relative to that of the noise, before the first step

# Units in which rows, KV tokens and prefill tokens are of order one; tokens * context are less, because
# little of a step's time is theirs: where the line cannot tell, it is the tokens.
ROWS, KV_TOKENS, TOKENS, WORK = 1 / 64, 1 / 65_536, 1 / 1024, 1 / 8_388_608


class StepLoad(NamedTuple):
    """What a step has to do.

    rows: positions that decode. kv_tokens: positions behind them. prefill_tokens: positions in longer chunks.
    prefill_work: for each of those the positions before it, summed.
    """

    rows: int
    kv_tokens: int
    prefill_tokens: int = 0
    prefill_work: int = 0


NOTHING = StepLoad(0, 0)


def default_stretch(asked: float | None, device: str) -> float | None:
    """`SchedulerConfig.prefill_stretch` for what the configuration asks for, on a kind of device. On a CPU a
    step is long and its time grows with every token, so that prompts of any length would be cut up.
    """
    chosen = asked if asked is not None else DEFAULT_STRETCH if device == "cuda" else 0.0
    return chosen or None


class Line:
    """y = w0 * x0 + w1 * x1 + w2 * x2 by recursive least squares; what it predicts is never negative.

    Spelled out in scalars: for three inputs that is ten times as fast as arrays. The weights themselves are
    left alone: keeping each from falling below zero makes the recursion unstable.
    """

    __slots__ = ("_forgetting", "_p", "_w", "deviation", "samples", "surprises")

    def __init__(self, forgetting: float) -> None:
        self._forgetting = forgetting
        self._w = (0.0, 0.0, 0.0)
        self._p = (PRIOR, 0.0, 0.0, PRIOR, 0.0, PRIOR)  # covariance: the upper triangle
        self.samples = 0
        self.deviation = 0.0  # of what was observed from what was predicted, lately
        self.surprises = 0  # outliers in a row

    @property
    def weights(self) -> tuple[float, float, float]:
        return self._w

    def __call__(self, x0: float, x1: float, x2: float) -> float:
        w0, w1, w2 = self._w
        return max(0.0, w0 * x0 + w1 * x1 + w2 * x2)

    def update(self, x0: float, x1: float, x2: float, y: float) -> None:
        w0, w1, w2 = self._w
        p00, p01, p02, p11, p12, p22 = self._p
        g0 = p00 * x0 + p01 * x1 + p02 * x2
        g1 = p01 * x0 + p11 * x1 + p12 * x2
        g2 = p02 * x0 + p12 * x1 + p22 * x2
        known = g0 * x0 + g1 * x1 + g2 * x2  # variance of the prediction, relative to that of the noise
        error = (y - (w0 * x0 + w1 * x1 + w2 * x2)) / (1.0 + known)
        self._w = (w0 + g0 * error, w1 + g1 * error, w2 + g2 * error)
        # Forgetting in the direction of this step's inputs alone (Kulhavy): what it says nothing about, such
        # as the effect of the number of rows while that does not change, is neither learned nor forgotten.
        kept = self._forgetting
        weight = kept - (1.0 - kept) / known if known > 1e-12 else 0.0
        if weight:
            k = 1.0 / (1.0 / weight + known)
            self._p = (
                *(p00 - g0 * g0 * k, p01 - g0 * g1 * k, p02 - g0 * g2 * k),
                *(p11 - g1 * g1 * k, p12 - g1 * g2 * k, p22 - g2 * g2 * k),
            )
        self.samples += 1


class StepTimeModel:
    """Predicts the seconds of a step. Until it has seen enough steps of both kinds it is not `ready`;
    decoding is known first.
    """

    __slots__ = (
        "_bulk",
        "_decode",
        "_early",
        "_largest",
        "_mixed",
        "_pending",
        "_prefill",
        "_settled",
        "_usual",
    )

    def __init__(self) -> None:
        self._decode, self._prefill = Line(FORGETTING), Line(PREFILL_FORGETTING)
        self._settled = False
        self._early: list[tuple[StepLoad, float]] | None = []  # the first steps that only decode
        self._pending: list[tuple[StepLoad, float]] = []
        self._largest = 0.0  # prefill tokens in a step of late
        self._bulk = 0.0  # what one costs in steps with many
        self._usual = 0.0  # what a prefill token has cost lately, everything included
        self._mixed = 0  # mixed steps since the last one that only decoded

    @property
    def ready(self) -> bool:
        return self._early is None and self._prefill.samples >= MIN_PREFILL_STEPS

    @property
    def knows_decoding(self) -> bool:
        return self._early is None

    def observe(self, load: StepLoad, seconds: float) -> None:
        """A finished step and the time that the device spent on it alone."""
        if not 0.0 < seconds < 1e6:  # also false for what is not a number
            return
        if load.prefill_tokens:
            self._observe_mixed(load, seconds)
            return
        self._mixed = 0
        if self._early is None:
            self._learn_decode(load, seconds)
            return
        self._early.append((load, seconds))
        if len(self._early) > MIN_DECODE_STEPS:
            # The very first steps may compile or allocate: those far from the others are forgotten.
            early, self._early = self._early, None
            most = EARLY_OUTLIER * sorted(took for _, took in early)[len(early) // 2]
            for load, took in early:
                if took <= most:
                    self._learn_decode(load, took)
            for load, took in self._pending:
                self._observe_mixed(load, took)
            self._pending = []

    def _learn_decode(self, load: StepLoad, seconds: float) -> None:
        _learn(self._decode, 1.0, load.rows * ROWS, load.kv_tokens * KV_TOKENS, seconds)

    def _observe_mixed(self, load: StepLoad, seconds: float) -> None:
        if self._early is not None:  # what goes beyond decoding cannot be told yet
            self._pending = [*self._pending[1 - PENDING :], (load, seconds)]
            return
        self._mixed += 1
        if not self._settled:  # the first one is not believed
            self._settled = True
            return
        z1, z2 = load.prefill_tokens * TOKENS, load.prefill_work * WORK
        if load.rows and self._mixed > MIXED_RUN:
            # Under steady load no step only decodes, and what is known about such steps would grow old.
            self._learn_decode(load, max(0.0, seconds - self._prefill(1.0, z1, z2)))
        alone = self._decode(1.0, load.rows * ROWS, load.kv_tokens * KV_TOKENS)
        most = PREFILL_OUTLIER * self.predict(load) if self.ready else seconds
        self._prefill.surprises = self._prefill.surprises + 1 if seconds > most else 0
        if 0 < self._prefill.surprises < SURPRISES:
            seconds = most
        beyond = max(0.0, seconds - alone)
        self._prefill.update(1.0, z1, z2, beyond)
        usual, tokens = beyond / load.prefill_tokens, load.prefill_tokens
        self._largest = max(tokens, FORGETTING * self._largest)
        if tokens >= BULK_TOKENS:
            self._bulk += (usual - self._bulk) * (0.25 if self._bulk else 1.0)
        self._usual += (usual - self._usual) / min(self._prefill.samples, SHORT_MEMORY)

    def decode(self, rows: int, kv_tokens: int) -> float:
        """Seconds of a step that only decodes; nothing for no rows."""
        return self._decode(1.0, rows * ROWS, kv_tokens * KV_TOKENS) if rows else 0.0

    def predict(self, load: StepLoad) -> float:
        """Seconds of any step; 0 before anything is known."""
        seconds = self._decode(1.0, load.rows * ROWS, load.kv_tokens * KV_TOKENS)
        if load.prefill_tokens:
            seconds += self._prefill(1.0, load.prefill_tokens * TOKENS, load.prefill_work * WORK)
        return seconds

    def tested(self, seconds: float, pressure: float) -> int:
        """Most prefill tokens in a step of `seconds` more than it decodes, going by what was really seen;
        where the pace of those who decode matters less (`pressure` over 1), more is risked.
        """
        bulk = int(seconds / self._bulk) if self._bulk and seconds > 0 else 0
        return max(int(TRUST * self._largest * pressure), bulk, int(PROBE_TOKENS * pressure))

    def room(
        self, load: StepLoad, tokens: int, block_size: int, stretch: float, pressure: float
    ) -> "PrefillRoom":
        """Room in a step of at most `tokens` positions beside the decoding rows of `load`, which take a time
        known here: the whole step may take `stretch` times as long, or more under pressure (see `tested`).
        """
        if not self.knows_decoding:
            return PrefillRoom(tokens, block_size)
        if not self.ready:  # a few small steps will tell
            few = max(block_size, int(PROBE_TOKENS * pressure) // block_size * block_size)
            return PrefillRoom(min(tokens, few), block_size)
        seconds = self.decode(load.rows, load.kv_tokens) * (stretch * pressure - 1)
        return PrefillRoom(min(tokens, self.tested(seconds, pressure)), block_size, self, seconds)

    @property
    def prefill_overhead(self) -> float:
        """Seconds that a step takes longer because it prefills at all; negative where some is for nothing."""
        return self._prefill.weights[0]

    def _prefill_costs(self) -> tuple[float, float]:
        """Seconds per prefill token, and per token before it."""
        _, per_token, per_work = self._prefill.weights
        return max(per_token * TOKENS, LEAST_SHARE * self._usual), max(0.0, per_work * WORK)

    def cost(self, tokens: int, context: int) -> float:
        """Seconds for `tokens` more positions behind `context` others, in a step that prefills anyway."""
        per_token, per_work = self._prefill_costs()
        return tokens * (per_token + per_work * (context + tokens / 2))

    def tokens_within(self, seconds: float, context: int, most: int) -> int:
        """How many of `most` positions behind `context` others can be computed in `seconds`, beside whatever
        else the step does. Never below zero; the overhead of a mixed step is the caller's.
        """
        if seconds <= 0.0 or not self._prefill.samples:
            return 0
        per_token, per_work = self._prefill_costs()
        guess = min(most, seconds / per_token) if per_token else float(most)
        # Each of them also reads what is before it: `context`, and on average half of the chunk. A line
        # through few points is not trusted to the full.
        cost = (per_token + per_work * (context + guess / 2)) * (1.0 + 1.0 / self._prefill.samples)
        return most if cost * most <= seconds else int(seconds / cost)


class PrefillRoom:
    """What one step has room for beside its decoding rows: positions, and time where that is limited.

    model, seconds: without a model only positions count. The first chunk may take one block whatever the
    time says, so that prefill never starves; one that leaves something over stops at the end of a block.
    """

    __slots__ = ("_block_size", "_first", "_model", "_seconds", "tokens", "work")

    def __init__(
        self, tokens: int, block_size: int, model: StepTimeModel | None = None, seconds: float = 0.0
    ) -> None:
        self.tokens = tokens
        self.work = 0  # as in `StepLoad`, of the chunks so far
        self._block_size = block_size
        self._model = model
        self._seconds = seconds - model.prefill_overhead if model else 0.0
        self._first = True

    @property
    def spent(self) -> bool:
        """Whether nobody else gets anything in this step."""
        if self.tokens < 1:
            return True
        if self._model is None or self._first:
            return False
        return self._model.tokens_within(self._seconds, 0, self._block_size) < self._block_size

    def take(self, start: int, wanted: int, most: int | None, *, at_least_a_block: bool = False) -> int:
        """How many of `wanted` positions from `start` on the step computes, at most `most`; maybe none."""
        length = min(wanted, self.tokens) if most is None else min(wanted, self.tokens, most)
        if self._model is not None and length:
            if (within := self._model.tokens_within(self._seconds, start, length)) < length:
                length = self._cut(length, within, self._first or at_least_a_block)
            end = (start + length) // self._block_size * self._block_size
            if length < wanted and end > start:
                length = end - start
            self._seconds -= self._model.cost(length, start)
        self.tokens -= length
        self.work += length * start + length * (length - 1) // 2
        self._first = self._first and not length
        return length

    def _cut(self, length: int, within: int, at_least_a_block: bool) -> int:
        if within >= self._block_size:
            return within
        return min(length, self._block_size) if at_least_a_block else 0


def _learn(line: Line, x0: float, x1: float, x2: float, y: float) -> None:
    """A step that took far longer than predicted (a pause, a compilation) moves the line a little only,
    unless others like it follow.
    """
    if line.samples >= MIN_DECODE_STEPS // 2:
        expected = line(x0, x1, x2)
        error, most = y - expected, OUTLIER * line.deviation + OUTLIER_SHARE * expected
        line.surprises = line.surprises + 1 if error > most else 0
        if 0 < line.surprises < SURPRISES:
            y = expected + most
        line.deviation += (1 - FORGETTING) * (min(abs(error), most) - line.deviation)
    line.update(x0, x1, x2, y)
