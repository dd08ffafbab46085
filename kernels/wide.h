/* Vectors of floats and doubles: memory at any address, fp32 widened to fp64, the less and the more. */
#ifndef MPISIGN_WIDE_H
#define MPISIGN_WIDE_H

#include "floats64.h"

typedef double wide __attribute__((vector_size(BLOCK)));
typedef float floats __attribute__((vector_size(BLOCK)));
enum { WIDE = BLOCK / 8, FLOATS = BLOCK / 4 };

MPISIGN_FN wide load_wide(const double *p)
{
    wide v;
    memcpy(&v, p, BLOCK);
    return v;
}
MPISIGN_FN void store_wide(double *p, wide v) { memcpy(p, &v, BLOCK); }

MPISIGN_FN floats load_floats(const float *p)
{
    floats v;
    memcpy(&v, p, BLOCK);
    return v;
}
MPISIGN_FN void store_floats(float *p, floats v) { memcpy(p, &v, BLOCK); }

MPISIGN_FN wide widen(const float *p)
{
#if defined(MPISIGN_AVX512)
    return _mm512_cvtps_pd(_mm256_loadu_ps(p));
#elif defined(MPISIGN_AVX2)
    return _mm256_cvtps_pd(_mm_loadu_ps(p));
#else
    float v[2];
    memcpy(v, p, sizeof v);
    return (wide){(double)v[0], (double)v[1]};
#endif
}

/* Where `which` has all bits, else the other. */
typedef int64_t wide_bits __attribute__((vector_size(BLOCK)));
MPISIGN_FN wide choose_wide(wide_bits which, wide yes, wide no)
{
    return (wide)((which & (wide_bits)yes) | (~which & (wide_bits)no));
}

/* a < b ? a : b and a < b ? b : a: of equals, as of -0.0 and 0.0, each comes out once. */
#if defined(MPISIGN_AVX512)
MPISIGN_FN floats less_fp32(floats a, floats b) { return _mm512_min_ps(a, b); }
MPISIGN_FN floats more_fp32(floats a, floats b) { return _mm512_max_ps(b, a); }
MPISIGN_FN wide less_fp64(wide a, wide b) { return _mm512_min_pd(a, b); }
MPISIGN_FN wide more_fp64(wide a, wide b) { return _mm512_max_pd(b, a); }
#elif defined(MPISIGN_AVX2)
MPISIGN_FN floats less_fp32(floats a, floats b) { return _mm256_min_ps(a, b); }
MPISIGN_FN floats more_fp32(floats a, floats b) { return _mm256_max_ps(b, a); }
MPISIGN_FN wide less_fp64(wide a, wide b) { return _mm256_min_pd(a, b); }
MPISIGN_FN wide more_fp64(wide a, wide b) { return _mm256_max_pd(b, a); }
#else
typedef int32_t float_bits __attribute__((vector_size(BLOCK)));
MPISIGN_FN floats less_fp32(floats a, floats b)
{
    const float_bits which = a < b;
    return (floats)((which & (float_bits)a) | (~which & (float_bits)b));
}
MPISIGN_FN floats more_fp32(floats a, floats b)
{
    const float_bits which = a < b;
    return (floats)((which & (float_bits)b) | (~which & (float_bits)a));
}
MPISIGN_FN wide less_fp64(wide a, wide b) { return choose_wide(a < b, a, b); }
MPISIGN_FN wide more_fp64(wide a, wide b) { return choose_wide(a < b, b, a); }
#endif

#endif
