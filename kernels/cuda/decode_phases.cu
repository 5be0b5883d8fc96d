// The phases of a decode step (decode_network.cu says how blocks share them). tag: of what a phase reads; what it gives
// to others has the next one.

DEVICE void attention_phase(const Step& s, const Layer* layer, int index, int& chunk, u32 tag) {
    product<Cut<WIDTH>, false, TEAM>(
        chunk, QKV_UNITS,
        Inputs{s.stream, WIDTH / 2, WIDTH, tag, true, index == 0 ? s.x : nullptr, s.x_stride, s.count},
        [&](int unit, int, int pair) {
            const int channel = qkv_row(unit) + pair * 2;
            const u32 bias = BIASED ? *(const u32*)(layer->qkv_bias + channel) : 0;
            return Early{{bias, 0}, factors_of(layer->qkv_factors, channel), {}};
        },
        [&](int unit, int row, int pair, int peer, const Early& early, float2 v, float2) {
            const float factor = norm_factor(row, s.eps);
            const int part = unit / PART_UNITS, channel = rank_index() * SLICE + unit % PART_UNITS * UNIT + pair * 2;
            v = scaled(v, early.factor);
            u32 both = to_bf16_pair(v.x * factor, v.y * factor);
            const u32 bias = early.before.low;
            if (BIASED) both = to_bf16_pair(low_half(both) + low_half(bias), high_half(both) + high_half(bias));
            post(s, (row * (GROUP + 2) + part) * (D / 2) + channel / 2, peer, both, tag + 1);
        });
#pragma unroll 1
    for (int row = 0; row < ROWS; row++) {
        if (row_of(s, row) < 0) continue;
        const int position = s.positions[row], count = key_chunks(position, rank_index());
        attend(s, layer, row, position, chunk, count, tag + 1);
        chunk += count;
    }
    lap(ATTENDING);
    consumers_meet();
    lap(MEETING);
    send_found(s, tag + 1);
    lap(SENDING);
    finish_attention(s, tag + 1);
    store_new(s, layer);  // nobody waits for it before the next step
    lap(FINISHING);
}

// middle = x + attended Wo^T
DEVICE void output_phase(const Step& s, const Layer* layer, int index, int& chunk, u32 tag) {
    // Who has no outputs is waited for by nobody, and may come when `attended` is the next layer's.
    if (owned_units() == 0) return;
    product<Cut<HEADS * D>, false, 1>(
        chunk, owned_units(), Inputs{s.attended, HEADS * D / 2, HEADS * D, tag},
        [&](int unit, int row, int pair) {
            const int channel = owned_row(unit) + pair * 2;
            return Early{residual(s, index, (row * WIDTH + channel) / 2), factors_of(layer->o_factors, channel), {}};
        },
        [&](int unit, int row, int pair, int, const Early& early, float2 v, float2) {
            const int channel = owned_row(unit) + pair * 2;
            const u32 before = residual_arrived(s, early.before, index, row, channel, tag - 1);
            put(s.middle + (row * WIDTH + channel) / 2, scaled_and_added(v, early.factor, before), tag + 1);
        });
}

// inner = activation(norm(middle) Win^T)
DEVICE void inner_phase(const Step& s, const Layer* layer, int& chunk, u32 tag) {
    const int start = first_unit(block_index(), IN_UNITS), units = first_unit(block_index() + 1, IN_UNITS) - start;
    product<Cut<WIDTH>, SWIGLU, 1>(
        chunk, units, Inputs{s.middle, WIDTH / 2, WIDTH, tag, true},
        [&](int unit, int, int pair) {
            const int row = (start + unit) * UNIT + pair * 2;
            return Early{{}, factors_of(layer->in_factors, row), factors_of(layer->in_factors, SWIGLU ? row + 8 : row)};
        },
        [&](int unit, int row, int pair, int, const Early& early, float2 v, float2 up) {
            const float factor = norm_factor(row, s.eps);
            int channel = (start + unit) * UNIT + pair * 2;
            v = scaled(v, early.factor);
            v.x *= factor;
            v.y *= factor;
            if (SWIGLU) {
                up = scaled(up, early.other);
                v.x = v.x / (1.0f + exponential(-v.x)) * (up.x * factor);
                v.y = v.y / (1.0f + exponential(-v.y)) * (up.y * factor);
                channel = (start + unit) * 8 + pair * 2;
            }
            else {
                v.x = fmaxf(v.x, 0.0f);
                v.y = fmaxf(v.y, 0.0f);
                v.x *= v.x;
                v.y *= v.y;
            }
            put(s.inner + (row * INNER + channel) / 2, to_bf16_pair(v.x, v.y), tag + 1);
        });
}

#ifdef MLP_OUT_WHOLE
// x = middle + inner Wout^T, of which a block has all inputs. The ranks' shares are summed as if they had come from them.
DEVICE void down_phase(const Step& s, const Layer* layer, int& chunk, u32 tag) {
    if (owned_units() == 0) return;  // as in output_phase
    product<Cut<PADDED, TEAM>, false, TEAM>(
        chunk, owned_units(), Inputs{s.inner, INNER / 2, INNER, tag},
        [&](int unit, int row, int pair) {
            const int channel = owned_row(unit) + pair * 2;
            return Early{get(s.middle + (row * WIDTH + channel) / 2), factors_of(layer->out_factors, channel), {}};
        },
        [&](int unit, int row, int pair, int rank, const Early& early, float2 v, float2) {
            const int channel = owned_row(unit) + pair * 2, place = (row * WIDTH + channel) / 2;
            const u32 before = arrived(early.before, s.middle + place, tag - 1);
            const u32 both = scaled_and_added(float2{team_sum(v.x), team_sum(v.y)}, early.factor, before);
            if (rank == 0) put(s.stream + place, both, tag + 1);
        });
}
#else
// x = middle + inner Wout^T, of which each rank of a team has a share of the inputs
DEVICE void down_phase(const Step& s, const Layer* layer, int& chunk, u32 tag) {
    constexpr int PLACES = QKV_MAIL + FOUND_MAIL;
    const int start = rank_index() * SHARE, items = owned_units() * ROWS * 8 * TEAM;
    // Who has no inputs waits for one all the same: in a chain it may be here before the layer in front has ended, and what it
    // sends would take the place of sums that are still to be read.
    if (SHARE * (TEAM - 1) >= INNER && start >= INNER) await(s.inner, tag);
    product<Cut<SHARE>, false, 1>(
        chunk, TEAM_UNITS, Inputs{s.inner + start / 2, INNER / 2, INNER - start, tag},
        [&](int, int, int) { return Early{}; },
        [&](int unit, int row, int pair, int, const Early&, float2 v, float2) {
            const int place = PLACES + ((rank_index() * OWNED + unit / TEAM) * ROWS + row) * UNIT + pair * 2;
            post2(s, place, unit % TEAM, v.x, v.y, tag + 1);
        });
    // A lane for each rank and two channels; all lanes of a warp go together.
#pragma unroll 1
    for (int first = warp_index() * 32; first < items; first += THREADS) {
        const int item = min(first + lane_index(), items - 1), rank = item % TEAM, pair = item / TEAM % 8;
        const int row = item / (TEAM * 8) % ROWS, unit = item / (TEAM * 8 * ROWS), channel = owned_row(unit) + pair * 2;
        const Word* const own = s.middle + (row * WIDTH + channel) / 2;
        const int place = PLACES + ((rank * OWNED + unit) * ROWS + row) * UNIT + pair * 2;
        const float2 factor = factors_of(layer->out_factors, channel);
        const Word asked = get(own);
        const float2 share = collect(s, place, tag + 1);
        const u32 before = arrived(asked, own, tag - 1);
        const u32 both = scaled_and_added(float2{team_sum(share.x), team_sum(share.y)}, factor, before);
        if (rank == 0 && first + lane_index() < items) put(s.stream + (row * WIDTH + channel) / 2, both, tag + 1);
    }
    lap(FINISHING);
}
#endif

DEVICE void head_phase(const Step& s, int& chunk, u32 tag) {
    const int start = first_unit(block_index(), HEAD_UNITS), units = first_unit(block_index() + 1, HEAD_UNITS) - start;
    product<Cut<WIDTH>, false, 1>(
        chunk, units, Inputs{s.stream, WIDTH / 2, WIDTH, tag, true, nullptr, 0, 0, s.final_norm, true, s.eps},
        [&](int unit, int, int pair) {
            return Early{{}, factors_of(s.head_factors, (start + unit) * UNIT + pair * 2), {}};
        },
        [&](int unit, int row, int pair, int, const Early& early, float2 v, float2) {
            v = scaled(v, early.factor);
            u16* const to = s.logits + row * s.logits_stride + (start + unit) * UNIT + pair * 2;
            if (row < s.count) *(u32*)to = to_bf16_pair(v.x, v.y);
        });
    if (block_index() == 0 && thread_index() < min(s.count, ROWS))
        s.entry_positions[thread_index()] =
            s.entry_tokens[thread_index()] < 0 ? 0 : s.positions[thread_index()] + 1;
}
