/* Weighted sums of planes: out = (start +- weights[0] +- weights[1] ...) scale, row by row in order.
 *
 * One byte of each row a thread, 8 rows in flight; the 8 sums never leave registers.
 */
#include "gpu.h"

enum { ROWS_IN_FLIGHT = 8 };

MPISIGN_KERNEL(THREADS, weighted_sum,
               (const uint8_t *sign, const uint8_t *mask, int64_t row_stride, int64_t rows,
                int64_t length, const float *weights, int64_t block, float start, float scale,
                float *out))
{
    const int64_t i = 8 * (blockIdx.x * (int64_t)THREADS + threadIdx.x), byte = i >> 3;
    const uint32_t present = present8(i, length);
    if (!present)
        return;
    const int64_t blocks = (length + block - 1) / block, column = i / block;
    float y[8];
    UNROLL
    for (int k = 0; k < 8; k++)
        y[k] = start;
    for (int64_t row = 0; row < rows; row += ROWS_IN_FLIGHT) {
        uint32_t negative[ROWS_IN_FLIGHT], votes[ROWS_IN_FLIGHT];
        float w[ROWS_IN_FLIGHT];
        UNROLL
        for (int j = 0; j < ROWS_IN_FLIGHT; j++) {
            bool there = row + j < rows;
            int64_t at = (row + j) * row_stride + byte;
            negative[j] = there ? sign[at] : 0;
            votes[j] = !there ? 0 : mask ? mask[at] : 0xffu;
            w[j] = there ? weights[(row + j) * blocks + column] : 0.0f;
        }
        UNROLL
        for (int j = 0; j < ROWS_IN_FLIGHT; j++) {
            UNROLL
            for (int k = 0; k < 8; k++) {
                uint32_t flip = (negative[j] >> k & 1) << 31;
                float sum = y[k] + float_of_bits(bits_of_float(w[j]) ^ flip);
                y[k] = votes[j] >> k & 1 ? sum : y[k];
            }
        }
    }
    uint32_t bits[8];
    UNROLL
    for (int k = 0; k < 8; k++)
        bits[k] = bits_of_float(y[k] * scale);
    store8((uint32_t *)out, i, present, is_aligned(out), bits);
}
