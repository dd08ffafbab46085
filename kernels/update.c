/* Votes added to what is there: unpack_add, and the optimizer's step with weight decay. */
#include "floats64.h"

typedef struct {
    const uint8_t *sign, *mask;
    int64_t length;
    int dtype;
    double scale;        /* of unpack_add, or the rate of update */
    double weight_decay; /* of update */
    char *y;
} update_call;

/* In fp32, in place. `decay`: update rather than unpack_add. */
MPISIGN_FN void step64(int decay, int masked, const update_call *u, const uint8_t *sign,
                       const uint8_t *mask, float_at *y)
{
    const float scale = (float)u->scale, wd = (float)u->weight_decay;
    float v[64];
    votes64(masked, sign, mask, decay ? 1.0f : scale, v);
    for (int i = 0; i < 64; i++) {
        float vote = v[i] + 0.0f, d = wd * y[i]; /* -0.0 is no vote: +0.0 here */
        float sum = vote + d, step = scale * sum;
        y[i] = decay ? y[i] - step : y[i] + v[i];
    }
}

/* The same in double, for fp64. */
MPISIGN_FN void step64_double(int decay, int masked, const update_call *u, const uint8_t *sign,
                              const uint8_t *mask, double_at *y)
{
    const double scale = u->scale, wd = u->weight_decay;
    float unit[64];
    votes64(masked, sign, mask, 1.0f, unit);
    for (int i = 0; i < 64; i++) {
        double vote = (double)unit[i] + 0.0, d = wd * y[i];
        double sum = vote + d, step = scale * sum;
        double v = unit[i] == 0 ? -0.0 : scale * (double)unit[i];
        y[i] = decay ? y[i] - step : y[i] + v;
    }
}

MPISIGN_FN void step_word(int decay, int masked, const update_call *u, const uint8_t *sign,
                          const uint8_t *mask, void *y)
{
    if (u->dtype == MPISIGN_FP32) {
        step64(decay, masked, u, sign, mask, (float_at *)y);
    } else if (u->dtype == MPISIGN_FP64) {
        step64_double(decay, masked, u, sign, mask, (double_at *)y);
    } else {
        float room[64];
        ISA(widen64)(u->dtype, y, room);
        step64(decay, masked, u, sign, mask, room);
        ISA(narrow64)(u->dtype, room, y);
    }
}

MPISIGN_FN void step_slice(int decay, int masked, const update_call *u, int64_t first, int64_t last)
{
    const int64_t size = item_size(u->dtype);
    int64_t at = first;
    for (; at + 64 <= last; at += 64)
        step_word(decay, masked, u, u->sign + at / 8, masked ? u->mask + at / 8 : NULL,
                  u->y + at * size);
    if (at == last)
        return;
    const size_t bytes = (size_t)((last - at + 7) / 8);
    uint64_t padded[64] = {0};
    uint8_t sign[8] = {0}, mask[8] = {0};
    memcpy(padded, u->y + at * size, (size_t)((last - at) * size));
    memcpy(sign, u->sign + at / 8, bytes);
    if (masked)
        memcpy(mask, u->mask + at / 8, bytes);
    step_word(decay, masked, u, sign, mask, padded);
    memcpy(u->y + at * size, padded, (size_t)((last - at) * size));
}

static ALONE void ISA(step_some)(int decay, const update_call *u, int64_t first, int64_t last)
{
    if (decay && u->mask)
        step_slice(1, 1, u, first, last);
    else if (decay)
        step_slice(1, 0, u, first, last);
    else if (u->mask)
        step_slice(0, 1, u, first, last);
    else
        step_slice(0, 0, u, first, last);
}

static void ISA(step_all)(int decay, const update_call *call, int threads)
{
    const int64_t slice = 1 << 16;
#pragma omp parallel for num_threads(threads) schedule(static)                                     \
    if (threads > 1 && call->length > 4 * slice)
    for (int64_t at = 0; at < call->length; at += slice) {
        const update_call u = *call; /* a copy, which no store to y can change */
        const int64_t last = u.length - at < slice ? u.length : at + slice;
        const uint64_t floats = plain_floats();
        ISA(step_some)(decay, &u, at, last);
        restore_floats(floats);
    }
}

/* out +- scale where the mask has a bit. */
static void ISA(unpack_add)(const uint8_t *sign, const uint8_t *mask, int64_t length, int dtype,
                            double scale, void *out, int threads)
{
    const update_call u = {sign, mask, length, dtype, scale, 0, (char *)out};
    ISA(step_all)(0, &u, threads);
}

/* parameter - rate (vote + weight_decay parameter). */
static void ISA(update)(const uint8_t *sign, const uint8_t *mask, int64_t length, int dtype,
                        double rate, double weight_decay, void *parameter, int threads)
{
    const update_call u = {sign, mask, length, dtype, rate, weight_decay, (char *)parameter};
    ISA(step_all)(1, &u, threads);
}
