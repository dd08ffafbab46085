/* The kernels for AVX-512 (F, BW, DQ, VL): x86-64 servers since 2017. */
#include "shared.h"

#if defined(MPISIGN_X86_UNITS)
#include <immintrin.h>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi,bmi2,popcnt,prefer-vector-width=512")

#define MPISIGN_UNIT avx512
#define MPISIGN_AVX512 1
#include "kernels.inc"
#endif
