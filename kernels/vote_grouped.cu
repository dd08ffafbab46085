/* Majority of each group of consecutive rows, then across groups, in one pass over the stack.
 *
 * A group that ties abstains. Two levels of counters in registers: one group's, and the groups'.
 */
#include "gpu_verdict.h"

template <int P, int W, bool MASKED>
MPISIGN_FN uint32_t vote(const Stack &stack, int64_t group, const Result &result)
{
    const int64_t byte = 4 * W * (blockIdx.x * (int64_t)THREADS + threadIdx.x);
    if (byte >= stack.bytes)
        return 0;
    uint32_t minus[W][P], plus[W][P], more[W], tie[W];
    clear<P, W>(minus);
    clear<P, W>(plus);
    for (int64_t first = 0; first < stack.rows; first += group) {
        uint32_t negative[W][P], positive[W][P];
        clear<P, W>(negative);
        clear<P, W>(positive);
        count_votes<P, W, MASKED>(stack, first, first + group, byte, negative, positive);
        UNROLL
        for (int k = 0; k < W; k++) {
            uint32_t more_here, tie_here;
            if constexpr (MASKED)
                compare_counters(negative[k], positive[k], P, &more_here, &tie_here);
            else
                decide<P>(negative[k], (uint32_t)group, &more_here, &tie_here);
            ripple(minus[k], 0, P, more_here);
            ripple(plus[k], 0, P, ~(more_here | tie_here));
        }
    }
    UNROLL
    for (int k = 0; k < W; k++)
        compare_counters(minus[k], plus[k], P, &more[k], &tie[k]);
    return announce<W>(more, tie, byte, result);
}

#define MAJORITY(name, P, W, MASKED)                                                               \
    MPISIGN_KERNEL(THREADS, name,                                                                  \
                   (const uint8_t *sign, const uint8_t *mask, int64_t row_stride, int64_t rows,    \
                    int64_t length, int64_t group, uint8_t *out_sign, uint8_t *out_mask,           \
                    int64_t ties, uint64_t seed, uint64_t step, uint64_t stream,                   \
                    uint64_t byte_offset, unsigned long long *census))                             \
    {                                                                                              \
        Stack stack = make_stack(sign, mask, row_stride, rows, length);                            \
        Result result = {                                                                          \
            out_sign, out_mask, length, ties, {seed, step, (uint32_t)stream, byte_offset}};        \
        add_census(vote<P, W, MASKED>(stack, group, result), census);                              \
    }

MAJORITY(majority_grouped_4, 4, 2, false)
MAJORITY(majority_grouped_13, 13, 1, false)
MAJORITY(majority_grouped_masked_4, 4, 2, true)
MAJORITY(majority_grouped_masked_13, 13, 1, true)
