/* Votes and tallies of any stack: the bit-sliced counters stay in the first-level cache. */

typedef uint8_t tile[VOTE_TILE + BLOCK]; /* not all at the same place of the cache */

/* Count planes of a tile; `positives` where rows can abstain. */
typedef struct {
    tile *negatives, *positives;
} counters;

/* As many planes as are counted with: a thread's stack may be small. */
#define COUNTERS(name, planes, abstain)                                                            \
    tile name##_room[(abstain) ? 2 * (planes) : (planes)];                                         \
    const counters name = {name##_room, (abstain) ? name##_room + (planes) : NULL};                \
    clear(&name, planes)

static const tile ISA(empty_row);

MPISIGN_FN lanes counted(const uint8_t *sign, const uint8_t *mask, int64_t at, int64_t count,
                         int what)
{
    lanes s = load_some(sign + at, count);
    if (what == SIGNS)
        return s;
    lanes m = load_some(mask + at, count);
    return what == NEGATIVES ? s & m : ~s & m;
}

/* Sixteen rows, absent ones empty. */
typedef struct {
    const uint8_t *sign[AT_ONCE], *mask[AT_ONCE];
} batch;

/* Adds a batch to the count planes from `from` on. `next`: the batch after this one; fetching it now
 * hides how far apart rows lie in memory. */
MPISIGN_FN void add_blocks(tile *counter, int from, int planes, const batch *b, const batch *next,
                           int64_t at, int64_t bytes, int count, int what)
{
    for (; at < bytes; at += BLOCK) {
        lanes v[AT_ONCE], low[4];
        MPISIGN_UNROLL
        for (int i = 0; i < AT_ONCE; i++) {
            PREFETCH_L2(next->sign[i] + at);
            if (what != SIGNS)
                PREFETCH_L2(next->mask[i] + at);
            v[i] = counted(b->sign[i], b->mask[i], at, count < BLOCK ? bytes - at : BLOCK, what);
        }
        MPISIGN_UNROLL
        for (int k = 0; k < 4; k++)
            low[k] = load_lanes(counter[from + k] + at);
        lanes carry = add_rows(low, v, AT_ONCE);
        MPISIGN_UNROLL
        for (int k = 0; k < 4; k++)
            store_lanes(counter[from + k] + at, low[k]);
        for (int k = from + 4; k < planes; k++) {
            lanes c = load_lanes(counter[k] + at);
            store_lanes(counter[k] + at, c ^ carry);
            carry &= c;
        }
    }
}

static __attribute__((noinline)) void ISA(add_batch)(tile *counter, int from, int planes,
                                                     const batch *b, const batch *next,
                                                     int64_t bytes, int what)
{
    const int64_t whole = bytes / BLOCK * BLOCK;
    if (what == SIGNS)
        add_blocks(counter, from, planes, b, next, 0, whole, BLOCK, SIGNS);
    else if (what == NEGATIVES)
        add_blocks(counter, from, planes, b, next, 0, whole, BLOCK, NEGATIVES);
    else
        add_blocks(counter, from, planes, b, next, 0, whole, BLOCK, POSITIVES);
    add_blocks(counter, from, planes, b, next, whole, bytes, 0, what);
}

/* The same rows one tile on. */
MPISIGN_FN batch ahead(const batch *b)
{
    batch next = *b;
    for (int i = 0; i < AT_ONCE; i++) {
        next.sign[i] += VOTE_TILE;
        next.mask[i] += VOTE_TILE;
    }
    return next;
}

/* Adds rows [first, last), from byte `at` on, to a counter of `planes` planes. Weighted rows
 * are added once for each bit of their weight, to the planes from that bit on. */
static void ISA(count_tile)(tile *counter, int planes, const mpisign_stack *s, int64_t first,
                           int64_t last, int64_t at, int64_t bytes, int what)
{
    uint64_t bits = 1;
    if (s->weights) {
        bits = 0;
        for (int64_t r = first; r < last; r++)
            bits |= s->weights[r];
    }
    for (int bit = 0; bits >> bit; bit++) {
        batch batches[2], first_ones;
        int64_t full = 0;
        int n = 0;
        for (int64_t r = first; r < last; r++) {
            batch *b = &batches[full % 2];
            if (s->weights && !(s->weights[r] >> bit & 1))
                continue;
            b->sign[n] = s->sign + r * s->row_stride + at;
            b->mask[n] = s->mask ? s->mask + r * s->row_stride + at : ISA(empty_row);
            if (++n < AT_ONCE)
                continue;
            if (full == 0)
                first_ones = ahead(b);
            else
                ISA(add_batch)(counter, bit, planes, &batches[1 - full % 2], b, bytes, what);
            full++;
            n = 0;
        }
        batch *b = &batches[full % 2];
        for (int i = n; i < AT_ONCE; i++)
            b->sign[i] = b->mask[i] = ISA(empty_row);
        if (full == 0)
            first_ones = ahead(b);
        else
            ISA(add_batch)(counter, bit, planes, &batches[1 - full % 2], n ? b : &first_ones, bytes, what);
        if (n > 0)
            ISA(add_batch)(counter, bit, planes, b, &first_ones, bytes, what);
    }
}

/* How many planes count to `total`, with room for add_batch at any bit of the weights. */
static int ISA(planes_for)(const mpisign_stack *s, int64_t total)
{
    int planes = 4;
    uint64_t bits = 1;
    if (s->weights)
        for (int64_t r = 0; r < s->rows; r++)
            bits |= s->weights[r];
    while (total >> planes || bits >> (planes - 3))
        planes++;
    return planes;
}

MPISIGN_FN void clear(const counters *c, int planes)
{
    for (int k = 0; k < planes; k++) {
        memset(c->negatives[k], 0, sizeof(tile));
        if (c->positives)
            memset(c->positives[k], 0, sizeof(tile));
    }
}

static void ISA(add_stack)(const counters *c, int planes, const mpisign_stack *s, int64_t first,
                           int64_t last, int64_t at, int64_t bytes)
{
    if (s->mask) {
        ISA(count_tile)(c->negatives, planes, s, first, last, at, bytes, NEGATIVES);
        ISA(count_tile)(c->positives, planes, s, first, last, at, bytes, POSITIVES);
    } else {
        ISA(count_tile)(c->negatives, planes, s, first, last, at, bytes, SIGNS);
    }
}

/* Where a block of a counted tile has more negatives than positives, and where as many. `total`: of
 * all votes where everyone votes, -1 where positives are counted. */
MPISIGN_FN void compare_tile(const counters *c, int planes, int64_t total, int64_t at, lanes *more,
                             lanes *tie)
{
    lanes negatives[MAX_PLANES], positives[MAX_PLANES];
    for (int k = 0; k < planes; k++)
        negatives[k] = load_lanes(c->negatives[k] + at);
    if (total < 0) {
        for (int k = 0; k < planes; k++)
            positives[k] = load_lanes(c->positives[k] + at);
        compare_counters(negatives, positives, planes, more, tie);
    } else {
        compare_constant(negatives, planes, (unsigned)(total / 2), more, tie);
        if (total % 2)
            *tie = zero_lanes();
    }
}

/* How a stack is counted. `votes`: all votes cast where everyone votes, else -1; of groups, groups. */
typedef struct {
    const mpisign_stack *stack;
    int64_t group, votes;
    int planes, group_planes;
} plan;

static plan ISA(plan_of)(const mpisign_stack *s, int64_t group)
{
    int64_t total = s->rows / group;
    if (s->weights) {
        total = 0;
        for (int64_t r = 0; r < s->rows; r++)
            total += s->weights[r];
    }
    const int abstain = s->mask != NULL || (group > 1 && group % 2 == 0);
    return (plan){s, group, abstain ? -1 : total, ISA(planes_for)(s, total),
                  ISA(planes_for)(s, group)};
}

MPISIGN_FN int may_tie(const plan *p)
{
    return p->votes < 0 || p->votes % 2 == 0;
}

/* Groups vote first; where a group ties it abstains. Their results are the rows that are counted. */
static void ISA(add_groups)(const counters *c, const plan *p, int64_t at, int64_t bytes)
{
    const mpisign_stack *s = p->stack;
    const int64_t groups = s->rows / p->group;
    tile sign[AT_ONCE], mask[AT_ONCE];
    for (int64_t g = 0; g < groups; g += AT_ONCE) {
        const int64_t n = groups - g < AT_ONCE ? groups - g : AT_ONCE;
        for (int64_t i = 0; i < n; i++) {
            const int64_t row = (g + i) * p->group;
            COUNTERS(inner, p->group_planes, s->mask != NULL);
            ISA(add_stack)(&inner, p->group_planes, s, row, row + p->group, at, bytes);
            for (int64_t b = 0; b < bytes; b += BLOCK) {
                lanes more, tie;
                compare_tile(&inner, p->group_planes, s->mask ? -1 : p->group, b, &more, &tie);
                store_lanes(sign[i] + b, more);
                store_lanes(mask[i] + b, ~tie);
            }
        }
        const mpisign_stack winners = {sign[0], p->votes < 0 ? mask[0] : NULL, sizeof(tile), n, 0,
                                       NULL};
        ISA(add_stack)(c, p->planes, &winners, 0, n, 0, bytes);
    }
}

static void ISA(vote_tile)(const plan *p, int64_t at, int64_t bytes, const mpisign_random *rnd,
                           verdict *v)
{
    uint8_t room[RANDOM_ROOM(VOTE_TILE)];
    const uint8_t *bits = room;
    const int draw = may_tie(p) && v->ties == MPISIGN_TIES_RANDOM;
    verdict here = *v;
    if (here.length > 8 * (at + bytes)) /* behind the tile's bytes nobody votes, and nobody ties */
        here.length = 8 * (at + bytes);
    COUNTERS(c, p->planes, p->votes < 0);
    if (p->group > 1)
        ISA(add_groups)(&c, p, at, bytes);
    else
        ISA(add_stack)(&c, p->planes, p->stack, 0, p->stack->rows, at, bytes);
    if (draw)
        bits = random_bytes(rnd, (uint64_t)at, bytes, room);
    for (int64_t b = 0; b < bytes; b += BLOCK) {
        lanes more, tie;
        compare_tile(&c, p->planes, p->votes, b, &more, &tie);
        settle_lanes(&here, at + b, bytes - b, more, tie,
                     draw ? load_lanes(bits + b) : zero_lanes(), may_tie(p));
    }
    v->tied = here.tied;
}
