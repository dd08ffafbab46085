/* A stack of planes to count planes, lowest bit first: of negative votes, and of positive ones if the
 * stack is masked. `planes` may be more than the counters have: those are zero. */
#include "gpu_count.h"

template <int P, int W>
MPISIGN_FN void store_counts(const uint32_t counter[W][P], int64_t byte, int64_t length,
                             int64_t planes, uint8_t *out, int64_t plane_stride)
{
    const int64_t bytes = (length + 7) / 8;
    uint32_t words[W];
    UNROLL
    for (int j = 0; j < P; j++) {
        if (j >= planes)
            break;
        UNROLL
        for (int k = 0; k < W; k++)
            words[k] = counter[k][j] & present32(byte, k, length);
        store_words<W>(out + j * plane_stride, byte, bytes, words);
    }
    UNROLL
    for (int k = 0; k < W; k++)
        words[k] = 0;
    for (int64_t j = P; j < planes; j++)
        store_words<W>(out + j * plane_stride, byte, bytes, words);
}

template <int P, int W, bool MASKED, bool WEIGHTED>
MPISIGN_FN void tally(const Stack &stack, const uint32_t *weights, int64_t length, int64_t planes,
                      uint8_t *negatives, uint8_t *positives, int64_t plane_stride)
{
    const int64_t byte = 4 * W * (blockIdx.x * (int64_t)THREADS + threadIdx.x);
    if (byte >= stack.bytes)
        return;
    uint32_t negative[W][P], positive[W][P];
    clear<P, W>(negative);
    clear<P, W>(positive);
    if constexpr (WEIGHTED)
        count_weighted<P, MASKED>(stack, weights, byte, negative[0], positive[0]);
    else
        count_votes<P, W, MASKED>(stack, 0, stack.rows, byte, negative, positive);
    store_counts<P, W>(negative, byte, length, planes, negatives, plane_stride);
    if constexpr (MASKED)
        store_counts<P, W>(positive, byte, length, planes, positives, plane_stride);
}

#define TALLY(name, P, W, MASKED, WEIGHTED)                                                        \
    MPISIGN_KERNEL(THREADS, name,                                                                  \
                   (const uint8_t *sign, const uint8_t *mask, int64_t row_stride, int64_t rows,    \
                    int64_t length, const uint32_t *weights, int64_t planes, uint8_t *negatives,   \
                    uint8_t *positives, int64_t plane_stride))                                     \
    {                                                                                              \
        tally<P, W, MASKED, WEIGHTED>(make_stack(sign, mask, row_stride, rows, length), weights,   \
                                      length, planes, negatives, positives, plane_stride);         \
    }

TALLY(tally_4, 4, 4, false, false)
TALLY(tally_7, 7, 4, false, false)
TALLY(tally_13, 13, 2, false, false)
TALLY(tally_masked_4, 4, 2, true, false)
TALLY(tally_masked_7, 7, 2, true, false)
TALLY(tally_masked_13, 13, 1, true, false)
TALLY(tally_weighted_16, 16, 1, false, true)
TALLY(tally_weighted_31, 31, 1, false, true)
TALLY(tally_weighted_masked_16, 16, 1, true, true)
TALLY(tally_weighted_masked_31, 31, 1, true, true)
