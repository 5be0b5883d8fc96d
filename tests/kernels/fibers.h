// Threads of a CUDA grid as fibers of one thread of the host. A fiber runs until it waits or looks at something that
// another one may change; the scheduler goes round them in turn or, with a seed, in a new order each round, in which
// a warp or a block now and then stands still for a while.
#include <sys/mman.h>

#include <algorithm>
#include <climits>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

static const size_t STACK_BYTES = 1 << 16, STACK_GUARD = 1 << 16;  // pages of any machine, which count once touched

// Switch: keeps on the stack what a called function must keep, and goes on where `to` stopped. The C library's also
// saves the signal mask, by a system call each time.
#if defined(__linux__) && defined(__x86_64__)
extern "C" void emulation_switch(void** from, void* to) __attribute__((visibility("hidden")));
asm(R"(
.text
.globl emulation_switch
.hidden emulation_switch
emulation_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
struct Context {
    void* top = nullptr;
    void start(char* stack, void (*entry)()) {
        void** const frame = (void**)(stack + STACK_BYTES) - 8;  // six registers, the entry, and no caller
        memset(frame, 0, 64);
        frame[6] = (void*)entry;
        top = frame;
    }
};
static void switch_to(Context& from, Context& to) { emulation_switch(&from.top, to.top); }
#else
#include <ucontext.h>
struct Context {
    ucontext_t context;
    void start(char* stack, void (*entry)()) {
        getcontext(&context);
        context.uc_stack.ss_sp = stack, context.uc_stack.ss_size = STACK_BYTES, context.uc_link = nullptr;
        makecontext(&context, entry, 0);
    }
};
static void switch_to(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
#endif

struct Meeting { int arrived = 0, count = 0; long generation = 0; };
struct Warp {
    Meeting meeting;
    u32 values[32];
    float a[16][32], b[8][32];  // of a product: rows, and columns
    long resumes = 0;
};
struct Block {
    unsigned char* shared;
    Meeting all, named[16];
    Meeting* cluster;
    int running = 0;  // of its threads, those that have begun and not ended
};
struct Copy { void* to; const void* from; std::vector<unsigned char> bytes; long due, group = 0; };
struct TileProduct { float* d; int columns; const unsigned char *a, *b; int a_row, b_row, k; bool adds; long group; };
struct Fiber : Thread {
    Context context;
    bool begun = false, done = false;
    const long* awaited = nullptr;  // it waits until this is no longer `seen`
    long seen = 0, cluster_generation = 0;
    Block* home;
    Warp* warp;
    std::vector<Copy> copies;
    long group = 0;  // of the copies that come
    std::vector<TileProduct> products;
    long product_group = 0;
    bool multiplies = false;  // between begin_products and commit_products
};
u32 common_seed = 0;
// Of the launches that come; tests call it before they call a kernel.
extern "C" void shake(u32 seed) { common_seed = seed; }
struct World {
    Context scheduler;
    Options options;
    int threads, cluster, first;
    size_t shared_bytes;
    long grid, round = 0, changes = 0;  // changes: of anything that somebody may wait for
    u32 random = 0;
    std::vector<Block> blocks;
    std::string failure;
};
Thread* me;
static Fiber& self() { return *static_cast<Fiber*>(me); }
static World world;

static u32 draw(u32 below) {
    u32& x = world.random;
    x ^= x << 13, x ^= x >> 17, x ^= x << 5;
    return x % below;
}
static void yield() { switch_to(self().context, world.scheduler); }
static void pause_until_not(const long& word, long seen) {
    Fiber& f = self();
    f.awaited = &word, f.seen = seen;
    yield();
    f.awaited = nullptr;
}
static std::string name_of(const Thread* f) {
    return "thread " + std::to_string(f->thread) + " of block " + std::to_string(f->block);
}
static void fail_with(const std::string& reason) {
    if (world.failure.empty()) world.failure = reason + " (" + name_of(me) + ")";
    for (;;) yield();
}
void fail(const char* reason) { fail_with(reason); }
static void meet(Meeting& m, int count) {
    if (m.arrived && m.count != count) fail("one barrier for different numbers of threads");
    const long generation = m.generation;
    m.count = count;
    if (++m.arrived == count) { m.arrived = 0; m.generation++; world.changes++; return; }
    while (m.generation == generation) pause_until_not(m.generation, generation);
}

// Of the emulated memory: what is due in this round, what is still on its way, and the beginning of a run.
static void settle();
static const char* unsettled();
static bool copies_touch(const Block& block);
static void forget();

static void (*body)(const void*);
static const void* kernel;
static std::string last_failure;
extern "C" const char* failure() { return last_failure.c_str(); }

static void run_fiber() {
    Fiber& f = self();
    f.begun = true, f.home->running++;
    body(kernel);
    if (!f.copies.empty()) fail("a thread ended before its copies had landed");
    if (!f.products.empty()) fail("a thread ended before its products");
    if (f.home->running == 1 && copies_touch(*f.home)) fail("a block ended before its copies had landed");
    f.done = true, f.home->running--, world.changes++;
    for (;;) yield();
}

static const u32 LONGEST_DELAY = 40, LONGEST_LAG = 1000;  // rounds
static void shuffle(std::vector<Fiber*>& fibers) {
    for (size_t i = fibers.size() - 1; i > 0; i--) std::swap(fibers[i], fibers[draw(i + 1)]);
    if (draw(4)) return;
    const u32 kind = draw(4), delay = draw(LONGEST_DELAY);
    Fiber* const chosen = fibers[draw(fibers.size())];
    for (Fiber* f : fibers)
        if (f->warp == chosen->warp || (kind == 0 && f->home == chosen->home)) f->warp->resumes = world.round + delay;
}

// Until all are done, somebody fails, or nothing has happened for too long.
static void schedule(std::vector<Fiber*>& fibers) {
    size_t left = fibers.size();
    long changes = -1, since = 0;
    while (left && world.failure.empty()) {
        if (world.changes != changes) changes = world.changes, since = world.round;
        else if (world.round - since > world.options.patience) {
            me = *std::find_if(fibers.begin(), fibers.end(), [](Fiber* f) { return !f->done; });
            world.failure = "threads wait for each other for ever: " + std::to_string(left) + " are left, ";
            world.failure += name_of(me);
            return;
        }
        world.round++;
        settle();
        if (world.options.seed) shuffle(fibers);
        for (Fiber* f : fibers) {
            if (f->done || (f->awaited && *f->awaited == f->seen) || f->warp->resumes > world.round) continue;
            me = f;
            switch_to(world.scheduler, f->context);
            left -= f->done;
            if (!world.failure.empty()) return;
        }
    }
}

// Blocks first .. first + count - 1, all at once; shared memory starts as NaNs. Returns whether all went well.
static bool run_blocks(int first, int count, size_t shared_bytes) {
    const size_t guard = 4096, room = (shared_bytes + guard + 1023) / 1024 * 1024;
    const int total = count * world.threads;
    world.first = first, world.shared_bytes = shared_bytes, world.blocks.assign(count, Block());
    std::vector<Meeting> clusters(count / world.cluster);
    std::vector<Warp> warps((total + 31) / 32);
    char* const stacks = (char*)mmap(nullptr, total * (STACK_BYTES + STACK_GUARD), PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) abort();
    unsigned char* const memory = (unsigned char*)aligned_alloc(1024, room * count);
    for (int b = 0; b < count; b++) {
        Block& block = world.blocks[b];
        block.shared = memory + b * room, block.cluster = &clusters[b / world.cluster];
        memset(block.shared, 0xff, shared_bytes);
        memset(block.shared + shared_bytes, 0x5a, guard);
    }
    std::vector<Fiber> storage(total);
    std::vector<Fiber*> fibers;
    for (int i = 0; i < total; i++) {
        Fiber& f = storage[i];
        char* const stack = stacks + i * (STACK_BYTES + STACK_GUARD) + STACK_GUARD;
        mprotect(stack - STACK_GUARD, STACK_GUARD, PROT_NONE);
        f.thread = i % world.threads, f.block = first + i / world.threads;
        f.home = &world.blocks[i / world.threads], f.warp = &warps[i / 32], f.shared = f.home->shared;
        f.context.start(stack, run_fiber);
        fibers.push_back(&f);
    }
    schedule(fibers);
    if (world.failure.empty() && unsettled()) world.failure = unsettled();
    forget();
    munmap(stacks, total * (STACK_BYTES + STACK_GUARD));
    for (Block& block : world.blocks)
        for (size_t i = 0; i < guard; i++)
            if (world.failure.empty() && block.shared[shared_bytes + i] != 0x5a)
                world.failure = "a block wrote past its shared memory";
    free(memory);
    last_failure = world.failure;
    if (!world.failure.empty()) fprintf(stderr, "emulation: %s\n", world.failure.c_str());
    return world.failure.empty();
}

int run_grid(bool together, int grid, int cluster, int threads, size_t shared_bytes, void (*run)(const void*),
             const void* what, Options options) {
    if (grid % cluster || threads % 32) abort();
    body = run, kernel = what;
    world = World{};
    world.threads = threads, world.cluster = cluster, world.grid = grid;
    world.options = options, world.random = options.seed * 2654435761u | 1;
    const int at_once = together ? grid : cluster;
    for (int first = 0; first < grid; first += at_once)
        if (!run_blocks(first, at_once, shared_bytes)) return 1;
    return 0;
}
