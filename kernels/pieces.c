/* Many arrays into one plane in one call, under any rule that decides each coordinate by itself. */

typedef void (*word_rule)(const mpisign_piece *piece, int64_t first, int64_t last,
                          const float parameters[4], uint8_t *sign, uint8_t *mask, int zeros,
                          const mpisign_random *rnd, mpisign_census *census);

static const word_rule ISA(rules)[] = {
    [MPISIGN_SIGN] = ISA(pack_words_sign),
    [MPISIGN_SIGNUM] = ISA(pack_words_signum),
    [MPISIGN_LION] = ISA(pack_words_lion),
    [MPISIGN_SPARSIGN] = ISA(pack_words_sparsign),
};

enum { PIECE_SLICE = 1 << 16 }; /* coordinates that one thread takes at a time */

static mpisign_census ISA(pack_pieces)(int rule, const float parameters[4],
                                       const mpisign_piece *pieces, int64_t n, uint8_t *sign,
                                       uint8_t *mask, int zeros, const mpisign_random *rnd,
                                       int threads)
{
    const word_rule words = ISA(rules)[rule];
    mpisign_census census = {0, 0};
    int64_t total = 0, n_zeros = 0, n_nans = 0;
    for (int64_t i = 0; i < n; i++)
        total += pieces[i].length;
    if (threads == 1 || total <= 4 * PIECE_SLICE) {
        const uint64_t floats = plain_floats();
        for (int64_t i = 0; i < n; i++)
            words(&pieces[i], 0, pieces[i].length, parameters, sign, mask, zeros, rnd, &census);
        restore_floats(floats);
        return census;
    }
#pragma omp parallel num_threads(threads) reduction(+ : n_zeros, n_nans)
    for (int64_t i = 0; i < n; i++) {
        const int64_t length = pieces[i].length;
#pragma omp for schedule(static) nowait
        for (int64_t at = 0; at < length; at += PIECE_SLICE) {
            const uint64_t floats = plain_floats();
            mpisign_census part = {0, 0};
            words(&pieces[i], at, at + PIECE_SLICE < length ? at + PIECE_SLICE : length, parameters,
                  sign, mask, zeros, rnd, &part);
            restore_floats(floats);
            n_zeros += part.zeros;
            n_nans += part.nans;
        }
    }
    return (mpisign_census){n_zeros, n_nans};
}

/* --- one array of any strides ---------------------------------------------------------------- */

/* Merges neighbouring dimensions that are one run in memory; the last one left may be strided. */
static mpisign_array ISA(coalesce)(const mpisign_array *x)
{
    mpisign_array y = *x;
    y.ndim = 0;
    for (int k = 0; k < x->ndim; k++) {
        if (x->shape[k] == 1)
            continue;
        if (y.ndim > 0 && y.strides[y.ndim - 1] == x->shape[k] * x->strides[k]) {
            y.shape[y.ndim - 1] *= x->shape[k];
            y.strides[y.ndim - 1] = x->strides[k];
        } else {
            y.shape[y.ndim] = x->shape[k];
            y.strides[y.ndim] = x->strides[k];
            y.ndim++;
        }
    }
    if (y.ndim == 0) {
        y.shape[0] = 1;
        y.strides[0] = item_size(x->dtype);
        y.ndim = 1;
    }
    return y;
}

/* Gathers 64 coordinates at a time through an odometer over the outer dimensions. */
static mpisign_census ISA(pack_strided)(const mpisign_array *x, int64_t length, uint8_t *sign,
                                        uint8_t *mask, int zeros, const mpisign_random *rnd)
{
    const size_t size = (size_t)item_size(x->dtype);
    const int inner = x->ndim - 1;
    int64_t index[MPISIGN_MAX_DIMS] = {0};
    const char *row = x->data;
    mpisign_census census = {0, 0};
    char block[64 * 8];
    int64_t column = 0;
    for (int64_t at = 0; at < length; at += 64) {
        int64_t count = length - at < 64 ? length - at : 64;
        for (int64_t i = 0; i < count; i++) {
            memcpy(block + (size_t)i * size, row + column * x->strides[inner], size);
            if (++column < x->shape[inner])
                continue;
            column = 0;
            for (int k = inner - 1; k >= 0; k--) {
                row += x->strides[k];
                if (++index[k] < x->shape[k])
                    break;
                row -= x->shape[k] * x->strides[k];
                index[k] = 0;
            }
        }
        const mpisign_piece piece = {block, count, x->dtype, at / 8, NULL, 0};
        ISA(pack_words_sign)(&piece, 0, count, NULL, sign, mask, zeros, rnd, &census);
    }
    return census;
}

static mpisign_census ISA(pack)(const mpisign_array *x, uint8_t *sign, uint8_t *mask, int zeros,
                                const mpisign_random *rnd, int threads)
{
    int64_t length = 1;
    for (int k = 0; k < x->ndim; k++)
        length *= x->shape[k];
    if (length == 0)
        return (mpisign_census){0, 0};
    mpisign_array y = ISA(coalesce)(x);
    if (y.ndim == 1 && y.strides[0] == item_size(y.dtype)) {
        const mpisign_piece piece = {y.data, length, y.dtype, 0, NULL, 0};
        return ISA(pack_pieces)(MPISIGN_SIGN, NULL, &piece, 1, sign, mask, zeros, rnd, threads);
    }
    return ISA(pack_strided)(&y, length, sign, mask, zeros, rnd);
}
