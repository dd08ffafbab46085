/* How far each row of a stack is from its group's vote: a tile is voted on, then its rows are read once
 * more, out of the first-level cache, and their differences counted. */

enum { DISTANCE_TILE = 2048 };

/* A group's vote on a tile, and where it has one: not where it ties, nor behind the last coordinate. */
typedef struct {
    tile sign, here;
} group_vote;

MPISIGN_FN void store_vote(group_vote *v, int64_t b, int64_t at, int64_t length, lanes more,
                           lanes tie)
{
    lanes here = ~tie;
    if (length - 8 * (at + b) < 8 * BLOCK)
        here &= valid_lanes(length, at + b);
    store_lanes(v->sign + b, more);
    store_lanes(v->here + b, here);
}

/* Whole blocks, a few rows that all vote: no counter leaves the registers. */
MPISIGN_FN void vote_of_few(const mpisign_stack *s, int group, int64_t row, int64_t at,
                            int64_t bytes, group_vote *v)
{
    for (int64_t b = 0; b < bytes; b += BLOCK) {
        lanes counter[5], more, tie;
        count_few(s, group, row, at + b, SIGNS, counter);
        compare_constant(counter, bit_length(group), (unsigned)(group / 2), &more, &tie);
        store_vote(v, b, at, s->length, more, group % 2 ? zero_lanes() : tie);
    }
}

/* Bytes [from, bytes) of the tile that begins at byte `at`. */
static void ISA(vote_of_any)(const plan *p, int64_t row, int64_t at, int64_t from, int64_t bytes,
                             group_vote *v)
{
    const mpisign_stack *s = p->stack;
    const measure *m = &p->of_group;
    COUNTER(c, m->planes, m->start, bytes - from);
    fetch_queue none = {0};
    ISA(add_stack)(&c, s, row, row + p->group, at + from, bytes - from, m->what, &none);
    ISA(finish)(&c, bytes - from);
    for (int64_t b = from; b < bytes; b += BLOCK) {
        lanes more, tie;
        compare_tile(&c, m->may_tie, b - from, &more, &tie);
        store_vote(v, b, at, s->length, more, tie);
    }
}

static void ISA(vote_on_tile)(const plan *p, int64_t row, int64_t at, int64_t bytes, group_vote *v)
{
    int64_t whole = bytes / BLOCK * BLOCK;
    switch (p->stack->mask ? 0 : p->group) {
    case 3: vote_of_few(p->stack, 3, row, at, whole, v); break;
    case 5: vote_of_few(p->stack, 5, row, at, whole, v); break;
    case 7: vote_of_few(p->stack, 7, row, at, whole, v); break;
    default: whole = 0;
    }
    if (whole < bytes)
        ISA(vote_of_any)(p, row, at, whole, bytes, v);
}

MPISIGN_FN lanes differing(const uint8_t *sign, const uint8_t *mask, const group_vote *v, int64_t b,
                           int64_t count)
{
    lanes d = load_some(sign + b, count) ^ load_lanes(v->sign + b);
    d &= load_lanes(v->here + b);
    if (mask)
        d &= load_some(mask + b, count);
    return d;
}

/* How many bits of a row's tile differ. Eight blocks at a time are added up by full adders: to count
 * the bits of each block would take longer than the rest. */
MPISIGN_FN int64_t distance_of(const uint8_t *sign, const uint8_t *mask, const group_vote *v,
                               int64_t bytes)
{
    lanes ones[3] = {zero_lanes(), zero_lanes(), zero_lanes()};
    lane_sums sum = zero_lanes(); /* of eights */
    int64_t b = 0;
    for (; b + 8 * BLOCK <= bytes; b += 8 * BLOCK) {
        lanes d[8];
        MPISIGN_UNROLL
        for (int i = 0; i < 8; i++) {
            PREFETCH_L2(sign + b + i * BLOCK + DISTANCE_TILE);
            if (mask)
                PREFETCH_L2(mask + b + i * BLOCK + DISTANCE_TILE);
            d[i] = differing(sign, mask, v, b + i * BLOCK, BLOCK);
        }
        sum = add_sums(sum, count_lanes(add_rows(ones, d, 8)));
    }
    MPISIGN_UNROLL
    for (int k = 2; k >= 0; k--)
        sum = add_sums(add_sums(sum, sum), count_lanes(ones[k]));
    for (; b < bytes; b += BLOCK)
        sum = add_sums(sum, count_lanes(differing(sign, mask, v, b, bytes - b)));
    return total_of(sum);
}

/* Bytes [first, last) of all rows. */
static void ISA(add_distances)(const plan *p, int64_t first, int64_t last, int64_t *distances)
{
    const mpisign_stack *s = p->stack;
    group_vote v;
    for (int64_t row = 0; row < s->rows; row += p->group) {
        for (int64_t at = first; at < last; at += DISTANCE_TILE) {
            const int64_t bytes = last - at < DISTANCE_TILE ? last - at : DISTANCE_TILE;
            ISA(vote_on_tile)(p, row, at, bytes, &v);
            for (int64_t r = row; r < row + p->group; r++) {
                const int64_t from = r * s->row_stride + at;
                distances[r] += s->mask
                                    ? distance_of(s->sign + from, s->mask + from, &v, bytes)
                                    : distance_of(s->sign + from, NULL, &v, bytes);
            }
        }
    }
}

/* Each thread adds to a line of `distances` of its own, `stride` apart. */
static void ISA(group_distances)(const mpisign_stack *stack, int64_t group, int64_t *distances,
                                 int64_t stride, int threads)
{
    const int64_t bytes = (stack->length + 7) / 8;
    const int64_t slices = (bytes + VOTE_SLICE - 1) / VOTE_SLICE;
    const plan p = ISA(plan_of)(stack, group);
    if (threads == 1) {
        ISA(add_distances)(&p, 0, bytes, distances);
        return;
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int t = 0; t < threads; t++) {
        const int64_t first = slices * t / threads * VOTE_SLICE;
        const int64_t last = slices * (t + 1) / threads * VOTE_SLICE;
        ISA(add_distances)(&p, first, last < bytes ? last : bytes, distances + t * stride);
    }
}
