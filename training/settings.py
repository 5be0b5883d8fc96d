"""Everything that a training run decides, in one place."""

from dataclasses import dataclass, field, replace

from engine.config import Generation


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of pretraining: how many tokens, and from which sources by weight."""

    name: str
    tokens: int
    weights: dict[str, float]


# Few passes over the same text: a run with twelve passes over the stories and sixteen over the small chat
# sources learned them by heart. Dropout stretches that (training/ablation.json); still no source is read more
# than eight times or so.
PLAIN = {
    "storybooks": 0.013, "children-simple": 0.13, "children-other": 0.075, "classics": 0.17, "wiki": 0.24,
    "openstax": 0.035, "reference": 0.03, "generated_stories": 0.09, "generated_tales": 0.03,
    "generated_talk": 0.04, "chitchat": 0.06, "persona": 0.012, "task": 0.015, "story_qa": 0.025,
    "knowledge": 0.014, "assistant": 0.008, "stories": 0.004, "smalltalk": 0.003,
}  # fmt: skip
# The final style follows what was seen last: simple stories, and everything in chat form.
LATE = {
    "storybooks": 0.014, "children-simple": 0.11, "wiki": 0.14, "openstax": 0.02, "reference": 0.02,
    "generated_stories": 0.04, "generated_tales": 0.13, "generated_talk": 0.34, "assistant": 0.02,
    "knowledge": 0.025, "story_qa": 0.03, "stories": 0.005, "smalltalk": 0.006, "chitchat": 0.07,
    "task": 0.02,
}  # fmt: skip
# Without the talk of made-up persons about their lives: a model that was tuned on it had one as well. Other
# talk between people, where that is rare, has a small part. Some prose keeps what pretraining taught; without
# it, tuning cost prose 8 % and chat 10 % in bits per byte.
TUNE = {
    "generated_talk": 0.54, "generated_tales": 0.17, "assistant": 0.04, "knowledge": 0.04, "story_qa": 0.03,
    "stories": 0.015, "smalltalk": 0.02, "chitchat": 0.025, "task": 0.01, "wiki": 0.05,
    "children-simple": 0.04, "classics": 0.02,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """Sizes count tokens unless named otherwise; `full()` is the run behind the shipped model."""

    # The best of those that training/ablation.json compares at 40 MiB of int8.
    generation: Generation = "G5"
    n_layer: int = 10
    n_head: int = 4
    n_kv_head: int = 1
    n_embd: int = 512
    vocab_size: int = 8192
    context: int = 1024
    rows: int = 128  # sequences in a batch; a step sees rows x context tokens
    phases: tuple[Phase, ...] = (Phase("plain", 250_000_000, PLAIN), Phase("late", 130_000_000, LATE))
    tune: Phase = field(default_factory=lambda: Phase("tune", 30_000_000, TUNE))
    matrix_lr: float = 0.02
    embedding_lr: float = 0.2
    head_lr: float = 0.004
    scalar_lr: float = 0.02  # of what is neither matrix, table nor head: scalars and gates
    weight_decay: float = 0.1  # of the matrices inside the blocks
    dropout: float = 0.1  # on what attention and MLP add to the residual stream, in pretraining only
    tune_lr_scale: float = 0.1
    warmup_steps: int = 40
    warmdown_share: float = 0.5
    generated_stories: int = 110_000
    generated_tales: int = 110_000
    generated_talk: int = 1_000_000
    tokenizer_characters: int = 30_000_000  # of each of its three pools of text, at most
    checkpoint_seconds: float = 120.0
    seed: int = 1


def full() -> Settings:
    return Settings()


def tiny() -> Settings:
    """Seconds on a CPU: the whole path at toy size, for the tests."""
    sources = {"generated_stories": 0.5, "generated_talk": 0.5}
    return Settings(
        n_layer=2, n_head=2, n_kv_head=2, n_embd=64, vocab_size=512, context=128, rows=4,
        phases=(Phase("plain", 8_192, sources), Phase("late", 4_096, sources)),
        tune=Phase("tune", 4_096, {"generated_talk": 1.0}),
        generated_stories=60, generated_tales=20, generated_talk=400, tokenizer_characters=50_000,
        warmup_steps=2,
    )  # fmt: skip


def scaled(settings: Settings, share: float) -> Settings:
    """The same run on `share` of its tokens."""
    phases = tuple(replace(phase, tokens=int(phase.tokens * share)) for phase in settings.phases)
    return replace(
        settings, phases=phases, tune=replace(settings.tune, tokens=int(settings.tune.tokens * share))
    )
