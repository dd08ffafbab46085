/* Planes to floats: scale, -scale, or +0.0 where the mask is 0. One byte of a plane a thread and unit. */
#include "gpu.h"

enum { UNPACK_UNITS = 4 };

MPISIGN_FN uint32_t votes_at(const uint8_t *mask, int64_t byte, uint32_t present)
{
    return mask ? mask[byte] & present : present;
}

/* `scale` is the bit pattern of the dtype: what is stored is made of its bits alone. */
template <int DTYPE>
MPISIGN_FN void unpack_block(const uint8_t *sign, const uint8_t *mask, int64_t length,
                             uint64_t scale_bits, void *out)
{
    typedef typename Item<DTYPE>::bits bits;
    constexpr int top = 8 * (int)sizeof(bits) - 1;
    const bits scale = (bits)scale_bits;
    const bool wide = is_aligned(out);
    uint32_t negative[UNPACK_UNITS], votes[UNPACK_UNITS], present[UNPACK_UNITS];
    int64_t first = 8 * (blockIdx.x * (int64_t)(UNPACK_UNITS * THREADS) + threadIdx.x);
    UNROLL
    for (int u = 0; u < UNPACK_UNITS; u++) {
        int64_t i = first + 8 * u * THREADS;
        present[u] = present8(i, length);
        negative[u] = present[u] ? sign[i >> 3] : 0;
        votes[u] = present[u] ? votes_at(mask, i >> 3, present[u]) : 0;
    }
    UNROLL
    for (int u = 0; u < UNPACK_UNITS; u++) {
        bits y[8];
        UNROLL
        for (int k = 0; k < 8; k++) {
            bits flip = (bits)((bits)(negative[u] >> k & 1) << top);
            y[k] = votes[u] >> k & 1 ? (bits)(scale ^ flip) : (bits)0;
        }
        store8((bits *)out, first + 8 * u * THREADS, present[u], wide, y);
    }
}

/* Arithmetic in fp32, in fp64 for fp64; one rounding to the dtype at the end. */
template <int DTYPE> struct Compute {
    typedef float type;
    MPISIGN_FN float load(typename Item<DTYPE>::bits x) { return widen<DTYPE>(x); }
    MPISIGN_FN typename Item<DTYPE>::bits store(float x) { return narrow<DTYPE>(x); }
};
template <> struct Compute<MPISIGN_FP64> {
    typedef double type;
    MPISIGN_FN double load(uint64_t x) { return __longlong_as_double((long long)x); }
    MPISIGN_FN uint64_t store(double x) { return (uint64_t)__double_as_longlong(x); }
};

enum Step { ADD, UPDATE };

/* ADD: y +- a, untouched where the mask is 0. UPDATE: y - a (vote + b y). */
template <int STEP, int DTYPE>
MPISIGN_FN void step_block(const uint8_t *sign, const uint8_t *mask, int64_t length, double a_,
                           double b_, void *out)
{
    typedef typename Item<DTYPE>::bits bits;
    typedef typename Compute<DTYPE>::type real;
    const real a = (real)a_, b = (real)b_;
    const bool wide = is_aligned(out);
    const int64_t first = 8 * (blockIdx.x * (int64_t)(2 * THREADS) + threadIdx.x);
    bits y[2][8];
    uint32_t negative[2], votes[2], present[2];
    UNROLL
    for (int u = 0; u < 2; u++) {
        int64_t i = first + 8 * u * THREADS;
        present[u] = present8(i, length);
        negative[u] = present[u] ? sign[i >> 3] : 0;
        votes[u] = present[u] ? votes_at(mask, i >> 3, present[u]) : 0;
        load8((const bits *)out, i, present[u], wide, y[u]);
    }
    UNROLL
    for (int u = 0; u < 2; u++) {
        UNROLL
        for (int k = 0; k < 8; k++) {
            real p = Compute<DTYPE>::load(y[u][k]);
            bool minus = negative[u] >> k & 1, vote = votes[u] >> k & 1;
            if constexpr (STEP == ADD) {
                bits sum = Compute<DTYPE>::store(minus ? p - a : p + a);
                y[u][k] = vote ? sum : y[u][k];
            } else {
                real v = !vote ? (real)0 : minus ? (real)-1 : (real)1;
                real decay = b * p;
                real change = a * (v + decay);
                y[u][k] = Compute<DTYPE>::store(p - change);
            }
        }
        store8((bits *)out, first + 8 * u * THREADS, present[u], wide, y[u]);
    }
}

#define UNPACK(name, add_name, update_name, DTYPE)                                                 \
    MPISIGN_KERNEL(THREADS, name,                                                                  \
                   (const uint8_t *sign, const uint8_t *mask, int64_t length, uint64_t scale_bits, \
                    void *out))                                                                    \
    {                                                                                              \
        unpack_block<DTYPE>(sign, mask, length, scale_bits, out);                                  \
    }                                                                                              \
    MPISIGN_KERNEL(THREADS, add_name,                                                              \
                   (const uint8_t *sign, const uint8_t *mask, int64_t length, double scale,        \
                    void *out))                                                                    \
    {                                                                                              \
        step_block<ADD, DTYPE>(sign, mask, length, scale, 0.0, out);                               \
    }                                                                                              \
    MPISIGN_KERNEL(THREADS, update_name,                                                           \
                   (const uint8_t *sign, const uint8_t *mask, int64_t length, double rate,         \
                    double weight_decay, void *parameter))                                         \
    {                                                                                              \
        step_block<UPDATE, DTYPE>(sign, mask, length, rate, weight_decay, parameter);              \
    }

UNPACK(unpack_fp32, unpack_add_fp32, update_fp32, MPISIGN_FP32)
UNPACK(unpack_fp16, unpack_add_fp16, update_fp16, MPISIGN_FP16)
UNPACK(unpack_bf16, unpack_add_bf16, update_bf16, MPISIGN_BF16)
UNPACK(unpack_fp64, unpack_add_fp64, update_fp64, MPISIGN_FP64)
