// kernels/cuda/decode_step.cu as a function of the host (see emulation.h). Built with the same -D options as on a device.
#include "emulation.h"

#include "../../kernels/cuda/eight_bits.cu"
#include "../../kernels/cuda/attention_tile.cu"
#include "../../kernels/cuda/new_token.cu"
#include "../../kernels/cuda/decode_network.cu"
#include "../../kernels/cuda/decode_exchange.cu"
#include "../../kernels/cuda/decode_split.cu"
#include "../../kernels/cuda/decode_product.cu"
#include "../../kernels/cuda/decode_attention.cu"
#include "../../kernels/cuda/decode_phases.cu"
#include "../../kernels/cuda/decode_step.cu"

#ifdef CLUSTERED
static const int TOGETHER = TEAM;
#else
static const int TOGETHER = 1;
#endif

#ifdef CLUSTERED
static const int MAIL_BYTES = MAIL * (int)sizeof(Word);
#else
static const int MAIL_BYTES = 0;
#endif
// What a block takes, for kernels/decode_shape.py to have the same number.
extern "C" int memory_bytes() { return AT_MAIL + MAIL_BYTES; }

static Options options_of(u32 seed, long long nanoseconds) {
    Options options;
    options.seed = seed, options.round_nanoseconds = nanoseconds;
    return options;
}

#if !defined(RESIDENT) && !defined(CLUSTERED)
// Kernels of a chain from `first` on, `count` of them, all at once, as far ahead of each other as the device can let them
// run: the blocks of one that have ended do not wait for those in front of it.
extern "C" int emulate_at_once(int shared_bytes, const Step* step, int first, int count, u32 seed, long long nanoseconds) {
    return launch_together(CTAS * count, 1, ALL_THREADS, shared_bytes, [=] {
        const int kernel = first + me->block / CTAS;
        me->block %= CTAS;
        decode_step(*step, kernel / LAST, kernel < LAYERS * LAST ? kernel % LAST : LAST);
    }, options_of(seed, nanoseconds));
}
#endif

// One launch; for one kernel of several, index and phase say which. 0, or 1 with a reason.
extern "C" int emulate(int shared_bytes, const Step* step, int index, int phase, u32 seed, long long nanoseconds) {
    return launch_together(CTAS, TOGETHER, ALL_THREADS, shared_bytes, [=] {
        decode_step(*step, index, phase);
        if (!me->waited && thread_index() < THREADS) fail("it ends before what was launched in front of it");
    }, options_of(seed, nanoseconds));
}
