/* Runs CUDA blocks one after the other, the threads of a block as fibres that give way at barriers.
 *
 * A launch stops at the first fault: an access outside all registered buffers, a misaligned one, any
 * undefined behaviour, a barrier or a warp's exchange that some threads do not come to.
 */
#include "cuda_on_cpu.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <link.h>
#include <map>
#include <string>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>

Index threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {
namespace {

enum State { READY, AT_BARRIER, AT_EXCHANGE, DONE };
enum { MAX_THREADS = 1024, STACK = 128 * 1024 };

struct Fibre {
    ucontext_t context;
    State state;
    char kind;
    int turn; /* of two sets of slots, so that a fast lane does not overwrite what a slow one reads */
};

struct Kernel {
    int threads;
    void (*kernel)();
    Invoke invoke;
    std::vector<size_t> sizes;
};

struct Range {
    uintptr_t first, last;
};

std::map<std::string, Kernel> &kernels()
{
    static std::map<std::string, Kernel> all;
    return all;
}

std::vector<Range> buffers, module_ranges;
Fibre fibres[MAX_THREADS];
uint32_t slots[2][MAX_THREADS];
char *stacks;
ucontext_t scheduler;
int current;
const Kernel *running;
const char *running_name;
void **running_arguments;
std::string fault;

void give_way(State state)
{
    int me = current;
    fibres[me].state = state;
    swapcontext(&fibres[me].context, &scheduler);
}

/* Never returns: the fibre, and with it the launch, is given up. */
void fail(const char *format, ...)
{
    char text[400];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    char where[200];
    snprintf(where, sizeof where, "%s, block %u, thread %d: ", running_name, blockIdx.x, current);
    if (fault.empty())
        fault = std::string(where) + text;
    setcontext(&scheduler);
}

void body()
{
    running->invoke(running->kernel, running_arguments);
    fibres[current].state = DONE;
}

void start_fibre(int t)
{
    Fibre &f = fibres[t];
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stacks + (size_t)t * STACK;
    f.context.uc_stack.ss_size = STACK;
    f.context.uc_link = &scheduler;
    f.state = READY;
    f.turn = 0;
    makecontext(&f.context, body, 0);
}

/* Lets go those that wait for nobody any more; false if nobody can go on. */
bool release(int threads)
{
    int waiting = 0;
    bool any = false;
    for (int t = 0; t < threads; t++)
        waiting += fibres[t].state == AT_BARRIER;
    if (waiting == threads) {
        for (int t = 0; t < threads; t++)
            fibres[t].state = READY;
        return true;
    }
    for (int first = 0; first < threads; first += 32) {
        int here = 0;
        for (int t = first; t < first + 32; t++)
            here += fibres[t].state == AT_EXCHANGE && fibres[t].kind == fibres[first].kind;
        if (here < 32)
            continue;
        any = true;
        for (int t = first; t < first + 32; t++)
            fibres[t].state = READY;
    }
    return any;
}

void run_block(int threads, bool reverse)
{
    for (int t = 0; t < threads; t++)
        start_fibre(t);
    for (;;) {
        volatile int k = 0; /* setcontext comes back here: not in a register */
        int done = 0;
        for (; k < threads; k = k + 1) {
            int t = reverse ? threads - 1 - k : k;
            if (fibres[t].state != READY)
                continue;
            current = t;
            threadIdx = {(unsigned)t, 0, 0};
            swapcontext(&scheduler, &fibres[t].context);
            if (!fault.empty())
                return;
        }
        for (int t = 0; t < threads; t++)
            done += fibres[t].state == DONE;
        if (done == threads)
            return;
        if (!release(threads)) {
            int n[4] = {0, 0, 0, 0};
            for (int t = 0; t < threads; t++)
                n[fibres[t].state]++;
            char text[200];
            snprintf(text, sizeof text,
                     "%s, block %u: %d threads wait at a barrier, %d in a warp's exchange, "
                     "%d have left",
                     running_name, blockIdx.x, n[AT_BARRIER], n[AT_EXCHANGE], n[DONE]);
            fault = text;
            return;
        }
    }
}

int note_module(dl_phdr_info *info, size_t, void *)
{
    uintptr_t me = (uintptr_t)&note_module;
    std::vector<Range> found;
    bool mine = false;
    for (int k = 0; k < info->dlpi_phnum; k++) {
        if (info->dlpi_phdr[k].p_type != PT_LOAD)
            continue;
        uintptr_t at = info->dlpi_addr + info->dlpi_phdr[k].p_vaddr;
        found.push_back({at, at + info->dlpi_phdr[k].p_memsz});
        mine |= at <= me && me < found.back().last;
    }
    if (mine)
        module_ranges = found;
    return mine;
}

/* Ranges are sorted and do not overlap. */
bool within(const std::vector<Range> &ranges, uintptr_t at, size_t size)
{
    auto next = std::upper_bound(ranges.begin(), ranges.end(), at,
                                 [](uintptr_t x, const Range &r) { return x < r.first; });
    return next != ranges.begin() && at + size <= (next - 1)->last;
}

void check(const void *address, size_t size, const char *what)
{
    uintptr_t at = (uintptr_t)address, low = (uintptr_t)stacks;
    if (at >= low && at + size <= low + (size_t)MAX_THREADS * STACK)
        return;
    if (within(buffers, at, size) || within(module_ranges, at, size))
        return;
    long long best = 0;
    size_t distance = SIZE_MAX;
    for (const Range &r : buffers) {
        size_t d = at >= r.last ? at - r.last : at >= r.first ? 0 : r.first - at;
        if (d < distance) {
            distance = d;
            best = at >= r.first ? (long long)(at - r.first) : -(long long)(r.first - at);
        }
    }
    fail("%s of %zu bytes outside all buffers, at byte %lld of the nearest", what, size, best);
}

} // namespace

bool add(const char *name, int threads, void (*kernel)(), Invoke invoke,
         std::initializer_list<size_t> sizes)
{
    return kernels().insert({name, {threads, kernel, invoke, sizes}}).second;
}

void barrier()
{
    give_way(AT_BARRIER);
}

const uint32_t *exchange(char kind, uint32_t mask, uint32_t value)
{
    int me = current, turn = fibres[me].turn;
    if (mask != 0xffffffffu)
        fail("an exchange among %08x: only whole warps are run here", mask);
    slots[turn][me] = value;
    fibres[me].kind = kind;
    fibres[me].turn = !turn;
    give_way(AT_EXCHANGE);
    return &slots[turn][me & ~31];
}

extern "C" {

void cuda_buffer(uintptr_t first, size_t size)
{
    auto next = std::upper_bound(buffers.begin(), buffers.end(), first,
                                 [](uintptr_t x, const Range &r) { return x < r.first; });
    buffers.insert(next, {first, first + size});
}

void cuda_forget_buffers()
{
    buffers.clear();
}

/* Blocks [first, grid) of a launch. 0, or what went wrong, good until the next launch. */
const char *cuda_launch(const char *name, int64_t first, int64_t grid, int block,
                        void **arguments, const int64_t *sizes, int n, int reverse)
{
    if (!stacks) {
        stacks = (char *)mmap(0, (size_t)MAX_THREADS * STACK, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        dl_iterate_phdr(note_module, 0);
    }
    fault.clear();
    auto found = kernels().find(name);
    if (found == kernels().end())
        return "there is no such kernel";
    running = &found->second;
    running_name = name;
    running_arguments = arguments;
    if (block != running->threads || block > MAX_THREADS || block % 32 || grid < 1)
        return "block is not what the kernel was made for, or grid is empty";
    if ((size_t)n != running->sizes.size())
        return "wrong number of arguments";
    for (int k = 0; k < n; k++)
        if ((size_t)sizes[k] != running->sizes[(size_t)k])
            return "an argument has another size than the kernel's parameter";
    blockDim = {(unsigned)block, 1, 1};
    gridDim = {(unsigned)grid, 1, 1};
    for (int64_t b = first; b < grid && fault.empty(); b++) {
        blockIdx = {(unsigned)(reverse ? grid - 1 - (b - first) : b), 0, 0};
        run_block(block, reverse != 0);
    }
    return fault.empty() ? 0 : fault.c_str();
}

/* --- what GCC's instrumentation calls -------------------------------------------------------- */

#define ACCESS(size)                                                                               \
    void __asan_load##size##_noabort(void *at) { check(at, size, "load"); }                        \
    void __asan_store##size##_noabort(void *at) { check(at, size, "store"); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __asan_loadN_noabort(void *at, size_t size) { check(at, size, "load"); }
void __asan_storeN_noabort(void *at, size_t size) { check(at, size, "store"); }
void __asan_handle_no_return() {}
void __asan_before_dynamic_init(const char *) {}
void __asan_after_dynamic_init() {}

struct Place {
    const char *file;
    uint32_t line, column;
};

#define UNDEFINED(name)                                                                            \
    void __ubsan_handle_##name(Place *at, void *, void *)                                          \
    {                                                                                              \
        fail("undefined behaviour (" #name ") at %s:%u", at->file, at->line);                      \
    }
UNDEFINED(type_mismatch_v1) /* misaligned, null */
UNDEFINED(out_of_bounds)
UNDEFINED(shift_out_of_bounds)
UNDEFINED(add_overflow)
UNDEFINED(sub_overflow)
UNDEFINED(mul_overflow)
UNDEFINED(negate_overflow)
UNDEFINED(divrem_overflow)
UNDEFINED(builtin_unreachable)
UNDEFINED(missing_return)
UNDEFINED(pointer_overflow)
UNDEFINED(load_invalid_value)
UNDEFINED(float_cast_overflow)
UNDEFINED(nonnull_arg)
UNDEFINED(vla_bound_not_positive)
UNDEFINED(invalid_builtin)
}
} // namespace cuda_on_cpu
