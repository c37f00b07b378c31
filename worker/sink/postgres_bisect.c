/* postgres_bisect: commits a flush whatever is in it. Normally one transaction. A row that the
 * server cannot hold is found by halving, and gets a terminal row without the bytes that were
 * refused, so that one row never holds up the others; failing that, a dead letter. */
#include <stdio.h>
#include <stdlib.h>

#include "engine/log.h"
#include "worker/job/result.h"
#include "worker/sink/postgres_sink.h"

enum { SHOWN_BYTES = 48 };

/* What stands in for a row that was refused; lives until the commit ends. */
struct stand_in {
    struct stand_in *next;
    struct result result;
    const struct result *original;
    struct dead_letter dead_letter;
    char detail[480], source_key[80], names[3][257];
};
struct settling {
    struct sink_postgres *s;
    struct commit_counts *counts;
    struct stand_in *stand_ins;
    struct err *err;
};

static struct stand_in *stand_in(struct settling *g)
{
    struct stand_in *made = mem_alloc(1, sizeof *made);
    if (!made) {
        err_set(g->err, E_RETRY, "database: no memory for a row");
        return NULL;
    }
    made->next = g->stand_ins;
    g->stand_ins = made;
    return made;
}

static void describe(struct stand_in *x, const char *what, struct str bytes,
                     const struct postgres_failure *f)
{
    char hex[2 * SHOWN_BYTES + 1] = "";
    size_t n = TR_MIN(bytes.len, SHOWN_BYTES);
    for (size_t i = 0; i < n; i++)
        snprintf(hex + 2 * i, 3, "%02x", (unsigned char)bytes.ptr[i]);
    snprintf(x->detail, sizeof x->detail, "the database refused it (%s: %s); %s begins %s%s",
             f->code, f->text, what, hex, n < bytes.len ? ".." : "");
}

/* The same job, failed; without anything that came from the request or the model. */
static int replace_row(struct settling *g, struct outgoing *o, const struct postgres_failure *f)
{
    const struct result *r = o->result;
    struct stand_in *x = stand_in(g);
    if (!x)
        return E_RETRY;
    describe(x, r->answer.ptr ? "answer" : "request", r->answer.ptr ? r->answer : r->request, f);
    x->original = r;
    result_unstorable(&x->result, r, str_of(x->detail));
    o->result = &x->result;
    LOG(LOG_ERROR, "row_unstorable", LOG_STR("batch", r->key.batch_id),
        LOG_STR("custom_id", r->key.custom_id), LOG_S("sqlstate", f->code), LOG_S("text", f->text));
    return E_OK;
}

/* ASCII of at most 256 bytes: storable whatever it was. */
static struct str plain(char out[257], struct str v)
{
    size_t n = TR_MIN(v.len, 256);
    for (size_t i = 0; i < n; i++)
        out[i] = v.ptr[i] >= 0x20 && v.ptr[i] < 0x7F ? v.ptr[i] : '?';
    out[n] = '\0';
    return (struct str){out, n};
}

/* The last resort: a dead letter with nothing but ASCII and the bytes as bytes. NULL: no memory. */
static const struct dead_letter *bury(struct settling *g, const struct key *key,
                                      const struct dead_letter *like, struct str id,
                                      const struct postgres_failure *f)
{
    uint8_t sha[32];
    char hex[65];
    struct stand_in *x = stand_in(g);
    if (!x)
        return NULL;
    sha256_of(id, sha);
    sha256_hex(sha, hex);
    snprintf(x->source_key, sizeof x->source_key, "unstorable/%s", hex);
    describe(x, "message", like->payload, f);
    x->dead_letter = *like;
    x->dead_letter.source_key = str_of(x->source_key);
    x->dead_letter.key =
        (struct key){plain(x->names[0], key->run), plain(x->names[1], key->batch_id),
                     plain(x->names[2], key->custom_id)};
    x->dead_letter.reason = STR("unstorable");
    x->dead_letter.detail = str_of(x->detail);
    x->dead_letter.source = x->dead_letter.worker = (struct str){NULL, 0};
    LOG(LOG_ERROR, "message_unstorable", LOG_STR("custom_id", x->dead_letter.key.custom_id),
        LOG_S("source_key", x->source_key), LOG_S("sqlstate", f->code));
    return &x->dead_letter;
}

/* The stand-in that this row or dead letter is, or NULL. */
static const struct stand_in *stand_in_of(const struct settling *g, const void *p)
{
    for (const struct stand_in *x = g->stand_ins; x; x = x->next)
        if (p == &x->result || p == &x->dead_letter)
            return x;
    return NULL;
}

static int settle(struct settling *g, struct commit_part *part);

static int settle_buried(struct settling *g, const struct key *key, const struct dead_letter *like,
                         struct str id, int64_t now_ns, const struct postgres_failure *f)
{
    const struct dead_letter *one = bury(g, key, like, id, f);
    struct commit_part alone = {.dead_letters = &one, .n_dead_letters = 1, .now_ns = now_ns};
    return one ? settle(g, &alone) : E_RETRY;
}

/* One row is refused: first a row without its texts, then a dead letter. */
static int settle_row(struct settling *g, struct commit_part *part,
                      const struct postgres_failure *f)
{
    const struct result *r = part->rows[0].result;
    const struct stand_in *x = stand_in_of(g, r);
    if (!x)
        return replace_row(g, &part->rows[0], f);
    struct text id = {0};
    text_add(&id, r->key.run);
    text_char(&id, '\0');
    text_add(&id, r->key.batch_id);
    text_char(&id, '\0');
    text_add(&id, r->key.custom_id);
    text_add(&id, (struct str){(const char *)r->request_sha256, sizeof r->request_sha256});
    struct dead_letter like = {
        .payload = x->original->request, .attempts = r->attempts, .seen_ns = r->finished_ns};
    memcpy(like.sha256, r->request_sha256, sizeof like.sha256);
    int rc = settle_buried(g, &r->key, &like, text_view(&id), part->now_ns, f);
    text_close(&id);
    part->n_rows = 0;
    return rc;
}

static int settle_dead_letter(struct settling *g, struct commit_part *part,
                              const struct postgres_failure *f)
{
    const struct dead_letter *d = part->dead_letters[0];
    if (stand_in_of(g, d)) /* nothing is left to take away: only the operator can help */
        return err_set(g->err, E_RETRY, "database: refuses a dead letter (%s: %s)", f->code,
                       f->text);
    part->n_dead_letters = 0;
    return settle_buried(g, &d->key, d, d->source_key, part->now_ns, f);
}

/* Halves what was refused until one is left; the halves that are well are committed on the way.
 * Dead letters go ahead of the rows: a `dead` row is never there without its letter. */
static int halve(struct settling *g, struct commit_part *part, const struct postgres_failure *f)
{
    bool rows = part->n_rows && part->stage != STAGE_DEAD_LETTERS && part->stage != STAGE_REST;
    if (rows && part->n_rows == 1)
        return settle_row(g, part, f);
    if (!rows && part->n_dead_letters == 1)
        return settle_dead_letter(g, part, f);
    if (rows && part->n_dead_letters) {
        struct commit_part letters = {.dead_letters = part->dead_letters,
                                      .n_dead_letters = part->n_dead_letters,
                                      .now_ns = part->now_ns};
        part->n_dead_letters = 0;
        int rc = settle(g, &letters);
        if (rc != E_OK)
            return rc;
    }
    struct commit_part half[2] = {{.now_ns = part->now_ns}, {.now_ns = part->now_ns}};
    size_t n = rows ? part->n_rows : part->n_dead_letters, at = 0;
    for (int i = 0; i < 2; i++) {
        size_t share = i ? n - n / 2 : n / 2;
        half[i].rows = rows ? part->rows + at : NULL;
        half[i].dead_letters = rows ? NULL : part->dead_letters + at;
        *(rows ? &half[i].n_rows : &half[i].n_dead_letters) = share;
        at += share;
        int rc = settle(g, &half[i]);
        if (rc != E_OK)
            return rc;
    }
    *(rows ? &part->n_rows : &part->n_dead_letters) = 0;
    return E_OK;
}

/* Whether smaller pieces may help; the next ones are smaller than this part, then. */
static bool takes_smaller(struct sink_postgres *s, const struct commit_part *part)
{
    if (part->stage != STAGE_RESULTS || part->n_rows < 2)
        return false;
    s->policy.piece_rows = TR_MIN(s->policy.piece_rows, (int32_t)part->n_rows);
    return true;
}

static int settle(struct settling *g, struct commit_part *part)
{
    for (;;) {
        struct postgres_failure f;
        bool bisect = false;
        int rc = postgres_commit_part(g->s, part, &f);
        if (rc == SINK_CONFLICT)
            return rc;
        if (rc >= 0)
            break;
        /* Counters and positions are ours: what refuses them is no row's fault. */
        bool blamed = part->stage != STAGE_REST && part->n_rows + part->n_dead_letters > 0;
        if (f.action == SQL_DATA && !blamed)
            f.action = SQL_UNKNOWN;
        if (f.action == SQL_TIMEOUT && !takes_smaller(g->s, part))
            f.action = SQL_WAIT;
        rc = postgres_failed(g->s, "commit", &f, &bisect, g->err);
        if (rc >= 0 && bisect)
            rc = halve(g, part, &f);
        if (rc != E_OK)
            return rc;
    }
    for (size_t i = 0; i < part->n_rows; i++) {
        g->counts->inserted += part->rows[i].inserted;
        g->counts->already += !part->rows[i].inserted;
    }
    g->counts->dead_letters += part->fresh_dead_letters;
    postgres_succeeded(g->s);
    sql_policy_widen(&g->s->policy);
    return E_OK;
}

static int outgoing_compare(const void *a, const void *b)
{
    const struct outgoing *x = a, *y = b;
    int order = postgres_key_compare(&x->result->key, &y->result->key);
    return order ? order : (x->at > y->at) - (x->at < y->at);
}

static int dead_letter_compare(const void *a, const void *b)
{
    const struct dead_letter *const *x = a, *const *y = b;
    struct key left = {{NULL, 0}, {NULL, 0}, (*x)->source_key};
    struct key right = {{NULL, 0}, {NULL, 0}, (*y)->source_key};
    return postgres_key_compare(&left, &right);
}

int postgres_commit(struct sink *sink, const struct commit *c, struct commit_counts *counts,
                    struct err *err)
{
    struct sink_postgres *s = (struct sink_postgres *)sink;
    struct settling g = {.s = s, .counts = counts, .err = err};
    *counts = (struct commit_counts){0};
    s->conflicts = c->conflicts;
    /* One more tally than rows: for one that has to be buried under another name. */
    if (!postgres_room((void **)&s->outgoing, &s->outgoing_cap, c->n_results,
                       sizeof *s->outgoing) ||
        !postgres_room((void **)&s->dead_letters, &s->dead_letters_cap, c->n_dead_letters,
                       sizeof *s->dead_letters) ||
        !postgres_room((void **)&s->tallies, &s->tallies_cap, c->n_results + c->n_dead_letters + 1,
                       sizeof *s->tallies))
        return err_set(err, E_RETRY, "database: no memory for a flush");
    for (size_t i = 0; i < c->n_results; i++)
        s->outgoing[i] = (struct outgoing){.result = c->results[i], .at = i};
    for (size_t i = 0; i < c->n_dead_letters; i++)
        s->dead_letters[i] = &c->dead_letters[i];
    if (c->n_results)
        qsort(s->outgoing, c->n_results, sizeof *s->outgoing, outgoing_compare);
    if (c->n_dead_letters)
        qsort(s->dead_letters, c->n_dead_letters, sizeof *s->dead_letters, dead_letter_compare);
    struct commit_part part = {.rows = s->outgoing,
                               .n_rows = c->n_results,
                               .dead_letters = s->dead_letters,
                               .n_dead_letters = c->n_dead_letters,
                               .progress = c->progress,
                               .n_progress = c->n_progress,
                               .lost_ranges = c->lost_ranges,
                               .n_lost_ranges = c->n_lost_ranges,
                               .now_ns = c->now_ns};
    int rc = settle(&g, &part);
    while (g.stand_ins) {
        struct stand_in *next = g.stand_ins->next;
        mem_free(g.stand_ins);
        g.stand_ins = next;
    }
    return rc;
}
