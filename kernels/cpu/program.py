"""Where everything lies: the table of addresses and sizes that the compiled step reads.

A program is an int64 array: the header's fields, then LAYER_FIELDS for each layer. Addresses are those of
tensors that the owner keeps alive. Constants are a float32 array: the header's, then two for each layer.
"""

from enum import IntEnum, auto


class _From0(IntEnum):
    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[int]) -> int:
        return count


class Field(_From0):
    """Of the header."""

    # the model
    LAYERS = auto()
    WIDTH = auto()
    HEADS = auto()
    KV_HEADS = auto()
    HEAD_DIM = auto()
    INNER = auto()  # width of the MLP
    VOCABULARY = auto()
    LOGIT_STRIDE = auto()  # numbers between two rows of logits
    INT8 = auto()  # 1: weights and activations of eight bits; 0: bf16 weights
    WIDE = auto()  # 1: embeddings and gates are float32; 0: bfloat16
    EMBEDDING = auto()
    ROPE_OWN = auto()
    ROPE_OTHER = auto()
    HEAD_WEIGHTS = auto()
    HEAD_SCALES = auto()
    MIXES = auto()  # 1: the residual stream is scaled before each block, and the first one added
    GATE_CHANNELS = auto()  # of value embeddings
    SMEAR_GATE = auto()  # 0: no smear, no backout
    SMEAR_CHANNELS = auto()
    MIDDLE_LAYER = auto()
    CONSTANTS = auto()
    # the cache
    KEYS = auto()
    VALUES = auto()
    LAYER_BYTES = auto()
    SLOT_BYTES = auto()
    BLOCK_SIZE = auto()
    # working memory, a row for each token of a step
    X = auto()
    X0 = auto()
    MIDDLE = auto()
    QKV = auto()
    ATTENDED = auto()
    INNER_ROWS = auto()
    LAST_ROWS = auto()
    LOGITS = auto()
    ROWS = auto()  # shared: activations as products read them,
    STATS = auto()  # their scale and sum, and the factor of their norm: 4 float32 each
    PRIVATE = auto()  # each thread's own, for steps of few tokens, and its room for attention's weights
    PRIVATE_BYTES = auto()
    PRIVATE_STATS = auto()  # offsets into it
    PRIVATE_MIX = auto()
    PRIVATE_WEIGHTS = auto()
    PRIVATE_DRAW = auto()  # three float64 for each id
    # the team
    SYNC = auto()
    THREADS = auto()
    # this step
    TOKENS = auto()
    SAMPLES = auto()
    IDS = auto()
    PREVIOUS = auto()
    POSITIONS = auto()
    TABLES = auto()  # [tokens] addresses of int64 block tables
    SAMPLED = auto()  # [samples] which tokens
    CHOSEN = auto()  # [samples] best ids, or those that were drawn
    DRAWS = auto()  # [samples, len(Draw)] int64; 0: the best ids are wanted
    DRAW_NUMBERS = auto()  # [samples, len(DrawNumber)] float64


class Draw(_From0):
    """How a token is sampled: whole numbers and addresses."""

    TOP_K = auto()  # 0: off
    SEED = auto()
    CHOICE = auto()
    POSITION = auto()
    SEEN = auto()  # [vocabulary] bytes, not 0: in the prompt
    COUNTS = auto()  # [vocabulary] int32, of the output; 0: no penalties


class DrawNumber(_From0):
    """And the others, as float64."""

    TEMPERATURE = auto()  # 0: the best
    TOP_P = auto()
    LOG_MIN_P = auto()
    REPETITION = auto()
    PRESENCE = auto()
    FREQUENCY = auto()


class Layer(_From0):
    QKV_WEIGHTS = auto()
    QKV_SCALES = auto()
    OUT_WEIGHTS = auto()
    OUT_SCALES = auto()
    UP_WEIGHTS = auto()
    UP_SCALES = auto()
    DOWN_WEIGHTS = auto()
    DOWN_SCALES = auto()
    VALUE_EMBEDDING = auto()  # 0: none
    VALUE_GATE = auto()
    WINDOW = auto()  # keys to the left that are seen, -1: all


class Constant(_From0):
    EPS = auto()
    QK_SCALE = auto()
    CAP = auto()
    GATE_SCALE = auto()
    SMEAR = auto()
    BACKOUT = auto()


# In int64 words of SYNC, each in a cache line of its own.
ARRIVED, GENERATION, TICKET, EPOCH, FIRST_ASLEEP = (8 * i for i in range(5))  # the last one for each thread
FEW = 16  # tokens whose activations every thread prepares for itself, which saves a barrier
TILE_ROWS = 8
MOST_THREADS = 4096  # one more than a team can have
