/* What the C and the CUDA kernels have in common: integer types, function qualifiers, policy codes.
 *
 * Sign plane: one bit per coordinate, element i at bit i (little-endian), 1 = negative.
 * Mask plane: same layout, 1 = this coordinate votes. Padding bits of both are 0.
 */
#ifndef MPISIGN_SHARED_H
#define MPISIGN_SHARED_H

#ifdef __CUDACC_RTC__ /* NVRTC comes without the C library's headers */
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
typedef int int32_t;
typedef long long int64_t;
#else
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#endif

/* Clang has no `#pragma GCC target`: what it builds is the portable unit. */
#if defined(__x86_64__) && !defined(__clang__) && !defined(__CUDACC__)
#define MPISIGN_X86_UNITS 1
#endif

#ifdef __CUDACC__
#define MPISIGN_FN static __device__ __forceinline__
#else
#define MPISIGN_FN static inline __attribute__((always_inline))
#endif

enum { MPISIGN_FP32 = 0, MPISIGN_FP16 = 1, MPISIGN_BF16 = 2, MPISIGN_FP64 = 3 };
enum { MPISIGN_ZEROS_POSITIVE = 0, MPISIGN_ZEROS_RANDOM = 1, MPISIGN_ZEROS_ABSTAIN = 2 };
enum { MPISIGN_TIES_POSITIVE = 0, MPISIGN_TIES_RANDOM = 1, MPISIGN_TIES_ZERO = 2 };

typedef struct {
    uint64_t seed;
    uint64_t step;
    uint32_t stream;      /* the rank for zeros, MPISIGN_TIE_STREAM for ties */
    uint64_t byte_offset; /* where these planes start in the whole plane: a shard, a bucket's member */
} mpisign_random;

/* The one stream that all ranks share; ranks use 0 .. 2^31 - 1. */
#define MPISIGN_TIE_STREAM 0x80000000u

#endif
