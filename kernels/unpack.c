/* Sign planes to floats. */
#include "mpisign_kernels.h"

/* Integer arithmetic on bit patterns: a clear mask bit gives +0.0, a sign bit flips the top bit. */
#define DEFINE_UNPACK(BITS)                                                                        \
    MPISIGN_CLONES static void unpack_##BITS(const uint8_t *sign, const uint8_t *mask,             \
                                             int64_t first, int64_t last, uint64_t scale,          \
                                             void *out)                                            \
    {                                                                                              \
        typedef uint##BITS##_t word;                                                               \
        word *y = (word *)out;                                                                     \
        for (int64_t i = first; i < last; i += 8) {                                                \
            word s = sign[i / 8], m = mask ? mask[i / 8] : 0xff, v[8];                             \
            for (int j = 0; j < 8; j++) {                                                          \
                word vote = (word)((word)scale ^ (word)((word)((s >> j) & 1) << (BITS - 1)));      \
                v[j] = (word)(vote & (word)(0 - (word)((m >> j) & 1)));                            \
            }                                                                                      \
            memcpy(y + i, v, sizeof(word) * (size_t)(last - i < 8 ? last - i : 8));                \
        }                                                                                          \
    }

DEFINE_UNPACK(16)
DEFINE_UNPACK(32)
DEFINE_UNPACK(64)

void mpisign_unpack(const uint8_t *sign, const uint8_t *mask, int64_t length, int itemsize,
                    uint64_t scale_bits, void *out, int threads)
{
    const int64_t slice = 1 << 18;
#pragma omp parallel for num_threads(threads) schedule(static)                                     \
    if (threads > 1 && length > 2 * slice)
    for (int64_t at = 0; at < length; at += slice) {
        int64_t last = at + slice < length ? at + slice : length;
        if (itemsize == 2)
            unpack_16(sign, mask, at, last, scale_bits, out);
        else if (itemsize == 4)
            unpack_32(sign, mask, at, last, scale_bits, out);
        else
            unpack_64(sign, mask, at, last, scale_bits, out);
    }
}
