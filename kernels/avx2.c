/* The kernels for AVX2: any other x86-64 of the last ten years. */
#include "shared.h"

#if defined(MPISIGN_X86_UNITS)
#include <immintrin.h>

#pragma GCC target("avx2,f16c,bmi,bmi2,popcnt")

#define MPISIGN_UNIT avx2
#define MPISIGN_AVX2 1
#include "kernels.inc"
#endif
