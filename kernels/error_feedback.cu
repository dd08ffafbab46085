/* Error feedback in one pass: q of a whole block stays in registers between its scale and its residual.
 *
 * A tile is what a CUDA block holds, 8 coordinates x units x threads: 8,192, or 32,768 where a block
 * of scales needs it. It takes as many whole blocks of scales as fit. A warp holds chunks of
 * 256 coordinates, so that a block of scales is a run of chunks, and the sums of chunks meet in
 * shared memory. Longer blocks: error_feedback_long.cu.
 */
#include "gpu_feedback.h"

template <int DTYPE, int WARPS, int UNITS>
MPISIGN_FN void feedback_tile(const void *grad, float *residual, int64_t length, float rate,
                              int64_t block, int64_t blocks_of_tile, float *scales, const Call &call,
                              unsigned long long *census)
{
    __shared__ float sums[UNITS * WARPS], scale_of[UNITS * WARPS];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int chunks = (int)(block / CHUNK);
    const int64_t first = blockIdx.x * blocks_of_tile * block;
    const int64_t last = min(length, first + blocks_of_tile * block);
    const bool wide = is_aligned(grad) && is_aligned(residual);
    float q[UNITS][8];
    uint32_t counts = 0;
    if (wide && first + UNITS * WARPS * CHUNK <= last) {
        /* No branch between the loads: all are under way before the first is needed. */
        UNROLL
        for (int u = 0; u < UNITS; u++)
            load_q<DTYPE>(grad, residual, first + CHUNK * (u * WARPS + warp) + 8 * lane, 0xffu, true,
                          rate, q[u]);
    } else {
        UNROLL
        for (int u = 0; u < UNITS; u++) {
            int64_t i = first + CHUNK * (u * WARPS + warp) + 8 * lane;
            load_q<DTYPE>(grad, residual, i, present8(i, last), wide, rate, q[u]);
        }
    }
    UNROLL
    for (int u = 0; u < UNITS; u++) {
        float sum = sum_of_sizes(q[u]);
        if (lane == 0)
            sums[u * WARPS + warp] = sum;
    }
    __syncthreads();
    for (int b = warp; b < (int)blocks_of_tile && first + b * block < length; b += WARPS) {
        /* The next level of tree_sum: at most 128 sums, the rest of 256 are zeros. */
        float part[8];
        UNROLL
        for (int k = 0; k < 8; k++) {
            int at = 8 * lane + k;
            part[k] = at < chunks ? sums[b * chunks + at] : 0.0f;
        }
        float scale = tree_sum256(part) / (float)min(block, length - (first + b * block));
        if (lane == 0) {
            scale_of[b] = scale;
            scales[blockIdx.x * blocks_of_tile + b] = scale;
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

#define FEEDBACK(name, DTYPE, WARPS, UNITS)                                                         \
    MPISIGN_KERNEL(32 * WARPS, name,                                                               \
                   (const void *grad, float *residual, int64_t length, float rate, int64_t block,  \
                    int64_t blocks_of_tile, uint8_t *sign, uint8_t *mask, float *scales,           \
                    int64_t zeros, uint64_t seed, uint64_t step, uint64_t stream,                  \
                    uint64_t byte_offset, unsigned long long *census))                             \
    {                                                                                              \
        Call call = {0, 0, 0, 0, sign, mask, zeros, {seed, step, (uint32_t)stream, byte_offset}};  \
        feedback_tile<DTYPE, WARPS, UNITS>(grad, residual, length, rate, block, blocks_of_tile,    \
                                           scales, call, census);                                  \
    }

FEEDBACK(feedback_fp32, MPISIGN_FP32, 8, 4)
FEEDBACK(feedback_fp16, MPISIGN_FP16, 8, 4)
FEEDBACK(feedback_bf16, MPISIGN_BF16, 8, 4)
FEEDBACK(feedback_fp64, MPISIGN_FP64, 8, 4)
FEEDBACK(feedback_wide_fp32, MPISIGN_FP32, 16, 8)
FEEDBACK(feedback_wide_fp16, MPISIGN_FP16, 16, 8)
FEEDBACK(feedback_wide_bf16, MPISIGN_BF16, 16, 8)
FEEDBACK(feedback_wide_fp64, MPISIGN_FP64, 16, 8)
