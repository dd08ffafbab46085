/* Which pieces of a stack's rows are fetched while others are counted. */

enum { BATCH = 8 }; /* rows that are added at a time */

MPISIGN_FN int64_t entries_of(const mpisign_stack *s)
{
    return s->mask ? 2 * s->rows : s->rows;
}

/* What is fetched ahead of its use, 8 pieces of rows with each batch. Entries are the stack's rows on
 * this tile, then on the next; of masked stacks each row's sign and mask. */
typedef struct {
    const mpisign_stack *stack;
    int64_t at, tile, entry, end;
} fetch_queue;

/* Rows that are read once, in order, are fetched one batch before; others one tile before. */
MPISIGN_FN fetch_queue queue_of(const mpisign_stack *s, int64_t at, int64_t bytes, int in_order)
{
    const int64_t n = entries_of(s), ahead = in_order && n > BATCH ? BATCH : n;
    return (fetch_queue){s, at, bytes, ahead, n + ahead};
}

/* `count` entries: as many as are read meanwhile. */
static void ISA(next_entries)(fetch_queue *q, int count, const uint8_t *next[BATCH])
{
    const mpisign_stack *s = q->stack;
    const int64_t n = q->end ? entries_of(s) : 0;
    for (int i = 0; i < BATCH; i++) {
        next[i] = ISA(empty_row);
        if (i >= count || q->entry >= q->end)
            continue;
        const int64_t there = q->entry >= n, entry = q->entry - (there ? n : 0);
        q->entry++;
        const int64_t from = (s->mask ? entry / 2 : entry) * s->row_stride + q->at;
        next[i] = (s->mask && entry % 2 ? s->mask : s->sign) + from + (there ? q->tile : 0);
    }
}
