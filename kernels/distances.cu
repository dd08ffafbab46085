/* How far each row of a stack is from its group's vote, where both have one: bits counted a row.
 *
 * A thread votes on its words of a group and reads the group's rows once more, out of the cache. A
 * block adds up a row's differences in shared memory, then to `distances` at once.
 */
#include "gpu_verdict.h"

enum { ROWS_KEPT = THREADS };

/* counts[row] += the differences of all lanes of the warp. */
MPISIGN_FN void add_of_warp(uint32_t *counts, int64_t row, uint32_t differences)
{
    UNROLL
    for (int step = 16; step > 0; step /= 2)
        differences += __shfl_xor_sync(0xffffffffu, differences, step);
    if ((threadIdx.x & 31) == 0 && differences)
        atomicAdd(&counts[row % ROWS_KEPT], differences);
}

/* What was counted up to row `last`, and since the rows before its multiple of ROWS_KEPT. */
MPISIGN_FN void hand_over(uint32_t *counts, int64_t last, unsigned long long *distances)
{
    __syncthreads();
    if (counts[threadIdx.x])
        atomicAdd(&distances[last - last % ROWS_KEPT + threadIdx.x],
                  (unsigned long long)counts[threadIdx.x]);
    counts[threadIdx.x] = 0;
    __syncthreads();
}

/* Every thread of the block comes here: one without bytes has no differences. */
template <int P, int W, bool MASKED>
MPISIGN_FN void distances_of(const Stack &stack, int64_t group, int64_t length,
                             unsigned long long *distances)
{
    __shared__ uint32_t counts[ROWS_KEPT];
    const int64_t byte = 4 * W * (blockIdx.x * (int64_t)THREADS + threadIdx.x);
    const Reach reach = reach_of<W>(stack, byte);
    counts[threadIdx.x] = 0;
    __syncthreads();
    for (int64_t first = 0; first < stack.rows; first += group) {
        uint32_t negative[W][P], positive[W][P], vote[W], here[W];
        clear<P, W>(negative);
        clear<P, W>(positive);
        count_votes<P, W, MASKED>(stack, first, first + group, byte, negative, positive);
        UNROLL
        for (int k = 0; k < W; k++) {
            uint32_t tie;
            if constexpr (MASKED)
                compare_counters(negative[k], positive[k], P, &vote[k], &tie);
            else
                decide<P>(negative[k], (uint32_t)group, &vote[k], &tie);
            here[k] = present32(byte, k, length) & ~tie;
        }
        ROLLED
        for (int64_t row = first; row < first + group; row++) {
            uint32_t s[1][W], m[1][W], differences = 0;
            load_rows<1, W, MASKED>(stack, reach, row, row + 1, byte, s, m);
            UNROLL
            for (int k = 0; k < W; k++) {
                uint32_t differ = (s[0][k] ^ vote[k]) & here[k];
                differences += (uint32_t)__popc(MASKED ? differ & m[0][k] : differ);
            }
            add_of_warp(counts, row, differences);
            if (row % ROWS_KEPT == ROWS_KEPT - 1 || row == stack.rows - 1)
                hand_over(counts, row, distances);
        }
    }
}

#define DISTANCES(name, P, W, MASKED)                                                              \
    MPISIGN_KERNEL(THREADS, name,                                                                  \
                   (const uint8_t *sign, const uint8_t *mask, int64_t row_stride, int64_t rows,    \
                    int64_t length, int64_t group, unsigned long long *distances))                 \
    {                                                                                              \
        const Stack stack = make_stack(sign, mask, row_stride, rows, length);                      \
        distances_of<P, W, MASKED>(stack, group, length, distances);                               \
    }

DISTANCES(distances_2, 2, 4, false)
DISTANCES(distances_4, 4, 4, false)
DISTANCES(distances_13, 13, 2, false)
DISTANCES(distances_masked_2, 2, 4, true)
DISTANCES(distances_masked_4, 4, 2, true)
DISTANCES(distances_masked_13, 13, 1, true)
