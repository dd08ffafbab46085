/* Gradients to sign planes, in one pass that also counts zeros and NaNs. */
#include "mpisign_kernels.h"
#include "philox.h"

/* Eight 0/1 bytes to eight bits, first byte lowest. */
static inline __attribute__((always_inline)) uint64_t collapse(const uint8_t *flags)
{
    uint64_t word = 0;
    for (int i = 0; i < 8; i++) {
        uint64_t x;
        memcpy(&x, flags + 8 * i, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        x = __builtin_bswap64(x);
#endif
        word |= ((x * 0x0102040810204080ull) >> 56) << (8 * i);
    }
    return word;
}

typedef struct {
    uint64_t sign, zero, nan;
} words64;

/* The classes of 64 floats are told by their bit patterns: no rounding mode, no flush to zero. */
#define DEFINE_CLASSIFY(NAME, UINT, BITS, INFINITY_BITS)                                           \
    MPISIGN_CLONES static void classify_##NAME(const void *data, int64_t blocks, words64 *out)     \
    {                                                                                              \
        const UINT magnitude = (UINT)~((UINT)1 << (BITS - 1));                                     \
        for (int64_t b = 0; b < blocks; b++) {                                                     \
            UINT x[64];                                                                            \
            uint8_t sign[64], zero[64], nan[64];                                                   \
            memcpy(x, (const char *)data + b * (int64_t)sizeof x, sizeof x);                       \
            UINT odd = 0; /* zeros and NaNs are rare: told apart only where there is one */        \
            for (int i = 0; i < 64; i++) {                                                         \
                UINT a = (UINT)(x[i] & magnitude);                                                 \
                odd |= (UINT)(a == 0) | (UINT)(a > (UINT)INFINITY_BITS);                           \
                sign[i] = (uint8_t)(x[i] >> (BITS - 1));                                           \
            }                                                                                      \
            out[b] = (words64){collapse(sign), 0, 0};                                              \
            if (!odd)                                                                              \
                continue;                                                                          \
            for (int i = 0; i < 64; i++) {                                                         \
                UINT a = (UINT)(x[i] & magnitude);                                                 \
                zero[i] = a == 0;                                                                  \
                nan[i] = a > (UINT)INFINITY_BITS;                                                  \
            }                                                                                      \
            out[b].zero = collapse(zero);                                                          \
            out[b].nan = collapse(nan);                                                            \
        }                                                                                          \
    }

DEFINE_CLASSIFY(fp32, uint32_t, 32, 0x7f800000u)
DEFINE_CLASSIFY(fp16, uint16_t, 16, 0x7c00u)
DEFINE_CLASSIFY(bf16, uint16_t, 16, 0x7f80u)
DEFINE_CLASSIFY(fp64, uint64_t, 64, 0x7ff0000000000000ull)

static void classify(int dtype, const void *data, int64_t blocks, words64 *out)
{
    switch (dtype) {
    case MPISIGN_FP32: classify_fp32(data, blocks, out); break;
    case MPISIGN_FP16: classify_fp16(data, blocks, out); break;
    case MPISIGN_BF16: classify_bf16(data, blocks, out); break;
    default: classify_fp64(data, blocks, out); break;
    }
}

static int item_size(int dtype)
{
    return dtype == MPISIGN_FP64 ? 8 : dtype == MPISIGN_FP32 ? 4 : 2;
}

static void store_word(uint8_t *plane, uint64_t word, int bytes)
{
    for (int i = 0; i < bytes; i++)
        plane[i] = (uint8_t)(word >> (8 * i));
}

/* Applies the policies to classified words and stores them; `valid` has the coordinates that exist. */
static void settle(words64 w, uint64_t valid, int64_t byte, int bytes, uint8_t *sign, uint8_t *mask,
                   int zeros, const mpisign_random *rnd, mpisign_census *census)
{
    uint64_t zero = w.zero & valid, nan = w.nan & valid;
    uint64_t votes = valid & ~nan, negative = w.sign & votes & ~zero;
    if (zero && zeros == MPISIGN_ZEROS_RANDOM) {
        uint8_t random[8];
        uint64_t bits = 0;
        mpisign_random_bytes(rnd, (uint64_t)byte, 8, random);
        for (int i = 0; i < 8; i++)
            bits |= (uint64_t)random[i] << (8 * i);
        negative |= zero & bits;
    } else if (zeros == MPISIGN_ZEROS_ABSTAIN) {
        votes &= ~zero;
    }
    census->zeros += __builtin_popcountll(zero);
    census->nans += __builtin_popcountll(nan);
    store_word(sign + byte, negative, bytes);
    if (mask)
        store_word(mask + byte, votes, bytes);
}

enum { BATCH = 64 }; /* words classified at a time: the scratch stays in the first-level cache */

/* Coordinates [64 first_word, ...) of a contiguous array. */
static void pack_words(int dtype, const char *data, int64_t first_word, int64_t last_word,
                       uint8_t *sign, uint8_t *mask, int zeros, const mpisign_random *rnd,
                       mpisign_census *census)
{
    words64 w[BATCH];
    for (int64_t at = first_word; at < last_word; at += BATCH) {
        int64_t count = last_word - at < BATCH ? last_word - at : BATCH;
        classify(dtype, data + at * 64 * item_size(dtype), count, w);
        for (int64_t i = 0; i < count; i++)
            settle(w[i], ~0ull, 8 * (at + i), 8, sign, mask, zeros, rnd, census);
    }
}

static void pack_tail(int dtype, const char *data, int64_t first, int64_t count, uint8_t *sign,
                      uint8_t *mask, int zeros, const mpisign_random *rnd, mpisign_census *census)
{
    uint64_t padded[64] = {0};
    words64 w;
    if (count == 0)
        return;
    memcpy(padded, data, (size_t)(count * item_size(dtype)));
    classify(dtype, padded, 1, &w);
    settle(w, ~0ull >> (64 - count), first / 8, (int)((count + 7) / 8), sign, mask, zeros, rnd,
           census);
}

static mpisign_census pack_contiguous(int dtype, const char *data, int64_t length, uint8_t *sign,
                                      uint8_t *mask, int zeros, const mpisign_random *rnd,
                                      int threads)
{
    const int64_t words = length / 64, slice = 1 << 12;
    int64_t n_zeros = 0, n_nans = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : n_zeros, n_nans)      \
    if (threads > 1 && words > 2 * slice)
    for (int64_t at = 0; at < words; at += slice) {
        mpisign_census part = {0, 0};
        int64_t last = at + slice < words ? at + slice : words;
        pack_words(dtype, data, at, last, sign, mask, zeros, rnd, &part);
        n_zeros += part.zeros;
        n_nans += part.nans;
    }
    mpisign_census census = {n_zeros, n_nans};
    pack_tail(dtype, data + words * 64 * item_size(dtype), words * 64, length - words * 64, sign,
              mask, zeros, rnd, &census);
    return census;
}

/* Merges neighbouring dimensions that are one run in memory; the last one left may be strided. */
static mpisign_array coalesce(const mpisign_array *x)
{
    mpisign_array y = *x;
    y.ndim = 0;
    for (int k = 0; k < x->ndim; k++) {
        if (x->shape[k] == 1)
            continue;
        if (y.ndim > 0 && y.strides[y.ndim - 1] == x->shape[k] * x->strides[k]) {
            y.shape[y.ndim - 1] *= x->shape[k];
            y.strides[y.ndim - 1] = x->strides[k];
        } else {
            y.shape[y.ndim] = x->shape[k];
            y.strides[y.ndim] = x->strides[k];
            y.ndim++;
        }
    }
    if (y.ndim == 0) {
        y.shape[0] = 1;
        y.strides[0] = item_size(x->dtype);
        y.ndim = 1;
    }
    return y;
}

/* Gathers 64 coordinates at a time through an odometer over the outer dimensions. */
static mpisign_census pack_strided(const mpisign_array *x, int64_t length, uint8_t *sign,
                                   uint8_t *mask, int zeros, const mpisign_random *rnd)
{
    const size_t size = (size_t)item_size(x->dtype);
    const int inner = x->ndim - 1;
    int64_t index[MPISIGN_MAX_DIMS] = {0};
    const char *row = x->data;
    mpisign_census census = {0, 0};
    char block[64 * 8];
    int64_t column = 0;
    for (int64_t at = 0; at < length; at += 64) {
        int64_t count = length - at < 64 ? length - at : 64;
        for (int64_t i = 0; i < count; i++) {
            memcpy(block + (size_t)i * size, row + column * x->strides[inner], size);
            if (++column < x->shape[inner])
                continue;
            column = 0;
            for (int k = inner - 1; k >= 0; k--) {
                row += x->strides[k];
                if (++index[k] < x->shape[k])
                    break;
                row -= x->shape[k] * x->strides[k];
                index[k] = 0;
            }
        }
        pack_tail(x->dtype, block, at, count, sign, mask, zeros, rnd, &census);
    }
    return census;
}

mpisign_census mpisign_pack(const mpisign_array *x, uint8_t *sign, uint8_t *mask, int zeros,
                            const mpisign_random *rnd, int threads)
{
    int64_t length = 1;
    for (int k = 0; k < x->ndim; k++)
        length *= x->shape[k];
    if (length == 0)
        return (mpisign_census){0, 0};
    mpisign_array y = coalesce(x);
    if (y.ndim == 1 && y.strides[0] == item_size(y.dtype))
        return pack_contiguous(y.dtype, y.data, length, sign, mask, zeros, rnd, threads);
    return pack_strided(&y, length, sign, mask, zeros, rnd);
}
