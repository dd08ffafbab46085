/* Kernels with one mistake each, to see that the machinery finds it. Included where gpu.h is. */
#include "gpu.h"

MPISIGN_KERNEL(THREADS, past_the_end, (const float *x, int64_t n, float *out))
{
    int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x;
    if (i <= n) /* < */
        out[0] = x[i];
}

MPISIGN_KERNEL(THREADS, before_the_start, (const float *x, float *out))
{
    out[threadIdx.x] = x[(int)threadIdx.x - 1];
}

MPISIGN_KERNEL(THREADS, misaligned, (const float *x, float *out))
{
    Words<4> four = ((const Words<4> *)(x + 1))[threadIdx.x / 8];
    out[threadIdx.x] = float_of_bits(four.w[threadIdx.x & 3]);
}

MPISIGN_KERNEL(THREADS, shared_past_the_end, (float *out))
{
    __shared__ float sums[8];
    sums[threadIdx.x / 31] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = sums[0];
}

MPISIGN_KERNEL(THREADS, shift_too_far, (uint32_t *out, int64_t by))
{
    out[threadIdx.x] = 1u << (int)by;
}

MPISIGN_KERNEL(THREADS, barrier_for_some, (float *out))
{
    if (threadIdx.x < 100)
        __syncthreads();
    out[threadIdx.x] = 1.0f;
}

MPISIGN_KERNEL(THREADS, exchange_for_some, (uint32_t *out))
{
    if (threadIdx.x & 1)
        out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, threadIdx.x, 2);
}

/* A barrier is missing: right when threads run in order, wrong when they run backwards. */
MPISIGN_KERNEL(THREADS, no_barrier, (uint32_t *out))
{
    __shared__ uint32_t value;
    if (threadIdx.x == 0)
        value = blockIdx.x + 1;
    out[blockIdx.x * THREADS + threadIdx.x] = value;
}
