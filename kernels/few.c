/* Votes and tallies of up to sixteen rows: the bit-sliced counters never leave the registers. */

/* What is counted, known when it is compiled. group: 1, or rows of a group; of groups, `rows` only tells
 * whether they are an even number. */
typedef struct {
    int rows, masked, group;
} shape;

MPISIGN_FN void count_few(const mpisign_stack *s, int n, int64_t row, int64_t at, int what,
                          lanes *counter)
{
    lanes rows[AT_ONCE];
    MPISIGN_UNROLL
    for (int r = 0; r < n; r++) {
        const int64_t from = (row + r) * s->row_stride + at;
        rows[r] = counted(s->sign + from, what == SIGNS ? NULL : s->mask + from, 0, what);
    }
    count_rows(counter, rows, n);
}

MPISIGN_FN int bit_length(int n)
{
    return 32 - __builtin_clz((unsigned)n);
}

/* What a group of an odd number of rows that all vote says: it never ties. */
MPISIGN_FN lanes vote_of_group(const mpisign_stack *s, int group, int64_t row, int64_t at)
{
    lanes counter[5], more, none;
    count_few(s, group, row, at, SIGNS, counter);
    compare_constant(counter, bit_length(group), (unsigned)(group / 2), &more, &none);
    return more;
}

/* Up to sixteen such groups, two at a time. */
MPISIGN_FN void compare_groups(const mpisign_stack *s, int group, int64_t at, lanes *more,
                               lanes *tie)
{
    lanes counter[5];
    const int groups = (int)s->rows / group;
    MPISIGN_UNROLL
    for (int k = 0; k < 5; k++)
        counter[k] = zero_lanes();
    for (int g = 0; g < groups; g += 2) {
        lanes carry, second = zero_lanes();
        const lanes first = vote_of_group(s, group, (int64_t)g * group, at);
        if (g + 1 < groups)
            second = vote_of_group(s, group, (int64_t)(g + 1) * group, at);
        FULL_ADD(carry, counter[0], counter[0], first, second);
        MPISIGN_UNROLL
        for (int k = 1; k < 5; k++) {
            const lanes both = counter[k] & carry;
            counter[k] ^= carry;
            carry = both;
        }
    }
    compare_constant(counter, 5, (unsigned)(groups / 2), more, tie);
    if (groups % 2)
        *tie = zero_lanes();
}

MPISIGN_FN void compare_few(const mpisign_stack *s, shape k, int64_t at, lanes *more, lanes *tie)
{
    lanes negatives[5], positives[5];
    if (k.group > 1) {
        compare_groups(s, k.group, at, more, tie);
    } else if (k.masked) {
        count_few(s, k.rows, 0, at, NEGATIVES, negatives);
        count_few(s, k.rows, 0, at, POSITIVES, positives);
        compare_counters(negatives, positives, bit_length(k.rows), more, tie);
    } else {
        count_few(s, k.rows, 0, at, SIGNS, negatives);
        compare_constant(negatives, bit_length(k.rows), (unsigned)(k.rows / 2), more, tie);
    }
}

/* `batches` of RANDOM_BATCH_BYTES from byte `at` on. */
MPISIGN_FN void vote_shape(const mpisign_stack *s, shape k, int64_t at, int64_t batches,
                           const mpisign_random *rnd, verdict *v)
{
    const int may_tie = k.masked || k.rows % 2 == 0;
    const int draw = may_tie && v->ties == MPISIGN_TIES_RANDOM;
    const philox_keys keys = keys_of(rnd);
    uint64_t block = (rnd->byte_offset + (uint64_t)at) >> 4;
    for (int64_t b = 0; b < batches; b++, block += RANDOM_BATCH) {
        lanes random[BATCH_LANES] = {{0}};
        if (draw)
            philox_lanes(&keys, block, random);
        UNROLL_BATCH
        for (int i = 0; i < BATCH_LANES; i++, at += BLOCK) {
            lanes more, tie;
            compare_few(s, k, at, &more, &tie);
            settle_lanes(v, at, BLOCK, more, tie, random[i], may_tie);
        }
    }
}

/* Whether the loops below know this stack. */
MPISIGN_FN int is_few(const mpisign_stack *s, int64_t group)
{
    if (s->weights)
        return 0;
    if (group == 1) /* more streams than the hardware follows are read tile by tile */
        return s->rows <= (s->mask ? AT_ONCE / 2 : AT_ONCE);
    return !s->mask && (group == 3 || group == 5 || group == 7) && s->rows / group <= AT_ONCE;
}

/* So that each number of rows has a loop of its own. */
#define UP_TO_8(CASE)                                                                              \
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#define UP_TO_16(CASE)                                                                             \
    UP_TO_8(CASE) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14) CASE(15) CASE(16)

static void ISA(vote_batches)(const mpisign_stack *s, int64_t group, int64_t at, int64_t batches,
                              const mpisign_random *rnd, verdict *v)
{
#define GROUPED(r)                                                                                 \
    case r:                                                                                        \
        if (s->rows / r % 2)                                                                       \
            vote_shape(s, (shape){1, 0, r}, at, batches, rnd, v);                                  \
        else                                                                                       \
            vote_shape(s, (shape){2, 0, r}, at, batches, rnd, v);                                  \
        return;
#define MASKED(n)                                                                                  \
    case n: vote_shape(s, (shape){n, 1, 1}, at, batches, rnd, v); return;
#define PLAIN(n)                                                                                   \
    case n: vote_shape(s, (shape){n, 0, 1}, at, batches, rnd, v); return;
    switch (group) { GROUPED(3) GROUPED(5) GROUPED(7) }
    if (s->mask)
        switch (s->rows) { UP_TO_8(MASKED) }
    switch (s->rows) { UP_TO_16(PLAIN) }
#undef PLAIN
#undef MASKED
#undef GROUPED
}

/* The last bytes, fewer than a batch, from byte `at` on, where a block of the stream begins if random
 * bits are drawn: a batch that ends in zeros. */
static void ISA(vote_tail)(const plan *p, int64_t at, int64_t bytes, const mpisign_random *rnd,
                           verdict *v)
{
    enum { ROOM = RANDOM_BATCH_BYTES };
    const mpisign_stack *s = p->stack;
    uint8_t rows[AT_ONCE + AT_ONCE / 2][ROOM], sign[ROOM], mask[ROOM];
    const mpisign_stack padded = {rows[0], s->mask ? rows[AT_ONCE] : NULL, ROOM, s->rows, 0, NULL};
    mpisign_random here = *rnd;
    verdict all = *v;
    here.byte_offset += (uint64_t)at;
    all.sign = sign;
    all.mask = v->mask ? mask : NULL;
    all.length = v->length - 8 * at < 8 * bytes ? v->length - 8 * at : 8 * bytes;
    for (int64_t r = 0; r < s->rows; r++) {
        const int64_t from = r * s->row_stride + at;
        memcpy(memset(rows[r], 0, ROOM), s->sign + from, (size_t)bytes);
        if (s->mask)
            memcpy(memset(rows[AT_ONCE + r], 0, ROOM), s->mask + from, (size_t)bytes);
    }
    ISA(vote_batches)(&padded, 1, 0, 1, &here, &all);
    memcpy(v->sign + at, sign, (size_t)bytes);
    if (v->mask)
        memcpy(v->mask + at, mask, (size_t)bytes);
    v->tied = all.tied;
}

/* Bytes [first, last). Whole batches of random bits stay in registers where they begin with a block of
 * the stream; streaming stores must begin with a cache line. */
static void ISA(vote_few)(const plan *p, int64_t first, int64_t last, const mpisign_random *rnd,
                          verdict *v)
{
    const int draw = may_tie(p) && v->ties == MPISIGN_TIES_RANDOM;
    const int64_t to_block = (int64_t)(-(rnd->byte_offset + (uint64_t)first) & 15);
    const int64_t to_line = (int64_t)(-(uintptr_t)(v->sign + first) & 63);
    const int both = !draw || (to_line - to_block) % 16 == 0;
    verdict rest = *v;
    rest.stream = rest.stream_mask = 0;
    v->stream &= both;
    v->stream_mask &= both;
    int64_t head = v->stream ? to_line : draw ? to_block : 0;
    head = head < last - first ? head : last - first;
    const int64_t batches = (last - first - head) / RANDOM_BATCH_BYTES;
    const int64_t tail = first + head + batches * RANDOM_BATCH_BYTES;
    if (batches)
        ISA(vote_batches)(p->stack, p->group, first + head, batches, rnd, v);
    if (head)
        ISA(vote_tile)(p, first, head, rnd, &rest);
    if (tail < last && p->group == 1)
        ISA(vote_tail)(p, tail, last - tail, rnd, &rest);
    else if (tail < last)
        ISA(vote_tile)(p, tail, last - tail, rnd, &rest);
    v->tied = add_sums(v->tied, rest.tied);
}

/* --- tallies ---------------------------------------------------------------------------------- */

MPISIGN_FN void tally_shape(const mpisign_stack *s, int n, int what, int64_t first, int64_t last,
                            int stream, uint8_t *out, int64_t plane_stride)
{
    for (int64_t at = first; at < last; at += BLOCK) {
        lanes counter[5];
        count_few(s, n, 0, at, what, counter);
        MPISIGN_UNROLL
        for (int k = 0; k < bit_length(n); k++)
            store_some(out + k * plane_stride + at, counter[k], BLOCK, stream);
    }
}

/* Whole blocks of up to sixteen rows; `out` has as many planes as n has bits. */
static void ISA(tally_few)(const mpisign_stack *s, int what, int64_t first, int64_t last, int stream,
                           uint8_t *out, int64_t plane_stride)
{
#define SIGN_COUNTS(n)                                                                             \
    case n: tally_shape(s, n, SIGNS, first, last, stream, out, plane_stride); return;
#define NEGATIVE_COUNTS(n)                                                                         \
    case n: tally_shape(s, n, NEGATIVES, first, last, stream, out, plane_stride); return;
#define POSITIVE_COUNTS(n)                                                                         \
    case n: tally_shape(s, n, POSITIVES, first, last, stream, out, plane_stride); return;
    if (what == SIGNS)
        switch (s->rows) { UP_TO_16(SIGN_COUNTS) }
    if (what == NEGATIVES)
        switch (s->rows) { UP_TO_8(NEGATIVE_COUNTS) }
    switch (s->rows) { UP_TO_8(POSITIVE_COUNTS) }
#undef POSITIVE_COUNTS
#undef NEGATIVE_COUNTS
#undef SIGN_COUNTS
}
