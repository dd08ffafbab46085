/* Votes on any stack, tile by tile, by the counters of tile_counter.c. */

/* Where a counted tile has its highest bit set, and where it is one short of that. */
MPISIGN_FN void compare_tile(const counter *c, int may_tie, int64_t at, lanes *more, lanes *tie)
{
    *more = load_lanes(c->plane + (c->planes - 1) * c->stride + at);
    *tie = may_tie ? ~*more : zero_lanes();
    for (int k = 0; may_tie && k < c->planes - 1; k++)
        *tie &= load_lanes(c->plane + k * c->stride + at);
}

/* How votes are counted: the negatives of rows that all vote, of which more than half of all must be;
 * or BALANCE, where each row counts 2, 1 or 0 and more than one for each must come. The counter starts
 * so high that one more than this many sets its highest bit: nothing is left to compare. */
typedef struct {
    int what, planes, may_tie;
    uint64_t start;
} measure;

static measure ISA(measure_of)(const mpisign_stack *s, int64_t total, int abstain)
{
    const uint64_t half = (uint64_t)(abstain ? total : total / 2);
    const int planes = ISA(planes_for)(s, abstain ? 2 * total : total);
    return (measure){abstain ? BALANCE : SIGNS, planes, abstain || total % 2 == 0,
                     (1ull << (planes - 1)) - 1 - half};
}

/* How a stack is counted. `rows`: in the end, rows or groups; `of_group`: those of a group. */
typedef struct {
    const mpisign_stack *stack;
    int64_t group;
    measure rows, of_group;
} plan;

static plan ISA(plan_of)(const mpisign_stack *s, int64_t group)
{
    const int64_t total = votes_of(s) / group;
    const int masked = s->mask != NULL;
    const int abstain = masked || (group > 1 && group % 2 == 0);
    return (plan){s, group, ISA(measure_of)(s, total, abstain), ISA(measure_of)(s, group, masked)};
}

MPISIGN_FN int may_tie(const plan *p)
{
    return p->rows.may_tie;
}

/* Groups vote first; where a group ties it abstains. Their results are the rows that are counted. */
static void ISA(add_groups)(counter *c, const plan *p, int64_t at, int64_t bytes)
{
    const mpisign_stack *s = p->stack;
    const measure *m = &p->of_group;
    const int64_t groups = s->rows / p->group;
    fetch_queue queue = queue_of(s, at, bytes, 1), none = {0};
    tile sign[BATCH], mask[BATCH];
    for (int64_t g = 0; g < groups; g += BATCH) {
        const int64_t n = groups - g < BATCH ? groups - g : BATCH;
        for (int64_t i = 0; i < n; i++) {
            const int64_t row = (g + i) * p->group;
            COUNTER(inner, m->planes, m->start, bytes);
            ISA(add_stack)(&inner, s, row, row + p->group, at, bytes, m->what, &queue);
            ISA(finish)(&inner, bytes);
            for (int64_t b = 0; b < bytes; b += BLOCK) {
                lanes more, tie;
                compare_tile(&inner, m->may_tie, b, &more, &tie);
                store_lanes(sign[i] + b, more);
                store_lanes(mask[i] + b, ~tie);
            }
        }
        const mpisign_stack winners = {sign[0], mask[0], sizeof(tile), n, 0, NULL};
        ISA(add_stack)(c, &winners, 0, n, 0, bytes, p->rows.what, &none);
    }
}

static void ISA(vote_tile)(const plan *p, int64_t at, int64_t bytes, const mpisign_random *rnd,
                           verdict *v)
{
    const mpisign_stack *s = p->stack;
    uint8_t room[RANDOM_ROOM(VOTE_TILE)];
    const uint8_t *bits = room;
    const int draw = may_tie(p) && v->ties == MPISIGN_TIES_RANDOM;
    verdict here = *v;
    if (here.length > 8 * (at + bytes)) /* behind the tile's bytes nobody votes, and nobody ties */
        here.length = 8 * (at + bytes);
    COUNTER(c, p->rows.planes, p->rows.start, bytes);
    fetch_queue queue = queue_of(s, at, bytes, s->weights == NULL);
    if (p->group > 1)
        ISA(add_groups)(&c, p, at, bytes);
    else
        ISA(add_stack)(&c, s, 0, s->rows, at, bytes, p->rows.what, &queue);
    ISA(finish)(&c, bytes);
    if (draw)
        bits = random_bytes(rnd, (uint64_t)at, bytes, room);
    for (int64_t b = 0; b < bytes; b += BLOCK) {
        lanes more, tie;
        compare_tile(&c, may_tie(p), b, &more, &tie);
        settle_lanes(&here, at + b, bytes - b, more, tie,
                     draw ? load_lanes(bits + b) : zero_lanes(), may_tie(p));
    }
    v->tied = here.tied;
}
