/* Error feedback and pack with block scales (Karimireddy et al. 2019, Algorithm 1, per block).
 *
 * q = rate g + e; scale = mean |q| of a block; votes sign(q); e = q - scale sign(q). Gradient and
 * residual are read twice and q computed twice: the second time they come from the cache if a
 * block is no more than some 64 thousand coordinates, and from memory if it is more.
 */

/* `clean`: every q is finite, and so is their sum. A sum that overflows, a scale of infinity, makes
 * all of its block count as not finite: what it would leave in the residual could never be undone. */
MPISIGN_FN void settle_corrected64(int clean, const feedback *f, int64_t at, int64_t count,
                                   float scale, random_words *random, mpisign_census *census)
{
    const uint64_t valid = count < 64 ? valid_word(count) : ~0ull;
    const int bytes = count < 64 ? (int)((count + 7) / 8) : 8;
    const size_t size = (size_t)(count < 64 ? count : 64) * sizeof(float);
    const float limit = scale < __builtin_inff() ? __builtin_inff() : 0;
    float q[64], v[64], e[64];
    corrected64(f, at, count, q);
    for (int i = 0; i < 64; i++) {
        v[i] = clean || __builtin_fabsf(q[i]) < limit ? q[i] : __builtin_nanf("");
        e[i] = q[i] - __builtin_copysignf(scale, q[i]);
    }
    words64 w = classify64_fp32(v);
    settle_word(w, valid, at / 8, bytes, f->sign, f->mask, f->zeros, random, census);
    if (__builtin_expect((w.zero | w.nan) != 0, 0)) {
        uint8_t voted[8] = {0};
        const uint64_t none = w.nan | (f->zeros == MPISIGN_ZEROS_ABSTAIN ? w.zero : 0);
        float d[64], old[64] = {0};
        memcpy(voted, f->sign + at / 8, (size_t)bytes);
        memcpy(old, f->residual + at, size);
        votes64(0, voted, NULL, scale, d);
        for (int i = 0; i < 64; i++) {
            float kept = none >> i & 1 ? q[i] : q[i] - d[i];
            e[i] = w.nan >> i & 1 ? old[i] : kept;
        }
    }
    memcpy(f->residual + at, e, size);
}

/* 64 coordinates where every q is finite: the usual case, with nothing to remember. */
MPISIGN_FN void settle_clean64(const feedback *f, int64_t at, float scale, random_words *random,
                               mpisign_census *census)
{
    float_at *e = (float_at *)(f->residual + at);
    float q[64];
    corrected64(f, at, 64, q);
    words64 w = classify64_fp32(q);
    settle_word(w, ~0ull, at / 8, 8, f->sign, f->mask, f->zeros, random, census);
    for (int i = 0; i < 64; i++)
        e[i] = q[i] - __builtin_copysignf(scale, q[i]);
    if (__builtin_expect(w.zero != 0, 0)) { /* votes that are no sign of q, or none */
        const uint64_t minus = load_word(f->sign + at / 8, 8);
        for (int i = 0; i < 64; i++)
            if (w.zero >> i & 1)
                e[i] = f->zeros == MPISIGN_ZEROS_ABSTAIN ? q[i]
                                                         : q[i] - (minus >> i & 1 ? -scale : scale);
    }
}

MPISIGN_FN void settle_corrected(int clean, const feedback *f, int64_t first, int64_t last,
                                 float scale, mpisign_census *census)
{
    random_words random = {.rnd = f->rnd, .first = 1, .last = 0};
    int64_t at = first;
    for (; at + 64 <= last; at += 64) {
        fetch_ahead(f, f->residual, sizeof *f->residual, at, 64);
        if (clean)
            settle_clean64(f, at, scale, &random, census);
        else
            settle_corrected64(0, f, at, 64, scale, &random, census);
    }
    if (at < last)
        settle_corrected64(clean, f, at, last - at, scale, &random, census);
}

static ALONE void ISA(settle_slice)(int clean, const feedback *f, int64_t first, int64_t last,
                              float scale, mpisign_census *census)
{
    if (clean)
        settle_corrected(1, f, first, last, scale, census);
    else
        settle_corrected(0, f, first, last, scale, census);
}

static mpisign_census ISA(error_feedback)(const void *grad, int dtype, float *residual,
                                          int64_t length, float rate, int64_t block, uint8_t *sign,
                                          uint8_t *mask, float *scales, int zeros,
                                          const mpisign_random *rnd, int threads)
{
    /* Blocks bigger than the cache are read from memory twice: nothing to fetch for. */
    const int64_t ahead = block > CHUNK ? 0 : block > AHEAD ? block : AHEAD;
    const feedback f = {(const char *)grad, dtype, residual, rate, sign, mask, zeros, rnd, ahead};
    const int64_t blocks = length ? (length - 1) / block + 1 : 0;
    int64_t n_zeros = 0, n_nans = 0;
    if (threads > 1 && length <= 4 * CHUNK)
        threads = 1;
    if (block <= CHUNK) {
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : n_zeros, n_nans)      \
    if (threads > 1)
        for (int64_t b = 0; b < blocks; b++) {
            int64_t first = b * block, last = length - first < block ? length : first + block;
            const uint64_t floats = plain_floats();
            mpisign_census part = {0, 0};
            float sum = ISA(sum_of_chunk)(0, &f, first, last);
            const int clean = sum < __builtin_inff(); /* so is each q */
            if (!clean)
                sum = ISA(sum_of_chunk)(1, &f, first, last);
            const float scale = sum / (float)(last - first);
            scales[b] = scale < __builtin_inff() ? scale : 0;
            ISA(settle_slice)(clean, &f, first, last, scale, &part);
            restore_floats(floats);
            n_zeros += part.zeros;
            n_nans += part.nans;
        }
        return (mpisign_census){n_zeros, n_nans};
    }
    for (int64_t b = 0; b < blocks; b++) {
        int64_t first = b * block, last = length - first < block ? length : first + block;
        float sum = ISA(sum_of_block)(0, &f, first, last, threads);
        const int clean = sum < __builtin_inff();
        if (!clean)
            sum = ISA(sum_of_block)(1, &f, first, last, threads);
        const float scale = sum / (float)(last - first);
        scales[b] = scale < __builtin_inff() ? scale : 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : n_zeros, n_nans)      \
    if (threads > 1)
        for (int64_t at = first; at < last; at += CHUNK) {
            const uint64_t floats = plain_floats();
            mpisign_census part = {0, 0};
            ISA(settle_slice)(clean, &f, at, last - at < CHUNK ? last : at + CHUNK, scale, &part);
            restore_floats(floats);
            n_zeros += part.zeros;
            n_nans += part.nans;
        }
    }
    return (mpisign_census){n_zeros, n_nans};
}
