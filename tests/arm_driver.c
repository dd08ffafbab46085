/* Runs every kernel of the portable unit on made-up input and prints a digest of each result: the same
 * program for x86-64, whose results the other tests compare with NumPy, and for Arm must agree. */
#include <stdio.h>
#include <stdlib.h>

#include "host.h"

static uint64_t state = 88172645463325252ull;
static uint64_t draw(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static void digest(const char *name, int64_t length, const void *data, size_t bytes)
{
    uint64_t h = 14695981039346656037ull;
    for (size_t i = 0; i < bytes; i++)
        h = (h ^ ((const uint8_t *)data)[i]) * 1099511628211ull;
    printf("%s %lld %016llx\n", name, (long long)length, (unsigned long long)h);
}

enum { MOST = 70000, ROWS = 37 };
static double grad[MOST], momentum[MOST], out[MOST];
static float scales[MOST], weights[ROWS];
static uint8_t rows[ROWS][2][MOST / 8 + 1], planes[2][MOST / 8 + 64], counts[16][MOST / 8 + 1];
static uint8_t message[2 * (MOST / 8) + 64];

/* Bit patterns of any float, one in eight of them a zero. */
static void fill(void *x, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 8) {
        uint64_t v = draw();
        v = v % 8 ? v : v & 0x8000000080000000ull;
        memcpy((char *)x + i, &v, 8);
    }
}

int main(void)
{
    static const int64_t lengths[] = {1, 7, 63, 64, 65, 129, 1000, 4097, 65537};
    static const float rates[4] = {0.9f, 0.1f, 0.99f, 0.01f};
    const mpisign_kernels *k = &mpisign_portable;
    const mpisign_random rnd = {0x123456789abcdefull, 7, 3, 5};
    for (size_t t = 0; t < sizeof lengths / sizeof *lengths; t++) {
        const int64_t length = lengths[t];
        const size_t bytes = (size_t)(length + 7) / 8;
        for (int dtype = 0; dtype < 4; dtype++) {
            fill(grad, sizeof grad);
            for (int rule = 0; rule < 4; rule++) {
                for (int64_t i = 0; i < length; i++)
                    ((float *)momentum)[i] = (float)((int64_t)draw() >> 40) * 0x1p-12f;
                const mpisign_piece piece = {grad, length, dtype, 3, momentum, MPISIGN_FP32};
                memset(planes, 0, sizeof planes);
                k->pack_pieces(rule, rates, &piece, 1, planes[0], planes[1], dtype % 3, &rnd, 1);
                digest("pack", length, planes, sizeof planes);
                digest("momentum", length, momentum, (size_t)length * 4);
            }
            k->error_feedback(grad, dtype, (float *)momentum, length, 0.5f, 512, planes[0],
                              planes[1], scales, dtype % 3, &rnd, 1);
            digest("error_feedback", length, momentum, (size_t)length * 4);
            digest("scales", length, scales, (size_t)(length + 511) / 512 * 4);
            k->unpack(planes[0], planes[1], length, dtype, 0.3, out, 1);
            k->unpack_add(planes[1], NULL, length, dtype, 0.7, out, 1);
            k->update(planes[0], planes[1], length, dtype, 0.01, 0.1, out, 1);
            digest("unpack", length, out, (size_t)length * 2);
        }
        for (int r = 0; r < ROWS; r++) {
            weights[r] = (float)r * 0.25f;
            for (size_t b = 0; b < bytes; b++) {
                rows[r][0][b] = (uint8_t)draw();
                rows[r][1][b] = (uint8_t)draw();
            }
        }
        for (int n = 1; n <= ROWS; n++)
            for (int masked = 0; masked < 2; masked++) {
                const mpisign_stack stack = {rows[0][0], masked ? rows[0][1] : NULL,
                                             (int64_t)sizeof rows[0], n, length, NULL};
                int64_t tied = k->majority(&stack, n % 3 ? 1 : 3, planes[0], planes[1], n % 3, &rnd, 1);
                digest(masked ? "masked" : "majority", tied, planes[0], bytes);
                k->tally(&stack, 6, counts[0], masked ? counts[8] : NULL, sizeof counts[0], 1);
                digest("tally", length, counts, sizeof counts);
            }
        const mpisign_stack stack = {rows[0][0], rows[0][1], (int64_t)sizeof rows[0], ROWS, length, NULL};
        k->weighted_sum(&stack, weights, length, 1.5f, 0.125f, (float *)out, 1);
        digest("weighted_sum", length, out, (size_t)length * 4);
        for (int i = 0; i < MOST; i++) { /* rows of floats, of both types */
            momentum[i] = (double)((int64_t)draw() >> 40) * 0x1p-12;
            ((float *)grad)[i] = (float)momentum[i];
        }
        for (int64_t n = 3; n <= ROWS; n += 7)
            for (int fp64 = 0; fp64 < 2; fp64++) {
                const int64_t d = length / n, size = fp64 ? 8 : 4, ends[2] = {n, n + 2};
                const mpisign_rows x = {fp64 ? (char *)momentum : (char *)grad, d * size, n, d,
                                        fp64 ? MPISIGN_FP64 : MPISIGN_FP32};
                int64_t columns[ROWS + 2];
                double values[ROWS + 2];
                uint8_t used[ROWS], finite[ROWS];
                for (int64_t i = 0; i < n + 2; i++) {
                    columns[i] = i % n;
                    values[i] = (double)(i + 1) * 0.3;
                    used[i % n] = 1;
                }
                const mpisign_mixture m = {2, ends, columns, values, used};
                k->rows_finite(&x, finite, 1);
                digest("rows_finite", length, finite, (size_t)n);
                k->rows_distances(&x, 0, out, finite, 1);
                digest("rows_distances", length, out, (size_t)(n * (n + 1) / 2) * 8);
                k->rows_distances(&x, 1, out, finite, 1);
                digest("rows_norms", length, out, (size_t)n * 8);
                k->rows_mix(&x, &m, (char *)out, finite, 1);
                digest("rows_mix", length, out, (size_t)(2 * d * size));
                k->rows_order(&x, n / 4, n - n / 4, 0, (char *)out, finite, 1);
                digest("rows_order", length, out, (size_t)(d * size));
                k->rows_order(&x, 0, 0, n / 2 + 1, (char *)out, finite, 1);
                digest("rows_nearest", length, out, (size_t)(d * size));
            }
        for (int r = 0; r < 8; r++) { /* ever sparser */
            for (size_t b = 0; b < bytes; b++)
                rows[0][1][b] &= r ? rows[r][1][b] : 0xff;
            for (size_t b = 0; b < bytes; b++)
                rows[0][0][b] &= rows[0][1][b];
            const int64_t coded = k->encode_sparse(rows[0][0], rows[0][1], length, message);
            digest("encode_sparse", length, message, (size_t)coded);
            const int64_t wrong = k->decode_sparse(message, coded, length, planes[0], planes[1]);
            digest("decode_sparse", wrong, planes[0], bytes);
            message[draw() % (uint64_t)coded] ^= 8;
            digest("wrong", k->decode_sparse(message, coded, length, planes[0], planes[1]), "", 0);
        }
    }
    return 0;
}
