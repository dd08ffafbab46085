/* Host kernels of mpisign: prototypes and the codes shared with mpisign/planes.py.
 *
 * Sign plane: one bit per coordinate, element i at bit i (little-endian), 1 = negative.
 * Mask plane: same layout, 1 = this coordinate votes. Padding bits of both are 0.
 */
#ifndef MPISIGN_KERNELS_H
#define MPISIGN_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* One source, several instruction sets: the loader picks the clone for this processor. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define MPISIGN_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MPISIGN_CLONES
#endif

enum { MPISIGN_FP32 = 0, MPISIGN_FP16 = 1, MPISIGN_BF16 = 2, MPISIGN_FP64 = 3 };
enum { MPISIGN_ZEROS_POSITIVE = 0, MPISIGN_ZEROS_RANDOM = 1, MPISIGN_ZEROS_ABSTAIN = 2 };
enum { MPISIGN_TIES_POSITIVE = 0, MPISIGN_TIES_RANDOM = 1, MPISIGN_TIES_ZERO = 2 };

enum { MPISIGN_MAX_DIMS = 32 };

typedef struct {
    uint64_t seed;
    uint64_t step;
    uint32_t stream;      /* the rank for zeros, MPISIGN_TIE_STREAM for ties */
    uint64_t byte_offset; /* where these planes start in the whole plane: a shard, a bucket's member */
} mpisign_random;

/* The one stream that all ranks share; ranks use 0 .. 2^31 - 1. */
#define MPISIGN_TIE_STREAM 0x80000000u

typedef struct {
    int dtype;
    int ndim;
    int64_t shape[MPISIGN_MAX_DIMS];
    int64_t strides[MPISIGN_MAX_DIMS]; /* in bytes */
    const char *data;
} mpisign_array;

typedef struct {
    int64_t zeros;
    int64_t nans;
} mpisign_census;

/* Pack x in C order. sign: ceil(d/8) bytes; mask: the same, or NULL. */
mpisign_census mpisign_pack(const mpisign_array *x, uint8_t *sign, uint8_t *mask, int zeros,
                            const mpisign_random *rnd, int threads);

typedef struct {
    const uint8_t *sign; /* row r at sign + r * row_stride */
    const uint8_t *mask; /* NULL: everyone votes */
    int64_t row_stride;
    int64_t mask_row_stride;
    int64_t rows;
    int64_t length; /* coordinates in these planes */
} mpisign_stack;

/* Majority of each coordinate; returns how many coordinates tied. out_mask may be NULL. */
int64_t mpisign_majority(const mpisign_stack *stack, uint8_t *out_sign, uint8_t *out_mask, int ties,
                         const mpisign_random *rnd, int threads);

/* out[i] = scale, -scale or +0.0 (mask bit clear), as the bit patterns of an itemsize-byte float. */
void mpisign_unpack(const uint8_t *sign, const uint8_t *mask, int64_t length, int itemsize,
                    uint64_t scale_bits, void *out, int threads);

/* Counters in float64 words: `digits` base-`base` digits a word, digit j worth base^j. */
void mpisign_encode_counts(const uint8_t *plane, int64_t length, uint64_t base, int digits,
                           double *words, int threads);

typedef struct {
    const double *negatives;
    const double *votes; /* NULL: `voters` vote everywhere */
    double unscale;      /* what turns a received word into the integer it was */
    uint64_t voters;
    uint64_t base;
    int digits;
    int64_t length;
} mpisign_counts;

/* Votes on decoded counters; returns the number of words that were no counter at all. */
int64_t mpisign_decode_counts(const mpisign_counts *counts, uint8_t *out_sign, uint8_t *out_mask,
                              int ties, const mpisign_random *rnd, int threads);

#endif
