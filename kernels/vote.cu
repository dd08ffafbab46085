/* Majority of a stack of planes, one vote a row: 16 bytes of each row a thread, 8 rows in flight.
 *
 * majority_P has counters of P planes (rows < 2^P; beyond 8,191 see vote_weighted.cu); with masks two counters, and 8 bytes a thread, so
 * that as much is in flight from half the registers. Census int64 (1,): coordinates that tied.
 */
#include "gpu_verdict.h"

template <int P, int W, bool MASKED>
MPISIGN_FN uint32_t vote(const Stack &stack, const Result &result)
{
    const int64_t byte = 4 * W * (blockIdx.x * (int64_t)THREADS + threadIdx.x);
    if (byte >= stack.bytes)
        return 0;
    uint32_t negative[W][P], positive[W][P], more[W], tie[W];
    clear<P, W>(negative);
    clear<P, W>(positive);
    count_votes<P, W, MASKED>(stack, 0, stack.rows, byte, negative, positive);
    UNROLL
    for (int k = 0; k < W; k++) {
        if constexpr (MASKED)
            compare_counters(negative[k], positive[k], P, &more[k], &tie[k]);
        else
            decide<P>(negative[k], (uint32_t)stack.rows, &more[k], &tie[k]);
    }
    return announce<W>(more, tie, byte, result);
}

#define MAJORITY(name, P, W, MASKED)                                                               \
    MPISIGN_KERNEL(THREADS, name,                                                                  \
                   (const uint8_t *sign, const uint8_t *mask, int64_t row_stride, int64_t rows,    \
                    int64_t length, uint8_t *out_sign, uint8_t *out_mask, int64_t ties,            \
                    uint64_t seed, uint64_t step, uint64_t stream, uint64_t byte_offset,           \
                    unsigned long long *census))                                                   \
    {                                                                                              \
        Stack stack = make_stack(sign, mask, row_stride, rows, length);                            \
        Result result = {                                                                          \
            out_sign, out_mask, length, ties, {seed, step, (uint32_t)stream, byte_offset}};        \
        add_census(vote<P, W, MASKED>(stack, result), census);                                     \
    }

MAJORITY(majority_1, 1, 4, false)
MAJORITY(majority_2, 2, 4, false)
MAJORITY(majority_3, 3, 4, false)
MAJORITY(majority_4, 4, 4, false)
MAJORITY(majority_5, 5, 4, false)
MAJORITY(majority_7, 7, 4, false)
MAJORITY(majority_13, 13, 4, false)
MAJORITY(majority_masked_1, 1, 4, true)
MAJORITY(majority_masked_2, 2, 2, true)
MAJORITY(majority_masked_3, 3, 2, true)
MAJORITY(majority_masked_4, 4, 2, true)
MAJORITY(majority_masked_7, 7, 2, true)
MAJORITY(majority_masked_13, 13, 2, true)
