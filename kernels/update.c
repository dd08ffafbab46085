/* Votes added to what is there: unpack_add, and the optimizer's step with weight decay. */
#include "floats64.h"

typedef struct {
    const uint8_t *sign, *mask;
    int64_t length;
    double scale;        /* of unpack_add, or the rate of update */
    double weight_decay; /* of update */
    char *y;
} update_call;

/* `decay`: update rather than unpack_add. Computes in fp32. */
MPISIGN_FN void step64(int decay, int masked, int dtype, const update_call *u, uint64_t sign, uint64_t votes,
                       void *at)
{
    const float scale = (float)u->scale, wd = (float)u->weight_decay;
    float y[64], v[64];
    widen64(dtype, at, y);
    votes64(masked, sign, votes, decay ? 1.0f : scale, v);
    for (int i = 0; i < 64; i++) {
        if (decay) {
            float d = wd * y[i], vote = v[i] + 0.0f; /* no vote is +0.0 here */
            float sum = vote + d, step = scale * sum;
            y[i] = y[i] - step;
        } else {
            y[i] += v[i];
        }
    }
    narrow64(dtype, y, at);
}

/* The same in double, for fp64. */
MPISIGN_FN void step64_double(int decay, int masked, const update_call *u, uint64_t sign, uint64_t votes,
                              void *at)
{
    double_at *y = (double_at *)at;
    float unit[64];
    votes64(masked, sign, votes, 1.0f, unit);
    for (int i = 0; i < 64; i++) {
        if (decay) {
            double d = u->weight_decay * y[i], vote = (double)unit[i] + 0.0;
            double sum = vote + d, step = u->scale * sum;
            y[i] = y[i] - step;
        } else {
            double v = unit[i] == 0 ? -0.0 : u->scale * (double)unit[i];
            y[i] += v;
        }
    }
}

MPISIGN_FN void step_slice(int decay, int masked, int dtype, const update_call *u, int64_t first, int64_t last)
{
    const int64_t size = item_size(dtype);
    for (int64_t at = first; at < last; at += 64) {
        const int64_t count = last - at < 64 ? last - at : 64;
        const int bytes = (int)((count + 7) / 8);
        char *here = u->y + at * size;
        uint64_t padded[64] = {0};
        uint64_t sign = load_word(u->sign + at / 8, bytes);
        uint64_t votes = masked ? load_word(u->mask + at / 8, bytes) : ~0ull;
        void *y = count < 64 ? memcpy(padded, here, (size_t)(count * size)) : here;
        if (dtype == MPISIGN_FP64)
            step64_double(decay, masked, u, sign, votes, y);
        else
            step64(decay, masked, dtype, u, sign, votes, y);
        if (count < 64)
            memcpy(here, padded, (size_t)(count * size));
    }
}

MPISIGN_FN void step_all(int decay, int which, const update_call *u, int threads)
{
    const int64_t slice = 1 << 16;
#pragma omp parallel for num_threads(threads) schedule(static)                                     \
    if (threads > 1 && u->length > 4 * slice)
    for (int64_t at = 0; at < u->length; at += slice) {
        const int64_t last = u->length - at < slice ? u->length : at + slice;
        if (u->mask)
            FOR_DTYPE(which, step_slice(decay, 1, dtype, u, at, last));
        else
            FOR_DTYPE(which, step_slice(decay, 0, dtype, u, at, last));
    }
}

/* out +- scale where the mask has a bit. */
static void ISA(unpack_add)(const uint8_t *sign, const uint8_t *mask, int64_t length, int dtype,
                            double scale, void *out, int threads)
{
    const update_call u = {sign, mask, length, scale, 0, (char *)out};
    step_all(0, dtype, &u, threads);
}

/* parameter - rate (vote + weight_decay parameter). */
static void ISA(update)(const uint8_t *sign, const uint8_t *mask, int64_t length, int dtype,
                        double rate, double weight_decay, void *parameter, int threads)
{
    const update_call u = {sign, mask, length, rate, weight_decay, (char *)parameter};
    step_all(1, dtype, &u, threads);
}
