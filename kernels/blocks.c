/* Blocks of planes in and out, and what a vote makes of a comparison. */

/* Which bits of a row are counted. BALANCE: negatives twice, and those that do not vote once. */
enum { SIGNS, NEGATIVES, POSITIVES, BALANCE };

enum { VOTE_TILE = 8192, MAX_PLANES = 36, AT_ONCE = MPISIGN_MAX_ROWS_AT_ONCE };

enum { LINE = 64 };

typedef uint8_t tile[VOTE_TILE + LINE]; /* not all at the same place of the cache */

MPISIGN_FN int64_t whole_lines(int64_t bytes)
{
    return (bytes + LINE - 1) / LINE * LINE;
}

static const tile ISA(empty_row);
static const tile ISA(full_row) = {[0 ... sizeof(tile) - 1] = 0xff};

/* Bytes [0, count) of a row, the rest 0. */
MPISIGN_FN lanes load_some(const uint8_t *p, int64_t count)
{
    uint8_t padded[BLOCK] = {0};
    if (count >= BLOCK)
        return load_lanes(p);
    memcpy(padded, p, (size_t)count);
    return load_lanes(padded);
}

MPISIGN_FN void store_some(uint8_t *p, lanes v, int64_t count, int stream)
{
    if (count < BLOCK) {
        uint8_t bytes[BLOCK];
        store_lanes(bytes, v);
        memcpy(p, bytes, (size_t)count);
    } else if (stream) {
        stream_lanes(p, v);
    } else {
        store_lanes(p, v);
    }
}

/* What stays after a comparison: where the result goes and what a tie means. */
typedef struct {
    uint8_t *sign, *mask;
    int ties;
    int stream, stream_mask;
    int64_t length; /* coordinates of the whole: padding bits stay 0 */
    lane_sums tied;
} verdict;

/* The coordinates that exist among the 512 from byte `at` on. */
MPISIGN_FN lanes valid_lanes(int64_t length, int64_t at)
{
    uint8_t keep[BLOCK] = {0};
    int64_t left = length - 8 * at;
    for (int i = 0; i < BLOCK && left > 0; i++, left -= 8)
        keep[i] = left >= 8 ? 0xff : (uint8_t)(0xff >> (8 - left));
    return load_lanes(keep);
}

/* random: the tie bits of these coordinates; may_tie is known when this is compiled. */
MPISIGN_FN void settle_lanes(verdict *v, int64_t at, int64_t count, lanes more, lanes tie,
                             lanes random, int may_tie)
{
    lanes valid = ~zero_lanes();
    if (__builtin_expect(v->length - 8 * at < 8 * BLOCK, 0)) {
        valid = valid_lanes(v->length, at);
        more &= valid;
        tie &= valid;
    }
    if (may_tie) {
        v->tied = add_sums(v->tied, count_lanes(tie));
        more |= tie & random;
        if (v->ties == MPISIGN_TIES_ZERO)
            valid &= ~tie;
    }
    store_some(v->sign + at, more, count, v->stream);
    if (v->mask)
        store_some(v->mask + at, valid, count, v->stream_mask);
}
