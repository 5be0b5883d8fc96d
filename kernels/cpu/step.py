"""A step of the whole network, as each thread of the team runs it.

Between two barriers everybody works on the same thing: a product in blocks of outputs, attention in heads,
norms in tokens. Activations for the next product are made by each thread for itself while the tokens are few:
that costs less than a barrier.
"""

import numpy as np

from kernels.cpu.draw import draw
from kernels.cpu.layers import (
    ONE,
    ZERO,
    attend,
    cap_and_choose,
    compiled,
    gate,
    load_any,
    mix,
    quantise,
    root_mean,
    rotate,
    scaled,
    sigmoid,
    to_bf16,
)
from kernels.cpu.machine import (
    fetch_add,
    give_way,
    load_f32,
    load_i64,
    peek,
    poke,
    relax,
    store_f32,
)
from kernels.cpu.products import multiply
from kernels.cpu.program import (
    ARRIVED,
    FEW,
    GENERATION,
    TICKET,
    Constant,
    Draw,
    DrawNumber,
    Field,
    Layer,
)
from kernels.cpu.tiles import ADD, SQUARE, STORE

PATIENCE = 2000  # looks at a barrier before the core is offered to others
LAYER_FIELDS = len(Layer)
HEADER = len(Field)
CONSTANTS = len(Constant)
DRAW_BYTES, NUMBER_BYTES = 8 * len(Draw), 8 * len(DrawNumber)


@compiled
def barrier(sync, threads):
    """Waits for the whole team; afterwards the portions of the next product are there to be taken."""
    if threads == 1:
        poke(sync + 8 * TICKET, 0)
        return
    generation = peek(sync + 8 * GENERATION)
    if fetch_add(sync + 8 * ARRIVED, 1) == threads - 1:
        poke(sync + 8 * ARRIVED, 0)
        poke(sync + 8 * TICKET, 0)
        poke(sync + 8 * GENERATION, generation + 1)
        return
    looks = 0
    while peek(sync + 8 * GENERATION) == generation:
        relax()
        looks += 1
        if looks > PATIENCE:
            give_way()


@compiled
def _prepare(p, thread, rows, width, count, normed, a, b, x0):
    """Activations for a product: rows of `width` float32, normalised if `normed` (after a * row + b * x0, if
    x0 is not 0), as int8 or float32. They are in the thread's own memory if they are few, else shared; see
    `_prepared`.
    """
    threads, int8 = load_i64(p, Field.THREADS), load_i64(p, Field.INT8)
    own = load_i64(p, Field.PRIVATE) + thread * load_i64(p, Field.PRIVATE_BYTES)
    eps = load_f32(load_i64(p, Field.CONSTANTS), Constant.EPS)
    few = count <= FEW or threads == 1
    out, stats, mixed = (
        _prepared(p, thread, count),
        _stats(p, thread, count),
        own + load_i64(p, Field.PRIVATE_MIX),
    )
    size = width if int8 else 4 * width
    for row in range(0 if few else thread, count, 1 if few else threads):
        source, factor = rows + 4 * row * width, ONE
        if x0 != 0:
            mix(source, x0 + 4 * row * width, a, b, width, mixed)
            source = mixed
        if normed:
            factor = root_mean(source, width, eps)
        if int8:
            quantise(source, factor, width, out + row * size, stats + 16 * row)
        elif normed:
            scaled(source, factor, width, out + row * size)
        store_f32(stats, 4 * row + 2, factor)
    if not few and (int8 or normed):
        barrier(load_i64(p, Field.SYNC), threads)
    return out if int8 or normed else rows


@compiled
def _prepared(p, thread, count):
    if count <= FEW:
        return load_i64(p, Field.PRIVATE) + thread * load_i64(p, Field.PRIVATE_BYTES)
    return load_i64(p, Field.ROWS)


@compiled
def _stats(p, thread, count):
    if count <= FEW:
        return _prepared(p, thread, count) + load_i64(p, Field.PRIVATE_STATS)
    return load_i64(p, Field.STATS)


@compiled
def _product(p, thread, weights, scales, inputs, outputs, rows, count, mode, a, b, x0, out, out_width):
    int8, sync, threads = load_i64(p, Field.INT8), load_i64(p, Field.SYNC), load_i64(p, Field.THREADS)
    stride = inputs if int8 else 4 * inputs
    multiply(
        sync, threads, int8, weights, scales, inputs, outputs, rows, stride, _stats(p, thread, count), count,
        mode, a, b, x0, out, 4 * out_width,
    )  # fmt: skip
    barrier(sync, threads)


@compiled
def _embed(p, thread):
    """The normalised embedding of each token, with its predecessor's mixed in where the model has smear."""
    width, wide, table = load_i64(p, Field.WIDTH), load_i64(p, Field.WIDE), load_i64(p, Field.EMBEDDING)
    constants, smear = load_i64(p, Field.CONSTANTS), load_i64(p, Field.SMEAR_GATE)
    eps, size = load_f32(constants, Constant.EPS), 4 if wide else 2
    previous = (
        load_i64(p, Field.PRIVATE)
        + thread * load_i64(p, Field.PRIVATE_BYTES)
        + load_i64(p, Field.PRIVATE_MIX)
    )
    for token in range(thread, load_i64(p, Field.TOKENS), load_i64(p, Field.THREADS)):
        x = load_i64(p, Field.X) + 4 * token * width
        _normed_embedding(table + size * width * load_i64(load_i64(p, Field.IDS), token), wide, width, eps, x)
        if smear != 0 and load_i64(load_i64(p, Field.POSITIONS), token) > 0:
            share = load_f32(constants, Constant.SMEAR) * sigmoid(
                gate(smear, wide, x, ONE, load_i64(p, Field.SMEAR_CHANNELS))
            )
            id = load_i64(load_i64(p, Field.PREVIOUS), token)
            _normed_embedding(table + size * width * id, wide, width, eps, previous)
            mix(x, previous, ONE, share, width, x)
        if load_i64(p, Field.MIXES):
            scaled(x, ONE, width, load_i64(p, Field.X0) + 4 * token * width)
    barrier(load_i64(p, Field.SYNC), load_i64(p, Field.THREADS))


@compiled
def _normed_embedding(row, wide, width, eps, out):
    for i in range(width):
        store_f32(out, i, load_any(row, i, wide))
    scaled(out, root_mean(out, width, eps), width, out)


@compiled
def _place(p, thread, layer, record, a, b, x0, stats):
    """Keys and queries rotated and normalised, values with their gate; keys and values to the cache."""
    head_dim, heads, kv_heads = (
        load_i64(p, Field.HEAD_DIM),
        load_i64(p, Field.HEADS),
        load_i64(p, Field.KV_HEADS),
    )
    constants, tokens, threads = (
        load_i64(p, Field.CONSTANTS),
        load_i64(p, Field.TOKENS),
        load_i64(p, Field.THREADS),
    )
    eps, scale = load_f32(constants, Constant.EPS), load_f32(constants, Constant.QK_SCALE)
    width, block_size = load_i64(p, Field.WIDTH), load_i64(p, Field.BLOCK_SIZE)
    every = heads + 2 * kv_heads
    for item in range(thread, tokens * every, threads):
        token, head = item // every, item % every
        at = load_i64(p, Field.QKV) + 4 * (token * every + head) * head_dim
        position = load_i64(load_i64(p, Field.POSITIONS), token)
        if head < heads + kv_heads:
            own = load_i64(p, Field.ROPE_OWN) + 4 * position * head_dim
            other = load_i64(p, Field.ROPE_OTHER) + 4 * position * head_dim
            factor = scale if head >= heads else scale / np.float32(np.sqrt(np.float32(head_dim)))
            rotate(at, own, other, head_dim, eps, factor)
        if head < heads:
            continue
        pool, kv_head = load_i64(p, Field.KEYS), head - heads
        if head >= heads + kv_heads:
            pool, kv_head = load_i64(p, Field.VALUES), head - heads - kv_heads
            if load_i64(record, Layer.VALUE_EMBEDDING) != 0:
                x = load_i64(p, Field.X) + 4 * token * width
                _add_value(p, thread, record, x, x0, token, kv_head, a, b, load_f32(stats, 4 * token + 2), at)
        table = load_i64(load_i64(p, Field.TABLES), token)
        slot = load_i64(table, position // block_size) * block_size + position % block_size
        slots = pool + layer * load_i64(p, Field.LAYER_BYTES) + slot * load_i64(p, Field.SLOT_BYTES)
        to_bf16(at, head_dim, slots + 2 * kv_head * head_dim)
    barrier(load_i64(p, Field.SYNC), threads)


@compiled
def _add_value(p, thread, record, x, x0, token, kv_head, a, b, factor, value):
    """The gated embedding of the token itself, added to its value of one head."""
    width, wide, channels = (
        load_i64(p, Field.WIDTH),
        load_i64(p, Field.WIDE),
        load_i64(p, Field.GATE_CHANNELS),
    )
    head_dim, size = load_i64(p, Field.HEAD_DIM), 4 if wide else 2
    mixed = (
        load_i64(p, Field.PRIVATE)
        + thread * load_i64(p, Field.PRIVATE_BYTES)
        + load_i64(p, Field.PRIVATE_MIX)
    )
    mix(x, x0 + 4 * token * width, a, b, channels, mixed)
    weights = load_i64(record, Layer.VALUE_GATE) + size * kv_head * channels
    constants = load_i64(p, Field.CONSTANTS)
    share = load_f32(constants, Constant.GATE_SCALE) * sigmoid(gate(weights, wide, mixed, factor, channels))
    id = load_i64(load_i64(p, Field.IDS), token)
    row = (
        load_i64(record, Layer.VALUE_EMBEDDING)
        + size * (id * load_i64(p, Field.KV_HEADS) + kv_head) * head_dim
    )
    for i in range(head_dim):
        store_f32(value, i, load_f32(value, i) + share * load_any(row, i, wide))


@compiled
def _attention(p, thread, layer, record):
    head_dim, heads = load_i64(p, Field.HEAD_DIM), load_i64(p, Field.HEADS)
    group, kv_heads = heads // load_i64(p, Field.KV_HEADS), load_i64(p, Field.KV_HEADS)
    keys = load_i64(p, Field.KEYS) + layer * load_i64(p, Field.LAYER_BYTES)
    values = load_i64(p, Field.VALUES) + layer * load_i64(p, Field.LAYER_BYTES)
    own = load_i64(p, Field.PRIVATE) + thread * load_i64(p, Field.PRIVATE_BYTES)
    weights, window = own + load_i64(p, Field.PRIVATE_WEIGHTS), load_i64(record, Layer.WINDOW)
    sync, threads = load_i64(p, Field.SYNC), load_i64(p, Field.THREADS)
    while True:
        item = fetch_add(sync + 8 * TICKET, 1)
        if item >= load_i64(p, Field.TOKENS) * heads:
            break
        token, head = item // heads, item % heads
        position = load_i64(load_i64(p, Field.POSITIONS), token)
        first = max(0, position - window) if window >= 0 else 0
        query = load_i64(p, Field.QKV) + 4 * (token * (heads + 2 * kv_heads) + head) * head_dim
        channels = 2 * (head // group) * head_dim
        attend(
            query, keys + channels, values + channels, load_i64(load_i64(p, Field.TABLES), token),
            load_i64(p, Field.BLOCK_SIZE), load_i64(p, Field.SLOT_BYTES), first, position, head_dim, weights,
            load_i64(p, Field.ATTENDED) + 4 * (token * heads + head) * head_dim,
        )  # fmt: skip
    barrier(sync, threads)


@compiled
def _layer(p, thread, layer):
    record = p + 8 * (HEADER + layer * LAYER_FIELDS)
    constants = load_i64(p, Field.CONSTANTS)
    a, b = load_f32(constants, CONSTANTS + 2 * layer), load_f32(constants, CONSTANTS + 2 * layer + 1)
    width, inner, x, tokens = (
        load_i64(p, Field.WIDTH), load_i64(p, Field.INNER), load_i64(p, Field.X), load_i64(p, Field.TOKENS),
    )  # fmt: skip
    x0 = load_i64(p, Field.X0) if load_i64(p, Field.MIXES) else 0
    heads = load_i64(p, Field.HEADS) * load_i64(p, Field.HEAD_DIM)
    every = heads + 2 * load_i64(p, Field.KV_HEADS) * load_i64(p, Field.HEAD_DIM)
    qkv, attended, inner_rows = (
        load_i64(p, Field.QKV),
        load_i64(p, Field.ATTENDED),
        load_i64(p, Field.INNER_ROWS),
    )

    rows = _prepare(p, thread, x, width, tokens, True, a, b, x0)
    _product(
        p, thread, load_i64(record, Layer.QKV_WEIGHTS), load_i64(record, Layer.QKV_SCALES), width, every,
        rows, tokens, STORE, ONE, ZERO, 0, qkv, every,
    )  # fmt: skip
    _place(p, thread, layer, record, a, b, x0, _stats(p, thread, tokens))
    _attention(p, thread, layer, record)
    rows = _prepare(p, thread, attended, heads, tokens, False, ONE, ZERO, 0)
    _product(
        p, thread, load_i64(record, Layer.OUT_WEIGHTS), load_i64(record, Layer.OUT_SCALES), heads, width,
        rows, tokens, ADD, a, b, x0, x, width,
    )  # fmt: skip
    rows = _prepare(p, thread, x, width, tokens, True, ONE, ZERO, 0)
    _product(
        p, thread, load_i64(record, Layer.UP_WEIGHTS), load_i64(record, Layer.UP_SCALES), width, inner,
        rows, tokens, SQUARE, ONE, ZERO, 0, inner_rows, inner,
    )  # fmt: skip
    rows = _prepare(p, thread, inner_rows, inner, tokens, False, ONE, ZERO, 0)
    _product(
        p, thread, load_i64(record, Layer.DOWN_WEIGHTS), load_i64(record, Layer.DOWN_SCALES), inner, width,
        rows, tokens, ADD, ONE, ZERO, 0, x, width,
    )  # fmt: skip
    if load_i64(p, Field.SMEAR_GATE) != 0 and layer == load_i64(p, Field.MIDDLE_LAYER):
        # Nobody changes x before the next layer's second barrier.
        for token in range(thread, tokens, load_i64(p, Field.THREADS)):
            scaled(x + 4 * token * width, ONE, width, load_i64(p, Field.MIDDLE) + 4 * token * width)


@compiled
def _logits(p, thread):
    """Of the tokens that are sampled, capped, and the best of each, or one that is drawn."""
    width, vocabulary, samples = (
        load_i64(p, Field.WIDTH), load_i64(p, Field.VOCABULARY), load_i64(p, Field.SAMPLES),
    )  # fmt: skip
    threads, sync, constants = (
        load_i64(p, Field.THREADS),
        load_i64(p, Field.SYNC),
        load_i64(p, Field.CONSTANTS),
    )
    last, stride, logits = (
        load_i64(p, Field.LAST_ROWS),
        load_i64(p, Field.LOGIT_STRIDE),
        load_i64(p, Field.LOGITS),
    )
    backout = load_f32(constants, Constant.BACKOUT)
    barrier(sync, threads)
    for index in range(thread, samples, threads):
        row = 4 * width * load_i64(load_i64(p, Field.SAMPLED), index)
        x, out = load_i64(p, Field.X) + row, last + 4 * width * index
        if load_i64(p, Field.SMEAR_GATE) != 0:
            mix(x, load_i64(p, Field.MIDDLE) + row, ONE, -backout, width, out)
        else:
            scaled(x, ONE, width, out)
    barrier(sync, threads)
    rows = _prepare(p, thread, last, width, samples, True, ONE, ZERO, 0)
    _product(
        p, thread, load_i64(p, Field.HEAD_WEIGHTS), load_i64(p, Field.HEAD_SCALES), width, vocabulary,
        rows, samples, STORE, ONE, ZERO, 0, logits, stride,
    )  # fmt: skip
    draws, numbers = load_i64(p, Field.DRAWS), load_i64(p, Field.DRAW_NUMBERS)
    scratch = (
        load_i64(p, Field.PRIVATE)
        + thread * load_i64(p, Field.PRIVATE_BYTES)
        + load_i64(p, Field.PRIVATE_DRAW)
    )
    for index in range(thread, samples, threads):
        row, chosen = logits + 4 * stride * index, load_i64(p, Field.CHOSEN) + 8 * index
        cap_and_choose(row, vocabulary, load_f32(constants, Constant.CAP), chosen)
        if draws != 0:
            draw(row, vocabulary, draws + DRAW_BYTES * index, numbers + NUMBER_BYTES * index, scratch, chosen)


@compiled
def run(p, thread):
    """One thread's part of a step; the whole team must call it. p: the program's address."""
    _embed(p, thread)
    for layer in range(load_i64(p, Field.LAYERS)):
        _layer(p, thread, layer)
    if load_i64(p, Field.SAMPLES) > 0:
        _logits(p, thread)
    # Behind it nobody looks at the program, and the next step may be written there.
    barrier(load_i64(p, Field.SYNC), load_i64(p, Field.THREADS))
