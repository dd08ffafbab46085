/* Error feedback in one pass: q of a whole block stays in registers between its scale and its residual.
 *
 * A tile is what a CUDA block holds, 8 coordinates x units x threads: 8,192, or 16,384 where a block
 * of scales needs it. It takes as many whole blocks of scales as fit. A warp holds chunks of
 * 256 coordinates, so that a block of scales is a run of chunks, and the sums of chunks meet in
 * shared memory. Longer blocks: error_feedback_long.cu.
 */
#include "gpu_feedback.h"

/* q of what a thread holds of the tile's coordinates [first, last). */
template <int DTYPE, int WARPS, int UNITS>
MPISIGN_FN void load_tile(const void *grad, const float *residual, int64_t first, int64_t last,
                          float rate, bool wide, float q[UNITS][8])
{
    const int64_t i = first + CHUNK * (int64_t)(threadIdx.x >> 5) + 8 * (threadIdx.x & 31);
    if (wide && first + UNITS * WARPS * CHUNK <= last) {
        /* No branch between the loads: all are under way before the first is needed. */
        UNROLL
        for (int u = 0; u < UNITS; u++)
            load_q<DTYPE>(grad, residual, i + CHUNK * u * WARPS, 0xffu, true, rate, q[u]);
    } else {
        UNROLL
        for (int u = 0; u < UNITS; u++) {
            const int64_t at = i + CHUNK * u * WARPS;
            load_q<DTYPE>(grad, residual, at, present8(at, last), wide, rate, q[u]);
        }
    }
}

template <int WARPS, int UNITS>
MPISIGN_FN void feedback_tile(const void *grad, int64_t dtype, float *residual, int64_t length,
                              float rate, int64_t block, int64_t blocks_of_tile, float *scales,
                              const Call &call, unsigned long long *census)
{
    __shared__ float sums[UNITS * WARPS], scale_of[UNITS * WARPS];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int chunks = (int)(block / CHUNK);
    const int64_t first = blockIdx.x * blocks_of_tile * block;
    const int64_t last = min(length, first + blocks_of_tile * block);
    const bool wide = is_aligned(grad) && is_aligned(residual);
    float q[UNITS][8];
    uint32_t counts = 0;
    if (dtype == MPISIGN_FP32)
        load_tile<MPISIGN_FP32, WARPS, UNITS>(grad, residual, first, last, rate, wide, q);
    else if (dtype == MPISIGN_FP16)
        load_tile<MPISIGN_FP16, WARPS, UNITS>(grad, residual, first, last, rate, wide, q);
    else if (dtype == MPISIGN_BF16)
        load_tile<MPISIGN_BF16, WARPS, UNITS>(grad, residual, first, last, rate, wide, q);
    else
        load_tile<MPISIGN_FP64, WARPS, UNITS>(grad, residual, first, last, rate, wide, q);
    UNROLL
    for (int u = 0; u < UNITS; u++) {
        float sum = sum_of_sizes(q[u]);
        if (lane == 0)
            sums[u * WARPS + warp] = sum;
    }
    __syncthreads();
    for (int b = warp; b < (int)blocks_of_tile && first + b * block < length; b += WARPS) {
        /* The next level of tree_sum: at most 64 sums, the rest of 256 are zeros. */
        float part[8];
        UNROLL
        for (int k = 0; k < 8; k++) {
            int at = 8 * lane + k;
            part[k] = at < chunks ? sums[b * chunks + at] : 0.0f;
        }
        float scale = tree_sum256(part) / (float)min(block, length - (first + b * block));
        if (lane == 0) {
            scale_of[b] = scale;
            scales[blockIdx.x * blocks_of_tile + b] = scale_to_keep(scale);
        }
    }
    __syncthreads();
    UNROLL
    for (int u = 0; u < UNITS; u++) {
        int chunk = u * WARPS + warp;
        int64_t i = first + CHUNK * chunk + 8 * lane;
        uint32_t present = present8(i, last);
        float scale = i < last ? scale_of[chunk / chunks] : 0.0f;
        counts += finish_feedback(q[u], scale, i, present, wide, residual, call);
    }
    add_census(counts, census);
}

#define FEEDBACK(name, WARPS, UNITS, BLOCKS)                                                       \
    MPISIGN_KERNEL_OF(32 * WARPS, BLOCKS, name,                                                    \
                      (const void *grad, int64_t dtype, float *residual, int64_t length,           \
                       float rate, int64_t block, int64_t blocks_of_tile, uint8_t *sign,           \
                       uint8_t *mask, float *scales, int64_t zeros, uint64_t seed, uint64_t step,  \
                       uint64_t stream, uint64_t byte_offset, unsigned long long *census))         \
    {                                                                                              \
        Call call = {0, 0, 0, 0, sign, mask, zeros, {seed, step, (uint32_t)stream, byte_offset}};  \
        feedback_tile<WARPS, UNITS>(grad, dtype, residual, length, rate, block, blocks_of_tile,    \
                                    scales, call, census);                                         \
    }

FEEDBACK(feedback, 16, 2, 2)
FEEDBACK(feedback_wide, 16, 4, 1)
