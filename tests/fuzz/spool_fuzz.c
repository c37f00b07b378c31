/* Fuzzes the reader of spool segments. The first byte chooses: the bytes as they are; or written
 * records with the rest of the input laid over them, which reach behind the sums that guard a head.
 */
#include "worker/sink/spool_record.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void look(struct str v, struct str all)
{
    CHECK(v.ptr == NULL || (v.ptr >= all.ptr && v.ptr + v.len <= all.ptr + all.len));
}

/* Ends, moves on, stays inside, and what it calls a row is written back to the same bytes. */
static void walk(struct str all)
{
    struct spool_row row;
    struct text again = {0};
    enum spool_found found;
    size_t at = 0, from = 0;
    while ((found = spool_next(all, &at, &row)) != SPOOL_END) {
        CHECK(at > from && at <= all.len);
        CHECK(found != SPOOL_TORN || at == all.len);
        if (found == SPOOL_ROW) {
            text_reset(&again);
            if (row.kind == SPOOL_RESULT) {
                look(row.result.answer, all);
                look(row.result.worker, all);
                spool_put_result(&again, &row.result);
            } else if (row.kind == SPOOL_DEAD_LETTER) {
                look(row.dead_letter.payload, all);
                spool_put_dead_letter(&again, &row.dead_letter);
            } else if (row.kind == SPOOL_LOST_RANGE) {
                look(row.lost_range.reason, all);
                spool_put_lost_range(&again, &row.lost_range);
            } else {
                look(row.owner.run, all);
                spool_put_owner(&again, &row.owner);
            }
            CHECK(again.failed ||
                  str_eq(text_view(&again), (struct str){all.ptr + from, at - from}));
        }
        from = at;
    }
    text_close(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    struct str rest = {(const char *)data + 1, size - 1};
    if (data[0] & 1) {
        walk(rest);
        return 0;
    }
    /* Whole records with the input as their texts, cut and joined at its lengths. */
    struct text t = {0};
    size_t cut = rest.len / 2;
    struct str a = {rest.ptr, cut}, b = {rest.ptr + cut, rest.len - cut};
    struct result r = {.key = {a, b, a}, .answer = b, .raw = a, .correct = -1};
    struct dead_letter d = {.source_key = a, .key = {b, a, {NULL, 0}}, .payload = rest};
    struct lost_range l = {.run = a, .group = b, .source = a, .reason = b, .partition = -1};
    r.status = (enum result_status)(data[0] >> 1 & 3);
    spool_put_result(&t, &r);
    spool_put_dead_letter(&t, &d);
    spool_put_lost_range(&t, &l);
    walk(text_view(&t));
    for (size_t i = 0; i + 1 < rest.len && t.len; i += 2)
        t.ptr[(size_t)(uint8_t)rest.ptr[i] * t.len / 256] ^= rest.ptr[i + 1];
    walk(text_view(&t));
    text_close(&t);
    return 0;
}
