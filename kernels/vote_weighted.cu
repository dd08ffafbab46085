/* Majority with one uint32 weight a row; 1 each if `weights` is 0, for stacks of over 8,191 rows.
 *
 * How many planes the counts need, only the device knows: a block adds up the weights and takes the
 * shorter counters if they hold the sum (which is below 2^31). */
#include "gpu_verdict.h"

template <int P, bool MASKED>
MPISIGN_FN uint32_t vote(const Stack &stack, const uint32_t *weights, uint32_t total, int64_t byte,
                         const Result &result)
{
    uint32_t negative[1][P], positive[1][P], more[1], tie[1];
    clear<P, 1>(negative);
    clear<P, 1>(positive);
    count_weighted<P, MASKED>(stack, weights, byte, negative[0], positive[0]);
    if constexpr (MASKED)
        compare_counters(negative[0], positive[0], P, more, tie);
    else
        decide<P>(negative[0], total, more, tie);
    return announce<1>(more, tie, byte, result);
}

template <bool MASKED>
MPISIGN_FN uint32_t vote_weighted(const Stack &stack, const uint32_t *weights, const Result &result)
{
    const uint32_t total = total_weight(weights, stack.rows);
    const int64_t byte = 4 * (blockIdx.x * (int64_t)THREADS + threadIdx.x);
    if (byte >= stack.bytes)
        return 0;
    if (total < 1u << 16)
        return vote<16, MASKED>(stack, weights, total, byte, result);
    return vote<31, MASKED>(stack, weights, total, byte, result);
}

#define MAJORITY(name, MASKED)                                                                     \
    MPISIGN_KERNEL(THREADS, name,                                                                  \
                   (const uint8_t *sign, const uint8_t *mask, int64_t row_stride, int64_t rows,    \
                    int64_t length, const uint32_t *weights, uint8_t *out_sign, uint8_t *out_mask, \
                    int64_t ties, uint64_t seed, uint64_t step, uint64_t stream,                   \
                    uint64_t byte_offset, unsigned long long *census))                             \
    {                                                                                              \
        Stack stack = make_stack(sign, mask, row_stride, rows, length);                            \
        Result result = {                                                                          \
            out_sign, out_mask, length, ties, {seed, step, (uint32_t)stream, byte_offset}};        \
        add_census(vote_weighted<MASKED>(stack, weights, result), census);                         \
    }

MAJORITY(majority_weighted, false)
MAJORITY(majority_weighted_masked, true)
