/* What every CUDA kernel needs: wide loads and stores of 8 coordinates, one byte of a plane, a census.
 *
 * A thread's unit is 8 consecutive coordinates: one byte of a plane, so that no two threads share a
 * byte. Kernels are compiled by NVRTC (mpisign/backend/cuda/compile.py) and, for tests, by g++ with a header
 * that runs CUDA threads as fibres (tests/cuda_on_cpu/). Arguments are 8 bytes wide (addresses and
 * int64), floats, or one structure by value: nothing else, so that Python can tell by the type.
 */
#ifndef MPISIGN_GPU_H
#define MPISIGN_GPU_H

#include "shared.h"
#include "philox.h"
#include "floats.h"

/* `blocks`: that many fit a multiprocessor, which bounds the registers. Without the bound the assembler
 * spills to squeeze in one more, or hoists loads into 255. Kernels of 256 threads: 128 registers. */
#ifndef MPISIGN_KERNEL_OF
#define MPISIGN_KERNEL_OF(threads, blocks, name, parameters)                                       \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name parameters
#endif
#define MPISIGN_KERNEL(threads, name, parameters) MPISIGN_KERNEL_OF(threads, 2, name, parameters)

#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")

enum { THREADS = 256 };

template <int W> struct alignas(4 * W) Words {
    uint32_t w[W];
};

/* Items of a dtype in memory, as bit patterns. */
template <int DTYPE> struct Item {
    typedef uint16_t bits;
};
template <> struct Item<MPISIGN_FP32> {
    typedef uint32_t bits;
};
template <> struct Item<MPISIGN_FP64> {
    typedef uint64_t bits;
};

template <int DTYPE> MPISIGN_FN float widen(typename Item<DTYPE>::bits x)
{
    if constexpr (DTYPE == MPISIGN_FP32)
        return float_of_bits(x);
    else if constexpr (DTYPE == MPISIGN_FP16)
        return float_of_fp16(x);
    else if constexpr (DTYPE == MPISIGN_BF16)
        return float_of_bf16(x);
    else
        return (float)__longlong_as_double((long long)x);
}

/* Not for fp64. */
template <int DTYPE> MPISIGN_FN typename Item<DTYPE>::bits narrow(float x)
{
    if constexpr (DTYPE == MPISIGN_FP32)
        return bits_of_float(x);
    else if constexpr (DTYPE == MPISIGN_FP16)
        return fp16_of_float(x);
    else
        return bf16_of_float(x);
}

MPISIGN_FN bool is_aligned(const void *address)
{
    return ((uint64_t)address & 15) == 0;
}

/* Items [i, i + 8) in loads of 16 bytes: x is aligned, i a multiple of 8, all 8 exist. */
template <typename BITS> MPISIGN_FN void load8_wide(const BITS *x, int64_t i, BITS out[8])
{
    constexpr int each = 16 / (int)sizeof(BITS);
    const Words<4> *from = (const Words<4> *)(x + i);
    UNROLL
    for (int k = 0; k < 8 / each; k++) {
        Words<4> four = from[k];
        UNROLL
        for (int j = 0; j < each; j++) {
            if constexpr (sizeof(BITS) == 2)
                out[each * k + j] = (BITS)(four.w[j / 2] >> 16 * (j & 1));
            else if constexpr (sizeof(BITS) == 4)
                out[each * k + j] = four.w[j];
            else
                out[each * k + j] = four.w[2 * j] | (BITS)four.w[2 * j + 1] << 32;
        }
    }
}

template <typename BITS> MPISIGN_FN void store8_wide(BITS *x, int64_t i, const BITS in[8])
{
    constexpr int each = 16 / (int)sizeof(BITS);
    Words<4> *to = (Words<4> *)(x + i);
    UNROLL
    for (int k = 0; k < 8 / each; k++) {
        Words<4> four;
        UNROLL
        for (int j = 0; j < each; j++) {
            BITS v = in[each * k + j];
            if constexpr (sizeof(BITS) == 2)
                four.w[j / 2] = j & 1 ? four.w[j / 2] | (uint32_t)v << 16 : (uint32_t)v;
            else if constexpr (sizeof(BITS) == 4)
                four.w[j] = v;
            else {
                four.w[2 * j] = (uint32_t)v;
                four.w[2 * j + 1] = (uint32_t)(v >> 32);
            }
        }
        to[k] = four;
    }
}

/* Which of the 8 coordinates from i exist, as a byte. */
MPISIGN_FN uint32_t present8(int64_t i, int64_t length)
{
    int64_t left = length - i;
    return left >= 8 ? 0xffu : left <= 0 ? 0u : (1u << (int)left) - 1u;
}

/* Any address, any length: absent items read as 0. */
template <typename BITS>
MPISIGN_FN void load8_narrow(const BITS *x, int64_t i, uint32_t present, BITS out[8])
{
    UNROLL
    for (int k = 0; k < 8; k++)
        out[k] = present >> k & 1 ? x[i + k] : (BITS)0;
}

/* `wide`: x is aligned. */
template <typename BITS>
MPISIGN_FN void load8(const BITS *x, int64_t i, uint32_t present, bool wide, BITS out[8])
{
    if (wide && present == 0xff)
        load8_wide(x, i, out);
    else
        load8_narrow(x, i, present, out);
}

/* Only the items whose bit in `which` is set. */
template <typename BITS>
MPISIGN_FN void store8(BITS *x, int64_t i, uint32_t which, bool wide, const BITS in[8])
{
    if (wide && which == 0xff) {
        store8_wide(x, i, in);
    } else {
        UNROLL
        for (int k = 0; k < 8; k++)
            if (which >> k & 1)
                x[i + k] = in[k];
    }
}

/* What 8 values are, as bytes: bits of absent coordinates may be anything. */
struct Ballot {
    uint32_t negative, zero, nan;
};

/* What became of them. `counts`: zeros, and NaNs in the upper 16 bits. */
struct Votes {
    uint32_t negative, votes, counts;
};

/* The policy for zeros, and the bytes of the planes. */
MPISIGN_FN Votes cast_votes(Ballot b, uint32_t present, int64_t byte, uint8_t *sign, uint8_t *mask,
                            int64_t zeros, const mpisign_random *rnd)
{
    uint32_t nan = b.nan & present, zero = b.zero & present & ~nan;
    Votes v;
    v.votes = present & ~nan;
    v.negative = b.negative & v.votes & ~zero;
    v.counts = (uint32_t)__popc(zero) | (uint32_t)__popc(nan) << 16;
    if (zeros == MPISIGN_ZEROS_RANDOM && zero)
        v.negative |= zero & mpisign_random_byte(rnd, (uint64_t)byte);
    if (zeros == MPISIGN_ZEROS_ABSTAIN)
        v.votes &= ~zero;
    if (present) {
        sign[byte] = (uint8_t)v.negative;
        if (mask)
            mask[byte] = (uint8_t)v.votes;
    }
    return v;
}

/* census[0] += zeros, census[1] += NaNs, once a block and only where there are any: every thread of
 * the block must come here, with fewer than 65,536 coordinates between them. */
MPISIGN_FN void add_census(uint32_t counts, unsigned long long *census)
{
    __shared__ uint32_t of_warp[32];
    UNROLL
    for (int step = 16; step > 0; step /= 2)
        counts += __shfl_xor_sync(0xffffffffu, counts, step);
    if ((threadIdx.x & 31) == 0)
        of_warp[threadIdx.x >> 5] = counts;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (unsigned w = 1; w < blockDim.x >> 5; w++)
            counts += of_warp[w];
        if (counts & 0xffffu)
            atomicAdd(census, (unsigned long long)(counts & 0xffffu));
        if (counts >> 16)
            atomicAdd(census + 1, (unsigned long long)(counts >> 16));
    }
}

#endif
