/* The host kernels: what a unit (avx512.c, avx2.c, portable.c) offers, and the arguments' types. */
#ifndef MPISIGN_HOST_H
#define MPISIGN_HOST_H

#include "shared.h"

enum { MPISIGN_MAX_DIMS = 32 };

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

enum { MPISIGN_SIGN = 0, MPISIGN_SIGNUM = 1, MPISIGN_LION = 2, MPISIGN_SPARSIGN = 3 };

/* A contiguous array on its way into the planes, which it enters at a byte of its own. */
typedef struct {
    const void *data;
    int64_t length;
    int64_t dtype;
    int64_t byte;
    void *momentum; /* NULL under rules without */
    int64_t momentum_dtype;
} mpisign_piece;

typedef struct {
    const uint8_t *sign; /* row r at sign + r * row_stride */
    const uint8_t *mask; /* the same stride; NULL: everyone votes */
    int64_t row_stride;
    int64_t rows;
    int64_t length;          /* coordinates in these planes */
    const uint32_t *weights; /* one a row; NULL: 1 */
} mpisign_stack;

typedef struct {
    const double *negatives;
    const double *votes; /* NULL: `voters` vote everywhere */
    double unscale;      /* what turns a received word into the integer it was */
    uint64_t voters;
    uint64_t base;
    int digits;
    int64_t length;
} mpisign_counts;

/* Rows of floats, each contiguous. */
typedef struct {
    const char *data;
    int64_t stride; /* in bytes, from row to row */
    int64_t rows, length;
    int dtype;
} mpisign_rows;

/* Weighted sums of rows: row i has coefficients ends[i - 1] to ends[i] - 1, none of them 0. */
typedef struct {
    int64_t rows;
    const int64_t *ends;
    const int64_t *columns;
    const double *values;
    const uint8_t *used; /* 1 for rows of x with a coefficient anywhere */
} mpisign_mixture;

/* Coordinates that planes are coded at a time (golomb.c), and what may be wrong with a message. */
enum { MPISIGN_SPARSE_BLOCK = 1 << 17 };
enum {
    MPISIGN_SPARSE_SHORT = -1,    /* ends before its last coordinate */
    MPISIGN_SPARSE_LONG = -2,     /* goes on behind it */
    MPISIGN_SPARSE_KIND = -3,     /* a block of no kind that there is */
    MPISIGN_SPARSE_POSITION = -4, /* a position beyond its block */
    MPISIGN_SPARSE_PADDING = -5,  /* bits behind a block's last that are not 0 */
};

typedef struct {
    const char *name;
    mpisign_census (*pack)(const mpisign_array *x, uint8_t *sign, uint8_t *mask, int zeros,
                           const mpisign_random *rnd, int threads);
    mpisign_census (*pack_pieces)(int rule, const float parameters[4], const mpisign_piece *pieces,
                                  int64_t n, uint8_t *sign, uint8_t *mask, int zeros,
                                  const mpisign_random *rnd, int threads);
    mpisign_census (*error_feedback)(const void *grad, int dtype, float *residual, int64_t length,
                                     float rate, int64_t block, uint8_t *sign, uint8_t *mask,
                                     float *scales, int zeros, const mpisign_random *rnd,
                                     int threads);
    int64_t (*majority)(const mpisign_stack *stack, int64_t group, uint8_t *out_sign,
                        uint8_t *out_mask, int ties, const mpisign_random *rnd, int threads);
    void (*group_distances)(const mpisign_stack *stack, int64_t group, int64_t *distances,
                            int64_t stride, int threads);
    void (*tally)(const mpisign_stack *stack, int planes, uint8_t *negatives, uint8_t *positives,
                  int64_t plane_stride, int threads);
    void (*weighted_sum)(const mpisign_stack *stack, const float *weights, int64_t block,
                         float start, float scale, float *out, int threads);
    void (*unpack)(const uint8_t *sign, const uint8_t *mask, int64_t length, int dtype,
                   double scale, void *out, int threads);
    void (*unpack_add)(const uint8_t *sign, const uint8_t *mask, int64_t length, int dtype,
                       double scale, void *out, int threads);
    void (*update)(const uint8_t *sign, const uint8_t *mask, int64_t length, int dtype,
                   double rate, double weight_decay, void *parameter, int threads);
    void (*encode_counts)(const uint8_t *plane, int64_t length, uint64_t base, int digits,
                          double *words, int threads);
    int64_t (*decode_counts)(const mpisign_counts *counts, uint8_t *out_sign, uint8_t *out_mask,
                             int ties, const mpisign_random *rnd, int threads);
    int64_t (*encode_sparse)(const uint8_t *sign, const uint8_t *mask, int64_t length,
                             uint8_t *out);
    int64_t (*decode_sparse)(const uint8_t *data, int64_t size, int64_t length, uint8_t *sign,
                             uint8_t *mask);
    void (*rows_finite)(const mpisign_rows *x, uint8_t *finite, int threads);
    int (*rows_distances)(const mpisign_rows *x, int norms, double *out, uint8_t *finite,
                          int threads);
    int (*rows_mix)(const mpisign_rows *x, const mpisign_mixture *m, char *out, uint8_t *finite,
                    int threads);
    int (*rows_order)(const mpisign_rows *x, int64_t low, int64_t high, int64_t nearest, char *out,
                      uint8_t *finite, int threads);
} mpisign_kernels;

#if defined(MPISIGN_X86_UNITS)
extern const mpisign_kernels mpisign_avx512, mpisign_avx2;
#endif
extern const mpisign_kernels mpisign_portable;

#endif
