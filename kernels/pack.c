/* Gradients to sign planes, in one pass that also counts zeros and NaNs. */

/* Applies the policies to classified words and stores them. `byte`: place in the planes, of which
 * `bytes` are written; `valid` has the coordinates that exist. */
MPISIGN_FN void settle(words64 w, uint64_t valid, int64_t byte, int bytes, uint8_t *sign,
                       uint8_t *mask, int zeros, uint64_t random, mpisign_census *census)
{
    uint64_t zero = w.zero & valid, nan = w.nan & valid;
    uint64_t votes = valid & ~nan, negative = w.sign & votes & ~zero;
    if (zeros == MPISIGN_ZEROS_RANDOM)
        negative |= zero & random;
    else if (zeros == MPISIGN_ZEROS_ABSTAIN)
        votes &= ~zero;
    census->zeros += __builtin_popcountll(zero);
    census->nans += __builtin_popcountll(nan);
    store_word(sign + byte, negative, bytes);
    if (mask)
        store_word(mask + byte, votes, bytes);
}

/* Random bits for zeros, a batch at a time, and only where there is a zero. */
typedef struct {
    const mpisign_random *rnd;
    uint64_t first, last; /* bytes of the stream in `bits` */
    uint8_t bits[RANDOM_BATCH_BYTES];
} random_words;

static __attribute__((noinline)) void refill(random_words *r, uint64_t offset)
{
    r->first = offset & ~(uint64_t)15;
    r->last = r->first + RANDOM_BATCH_BYTES;
    const philox_keys keys = keys_of(r->rnd);
    philox_batch(&keys, r->first >> 4, r->bits);
}

MPISIGN_FN uint64_t random_word(random_words *r, int64_t byte)
{
    uint64_t offset = r->rnd->byte_offset + (uint64_t)byte;
    if (offset < r->first || offset + 8 > r->last)
        refill(r, offset);
    return load_word(r->bits + (offset - r->first), 8);
}

MPISIGN_FN void settle_word(words64 w, uint64_t valid, int64_t byte, int bytes, uint8_t *sign,
                            uint8_t *mask, int zeros, random_words *random, mpisign_census *census)
{
    if (__builtin_expect((w.zero | w.nan) == 0, 1)) {
        store_word(sign + byte, w.sign & valid, bytes);
        if (mask)
            store_word(mask + byte, valid, bytes);
        return;
    }
    uint64_t bits = w.zero && zeros == MPISIGN_ZEROS_RANDOM ? random_word(random, byte) : 0;
    settle(w, valid, byte, bytes, sign, mask, zeros, bits, census);
}

/* Coordinates [first, last) of a piece, first a multiple of 64. */
MPISIGN_FN void pack_words(int dtype, const mpisign_piece *piece, int64_t first, int64_t last,
                           uint8_t *sign, uint8_t *mask, int zeros, const mpisign_random *rnd,
                           mpisign_census *census)
{
    const char *data = piece->data;
    const int64_t size = item_size(dtype);
    random_words random = {.rnd = rnd, .first = 1, .last = 0};
    int64_t at = first;
    for (; at + 64 <= last; at += 64) {
        PREFETCH(data + at * size + 4096);
        settle_word(classify64(dtype, data + at * size), ~0ull, piece->byte + at / 8, 8, sign, mask,
                    zeros, &random, census);
    }
    if (at == last)
        return;
    uint64_t padded[64] = {0};
    memcpy(padded, data + at * size, (size_t)((last - at) * size));
    settle_word(classify64(dtype, padded), valid_word(last - at), piece->byte + at / 8,
                (int)((last - at + 7) / 8), sign, mask, zeros, &random, census);
}

static void ISA(pack_words_sign)(const mpisign_piece *piece, int64_t first, int64_t last,
                                 const float parameters[4], uint8_t *sign, uint8_t *mask, int zeros,
                                 const mpisign_random *rnd, mpisign_census *census)
{
    (void)parameters;
    switch (piece->dtype) { /* so that each type has a loop of its own */
    case MPISIGN_FP32:
        pack_words(MPISIGN_FP32, piece, first, last, sign, mask, zeros, rnd, census);
        break;
    case MPISIGN_FP16:
        pack_words(MPISIGN_FP16, piece, first, last, sign, mask, zeros, rnd, census);
        break;
    case MPISIGN_BF16:
        pack_words(MPISIGN_BF16, piece, first, last, sign, mask, zeros, rnd, census);
        break;
    default: pack_words(MPISIGN_FP64, piece, first, last, sign, mask, zeros, rnd, census);
    }
}
