/* Error feedback with blocks that no CUDA block can hold (over 16,384 coordinates; per tensor).
 *
 * Three steps: sums of chunks of 256; levels of the tree, each a 256th of the one before, the last of
 * which writes the scales; votes and residuals. Gradient and residual are read twice, 20 bytes a
 * coordinate in fp32 where one pass moves 12; what fits the L2 cache is read from memory once.
 */
#include "gpu_feedback.h"

enum { CHUNKS_OF_WARP = 4 };

template <int DTYPE>
MPISIGN_FN void chunk_sums(const void *grad, const float *residual, int64_t length, float rate,
                           float *sums)
{
    const int lane = threadIdx.x & 31;
    const int64_t warp = (blockIdx.x * (int64_t)THREADS + threadIdx.x) >> 5;
    const bool wide = is_aligned(grad) && is_aligned(residual);
    float q[CHUNKS_OF_WARP][8];
    UNROLL
    for (int u = 0; u < CHUNKS_OF_WARP; u++) {
        int64_t i = CHUNK * (CHUNKS_OF_WARP * warp + u) + 8 * lane;
        load_q<DTYPE>(grad, residual, i, present8(i, length), wide, rate, q[u]);
    }
    UNROLL
    for (int u = 0; u < CHUNKS_OF_WARP; u++) {
        int64_t chunk = CHUNKS_OF_WARP * warp + u;
        float sum = sum_of_sizes(q[u]);
        if (lane == 0 && CHUNK * chunk < length)
            sums[chunk] = sum;
    }
}

/* One level: rows of `width` sums in, rows of ceil(width / 256) out, one warp each; the last row in
 * may be short. `scales` is not 0 at the last level: it gets the blocks' scales, and so does `out`, but
 * infinity where the sum overflows, for apply. */
MPISIGN_KERNEL(THREADS, feedback_level,
               (const float *in, int64_t n, int64_t width, float *out, int64_t n_out, float *scales,
                int64_t block, int64_t length))
{
    const int lane = threadIdx.x & 31;
    const int64_t at = (blockIdx.x * (int64_t)THREADS + threadIdx.x) >> 5;
    const int64_t width_out = (width + CHUNK - 1) / CHUNK;
    const int64_t row = at / width_out, column = at % width_out;
    if (at >= n_out)
        return;
    const int64_t end = min(n, (row + 1) * width);
    float x[8];
    UNROLL
    for (int k = 0; k < 8; k++) {
        int64_t i = row * width + column * CHUNK + 8 * lane + k;
        x[k] = i < end ? in[i] : 0.0f;
    }
    float sum = tree_sum256(x);
    if (lane == 0) {
        if (scales) {
            sum /= (float)min(block, length - at * block);
            scales[at] = scale_to_keep(sum);
        }
        out[at] = sum;
    }
}

template <int DTYPE>
MPISIGN_FN uint32_t apply(const void *grad, float *residual, int64_t length, float rate,
                          int64_t block, const float *scales, const Call &call)
{
    const bool wide = is_aligned(grad) && is_aligned(residual);
    const int64_t first = blockIdx.x * (int64_t)(16 * THREADS);
    uint32_t counts = 0;
    float q[2][8];
    UNROLL
    for (int u = 0; u < 2; u++) {
        int64_t i = first + 8 * (u * THREADS + (int64_t)threadIdx.x);
        load_q<DTYPE>(grad, residual, i, present8(i, length), wide, rate, q[u]);
    }
    UNROLL
    for (int u = 0; u < 2; u++) {
        int64_t i = first + 8 * (u * THREADS + (int64_t)threadIdx.x);
        float scale = i < length ? scales[i / block] : 0.0f;
        counts += finish_feedback(q[u], scale, i, present8(i, length), wide, residual, call);
    }
    return counts;
}

#define LONG_FEEDBACK(sums_name, apply_name, DTYPE)                                                \
    MPISIGN_KERNEL(THREADS, sums_name,                                                             \
                   (const void *grad, const float *residual, int64_t length, float rate,           \
                    float *sums))                                                                  \
    {                                                                                              \
        chunk_sums<DTYPE>(grad, residual, length, rate, sums);                                     \
    }                                                                                              \
    MPISIGN_KERNEL(THREADS, apply_name,                                                            \
                   (const void *grad, float *residual, int64_t length, float rate, int64_t block,  \
                    const float *scales, uint8_t *sign, uint8_t *mask, int64_t zeros,              \
                    uint64_t seed, uint64_t step, uint64_t stream, uint64_t byte_offset,           \
                    unsigned long long *census))                                                   \
    {                                                                                              \
        Call call = {0, 0, 0, 0, sign, mask, zeros, {seed, step, (uint32_t)stream, byte_offset}};  \
        add_census(apply<DTYPE>(grad, residual, length, rate, block, scales, call), census);       \
    }

LONG_FEEDBACK(feedback_sums_fp32, feedback_apply_fp32, MPISIGN_FP32)
LONG_FEEDBACK(feedback_sums_fp16, feedback_apply_fp16, MPISIGN_FP16)
LONG_FEEDBACK(feedback_sums_bf16, feedback_apply_bf16, MPISIGN_BF16)
LONG_FEEDBACK(feedback_sums_fp64, feedback_apply_fp64, MPISIGN_FP64)
