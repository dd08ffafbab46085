/* From counters to a result: majority, ties and their policy, the planes and how many tied. */
#ifndef MPISIGN_GPU_VERDICT_H
#define MPISIGN_GPU_VERDICT_H

#include "gpu_count.h"

/* Where results go: out_mask 0 if no second plane is wanted. */
struct Result {
    uint8_t *sign, *mask;
    int64_t length, ties;
    mpisign_random rnd;
};

/* c- > total / 2; a tie if total is even and c- is its half. */
template <int P>
MPISIGN_FN void decide(const uint32_t negative[P], uint32_t total, uint32_t *more, uint32_t *tie)
{
    compare_constant(negative, P, total / 2, more, tie);
    if (total & 1)
        *tie = 0;
}

/* Writes 4 W bytes at `byte`; returns how many coordinates tied. */
template <int W>
MPISIGN_FN uint32_t announce(const uint32_t more[W], const uint32_t tie[W], int64_t byte,
                             const Result &result)
{
    const int64_t bytes = (result.length + 7) / 8;
    uint32_t sign[W], mask[W], tied = 0;
    UNROLL
    for (int k = 0; k < W; k += 2) {
        uint32_t present = present32(byte, k, result.length), next = 0;
        sign[k] = more[k] & present & ~tie[k];
        mask[k] = present & ~tie[k];
        tied += (uint32_t)__popc(tie[k] & present);
        next = tie[k] & present;
        if constexpr (W > 1) {
            uint32_t after = present32(byte, k + 1, result.length);
            sign[k + 1] = more[k + 1] & after & ~tie[k + 1];
            mask[k + 1] = after & ~tie[k + 1];
            tied += (uint32_t)__popc(tie[k + 1] & after);
            next |= tie[k + 1] & after;
        }
        if (result.ties == MPISIGN_TIES_RANDOM && next) {
            uint64_t bits = mpisign_random_bits64(&result.rnd, (uint64_t)(byte + 4 * k));
            sign[k] |= tie[k] & present & (uint32_t)bits;
            if constexpr (W > 1)
                sign[k + 1] |=
                    tie[k + 1] & present32(byte, k + 1, result.length) & (uint32_t)(bits >> 32);
        }
    }
    store_words<W>(result.sign, byte, bytes, sign);
    if (result.mask)
        store_words<W>(result.mask, byte, bytes, mask);
    return tied;
}

#endif
