/* postgres_commit: the transaction that writes results, dead letters, batches and progress. */
#include <stdlib.h>

#include "worker/failpoint.h"
#include "worker/job/output_sum.h"
#include "worker/sink/postgres_sink.h"

const char postgres_results_layout[] = "ttttttitiiiitttttibtttttltttitdwww";

const char postgres_results_sql[] =
    "WITH w AS (INSERT INTO tranche.results (run, batch_id, custom_id, status, answer, reasoning, "
    "correct, finish_reason, prompt_tokens, completion_tokens, reasoning_tokens, cached_tokens, "
    "logprobs, prompt_logprobs, choices, error_code, error_detail, sanitized, raw, model, "
    "model_sha256, fingerprint, config_revision, params, seed, request, request_sha256, source, "
    "attempts, worker, device_seconds, queued_at, started_at, finished_at) SELECT * FROM "
    "unnest($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17,$18,$19,$20,$21,$22,$23,"
    "$24,$25,$26,$27,$28,$29,$30,$31,$32,$33,$34) "
    "ON CONFLICT (run, batch_id, custom_id) DO NOTHING RETURNING run, batch_id, custom_id), "
    "a AS (DELETE FROM tranche.job_attempts j USING unnest($1,$2,$3) AS k(run, batch_id, "
    "custom_id) WHERE j.run=k.run AND j.batch_id=k.batch_id AND j.custom_id=k.custom_id), "
    "p AS (DELETE FROM tranche.parked j USING unnest($1,$2,$3) AS k(run, batch_id, custom_id) "
    "WHERE j.run=k.run AND j.batch_id=k.batch_id AND j.custom_id=k.custom_id) "
    "SELECT run, batch_id, custom_id FROM w";

/* A message that comes again leaves its first row but for last_seen: the first answer counts only
 * the new ones, also when the outcome of a COMMIT was not known and all is sent twice. A row that
 * had to become a dead letter is settled, so its starts are forgotten. */
static const char dead_sql[] =
    "WITH n AS (INSERT INTO tranche.dead_letters (source_key, run, batch_id, custom_id, reason, "
    "detail, payload, sha256, source, attempts, first_seen, last_seen, worker, queue, message_key) "
    "SELECT s, r, b, c, x, d, p, h, o, a, t, t, w, q, m FROM "
    "unnest($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14) AS "
    "v(s, r, b, c, x, d, p, h, o, a, t, w, q, m) ON CONFLICT (source_key) DO NOTHING "
    "RETURNING source_key), "
    "u AS (UPDATE tranche.dead_letters j SET last_seen=k.t FROM unnest($1,$11) AS k(s, t) "
    "WHERE j.source_key=k.s AND j.last_seen<k.t), "
    "a AS (DELETE FROM tranche.job_attempts j USING unnest($2,$3,$4,$5) AS k(r, b, c, x) "
    "WHERE k.x='unstorable' AND j.run=k.r AND j.batch_id=k.b AND j.custom_id=k.c) "
    "SELECT source_key FROM n";

static const char batches_sql[] =
    "INSERT INTO tranche.batches AS j (run, batch_id, source, config_revision, rows_ok, "
    "rows_failed, rows_invalid, rows_expired, rows_cancelled, rows_dead, dead_letters, created_at, "
    "updated_at, outputs_sha256) SELECT *, repeat('0', 64) FROM "
    "unnest($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13) "
    "ON CONFLICT (run, batch_id) DO UPDATE SET "
    "config_revision=coalesce(EXCLUDED.config_revision, j.config_revision), "
    "rows_ok=j.rows_ok+EXCLUDED.rows_ok, rows_failed=j.rows_failed+EXCLUDED.rows_failed, "
    "rows_invalid=j.rows_invalid+EXCLUDED.rows_invalid, "
    "rows_expired=j.rows_expired+EXCLUDED.rows_expired, "
    "rows_cancelled=j.rows_cancelled+EXCLUDED.rows_cancelled, "
    "rows_dead=j.rows_dead+EXCLUDED.rows_dead, "
    "dead_letters=j.dead_letters+EXCLUDED.dead_letters, updated_at=EXCLUDED.updated_at "
    "RETURNING run, batch_id, outputs_sha256";
static const char sums_sql[] =
    "UPDATE tranche.batches j SET outputs_sha256=k.h FROM unnest($1,$2,$3) AS k(r, b, h) "
    "WHERE j.run=k.r AND j.batch_id=k.b";

/* A worker that lost its partition may write an older position: it changes nothing. */
static const char progress_sql[] =
    "INSERT INTO tranche.partition_progress AS j (run, consumer_group, source, partition, "
    "position, messages, updated_at) SELECT * FROM unnest($1,$2,$3,$4,$5,$6,$7) "
    "ON CONFLICT (run, consumer_group, source, partition) DO UPDATE SET "
    "position=EXCLUDED.position, messages=EXCLUDED.messages, updated_at=EXCLUDED.updated_at "
    "WHERE j.position<=EXCLUDED.position";

static const char lost_sql[] =
    "INSERT INTO tranche.lost_ranges (run, consumer_group, source, partition, from_position, "
    "to_position, reason, noticed_at) SELECT * FROM unnest($1,$2,$3,$4,$5,$6,$7,$8) "
    "ON CONFLICT DO NOTHING";

static int str_compare(struct str a, struct str b)
{
    int order = TR_MIN(a.len, b.len) ? memcmp(a.ptr, b.ptr, TR_MIN(a.len, b.len)) : 0;
    return order ? order : (a.len > b.len) - (a.len < b.len);
}

int postgres_key_compare(const struct key *a, const struct key *b)
{
    int order = str_compare(a->run, b->run);
    order = order ? order : str_compare(a->batch_id, b->batch_id);
    return order ? order : str_compare(a->custom_id, b->custom_id);
}

bool postgres_room(void **array, size_t *cap, size_t n, size_t size)
{
    if (n <= *cap)
        return true;
    size_t grown = TR_MAX(n, *cap * 2);
    void *fresh = mem_alloc(grown, size);
    if (!fresh)
        return false;
    if (*cap)
        memcpy(fresh, *array, *cap * size);
    mem_free(*array);
    *array = fresh;
    *cap = grown;
    return true;
}

/* ---- tallies ---- */

static int tally_compare(const void *a, const void *b)
{
    const struct batch_tally *x = a, *y = b;
    int order = str_compare(x->run, y->run);
    return order ? order : str_compare(x->batch_id, y->batch_id);
}

/* The tally of a key's batch, made where there is none; NULL: no memory. */
static struct batch_tally *tally_of(struct sink_postgres *s, const struct key *key)
{
    for (size_t i = s->n_tallies; i-- > 0;)
        if (str_eq(s->tallies[i].run, key->run) && str_eq(s->tallies[i].batch_id, key->batch_id))
            return &s->tallies[i];
    if (!postgres_room((void **)&s->tallies, &s->tallies_cap, s->n_tallies + 1, sizeof *s->tallies))
        return NULL;
    postgres_touch(s, key);
    struct batch_tally *t = &s->tallies[s->n_tallies++];
    *t = (struct batch_tally){.run = key->run, .batch_id = key->batch_id};
    return t;
}

static void tally_row(struct batch_tally *t, const struct outgoing *o)
{
    const struct result *r = o->result;
    t->rows[r->status]++;
    output_sum_add(t->outputs, r->output_sha256);
    if (!t->first || o->at + 1 < t->first) {
        t->first = o->at + 1;
        t->source = r->source;
    }
    if (o->at + 1 > t->newest) {
        t->newest = o->at + 1;
        t->config_revision = r->config_revision;
    }
}

/* ---- results ---- */

void postgres_put_result(struct postgres_arrays *a, const struct result *r)
{
    arrays_str(a, r->key.run);
    arrays_str(a, r->key.batch_id);
    arrays_str(a, r->key.custom_id);
    arrays_str(a, str_of(result_status_name(r->status)));
    arrays_str(a, r->answer);
    arrays_str(a, r->reasoning);
    if (r->correct >= 0)
        arrays_int(a, r->correct);
    else
        arrays_null(a);
    arrays_str(a, r->finish_reason);
    arrays_int(a, r->prompt_tokens);
    arrays_int(a, r->completion_tokens);
    arrays_int(a, r->reasoning_tokens);
    arrays_int(a, r->cached_tokens);
    arrays_str(a, r->logprobs);
    arrays_str(a, r->prompt_logprobs);
    arrays_str(a, r->choices);
    arrays_str(a, r->error_code);
    arrays_str(a, r->error_detail);
    arrays_int(a, r->sanitized);
    arrays_str(a, r->raw);
    arrays_str(a, r->model);
    arrays_str(a, r->model_sha256);
    arrays_str(a, r->fingerprint);
    arrays_str(a, r->config_revision);
    arrays_str(a, r->params);
    if (r->has_seed)
        arrays_int(a, r->seed);
    else
        arrays_null(a);
    arrays_str(a, r->request);
    arrays_hash(a, r->request_sha256);
    arrays_str(a, r->source);
    arrays_int(a, r->attempts);
    arrays_str(a, r->worker);
    arrays_real(a, r->device_seconds);
    arrays_time(a, r->queued_ns);
    arrays_time(a, r->started_ns);
    arrays_time(a, r->finished_ns);
}

/* The first row of the piece with this key, by bisection; the piece is sorted. */
static struct outgoing *row_of(struct outgoing *rows, size_t n, const struct key *key)
{
    size_t low = 0, high = n;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (postgres_key_compare(&rows[mid].result->key, key) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return low < n && postgres_key_compare(&rows[low].result->key, key) == 0 ? &rows[low] : NULL;
}

static int put_piece(struct sink_postgres *s, struct outgoing *rows, size_t n,
                     struct postgres_failure *f)
{
    PGresult *back = NULL;
    int rc = postgres_query(&s->pg, postgres_results_sql, &s->arrays, false, &back, f);
    for (int i = 0; rc >= 0 && i < PQntuples(back); i++) {
        struct key key = {postgres_cell(back, i, 0), postgres_cell(back, i, 1),
                          postgres_cell(back, i, 2)};
        struct outgoing *o = row_of(rows, n, &key);
        if (o) /* a trigger of the operator's may have changed the key */
            o->inserted = true;
    }
    PQclear(back);
    return rc;
}

/* Statements of at most piece_rows rows and PIECE_BYTES_MAX bytes, one behind the other. */
static int put_results(struct sink_postgres *s, struct commit_part *part,
                       struct postgres_failure *f)
{
    int rc = E_OK;
    size_t from = 0;
    for (size_t i = 0; i < part->n_rows && rc >= 0; i++) {
        if (i == from)
            arrays_begin(&s->arrays, postgres_results_layout);
        part->rows[i].inserted = false;
        postgres_put_result(&s->arrays, part->rows[i].result);
        if (i + 1 < part->n_rows && i + 1 - from < (size_t)s->policy.piece_rows &&
            s->arrays.bytes < PIECE_BYTES_MAX)
            continue;
        rc = put_piece(s, part->rows + from, i + 1 - from, f);
        if (rc < 0 && f->late) /* a slow link never takes one of this size */
            sql_policy_narrow(&s->policy, (int32_t)(i + 1 - from));
        from = i + 1;
    }
    for (size_t i = 0; i < part->n_rows && rc >= 0; i++) {
        struct batch_tally *t = tally_of(s, &part->rows[i].result->key);
        CHECK(t);
        if (part->rows[i].inserted)
            tally_row(t, &part->rows[i]);
    }
    return rc;
}

/* A row that was not inserted may be another request's: asked by a statement of its own, which sees
 * what was committed while the first one waited for it. */
static const char conflict_sql[] =
    "SELECT k.at FROM unnest($1,$2,$3,$4,$5) AS k(run, batch_id, custom_id, h, at) WHERE k.h <> "
    "(SELECT j.request_sha256 FROM tranche.results j WHERE j.run=k.run AND j.batch_id=k.batch_id "
    "AND j.custom_id=k.custom_id)";

static int find_conflicts(struct sink_postgres *s, struct commit_part *part,
                          struct postgres_failure *f)
{
    struct postgres_arrays *a = &s->arrays;
    PGresult *back = NULL;
    size_t n = 0;
    arrays_begin(a, "ttttl");
    for (size_t i = 0; s->conflicts && i < part->n_rows; i++) {
        const struct outgoing *o = &part->rows[i];
        if (o->inserted)
            continue;
        arrays_str(a, o->result->key.run);
        arrays_str(a, o->result->key.batch_id);
        arrays_str(a, o->result->key.custom_id);
        arrays_hash(a, o->result->request_sha256);
        arrays_int(a, (int64_t)o->at);
        n++;
    }
    int rc = n ? postgres_query(&s->pg, conflict_sql, a, false, &back, f) : E_OK;
    for (int i = 0; rc >= 0 && i < PQntuples(back); i++) {
        s->conflicts[strtoll(PQgetvalue(back, i, 0), NULL, 10)] = true;
        rc = SINK_CONFLICT;
    }
    PQclear(back);
    return rc;
}

/* ---- dead letters, batches, progress ---- */

static int put_dead_letters(struct sink_postgres *s, struct commit_part *part,
                            struct postgres_failure *f)
{
    struct postgres_arrays *a = &s->arrays;
    PGresult *back = NULL;
    arrays_begin(a, "ttttttbttiwttb");
    for (size_t i = 0; i < part->n_dead_letters; i++) {
        const struct dead_letter *d = part->dead_letters[i];
        if (i && str_eq(d->source_key, part->dead_letters[i - 1]->source_key))
            continue; /* twice in one flush */
        arrays_str(a, d->source_key);
        arrays_str(a, d->key.run);
        arrays_str(a, d->key.batch_id);
        arrays_str(a, d->key.custom_id);
        arrays_str(a, d->reason);
        arrays_str(a, d->detail);
        arrays_str(a, d->payload);
        arrays_hash(a, d->sha256);
        arrays_str(a, d->source);
        arrays_int(a, d->attempts);
        arrays_time(a, d->seen_ns);
        arrays_str(a, d->worker);
        arrays_str(a, s->sink.queue);
        arrays_str(a, d->message_key);
    }
    int rc = postgres_query(&s->pg, dead_sql, a, false, &back, f);
    for (size_t i = 0; i < part->n_dead_letters && rc >= 0; i++)
        CHECK(tally_of(s, &part->dead_letters[i]->key));
    for (int k = 0; rc >= 0 && k < PQntuples(back); k++) {
        struct str key = postgres_cell(back, k, 0);
        for (size_t i = 0; i < part->n_dead_letters; i++) {
            if (str_eq(part->dead_letters[i]->source_key, key)) {
                tally_of(s, &part->dead_letters[i]->key)->dead_letters++;
                part->fresh_dead_letters++;
                break;
            }
        }
    }
    PQclear(back);
    return rc;
}

/* The rows of `batches` are locked by the first statement, so the sums cannot change between. */
static int put_batches(struct sink_postgres *s, int64_t now_ns, struct postgres_failure *f)
{
    struct postgres_arrays *a = &s->arrays;
    PGresult *back = NULL, *none = NULL;
    if (s->n_tallies)
        qsort(s->tallies, s->n_tallies, sizeof *s->tallies, tally_compare);
    arrays_begin(a, "ttttlllllllww");
    for (size_t i = 0; i < s->n_tallies; i++) {
        const struct batch_tally *t = &s->tallies[i];
        arrays_str(a, t->run);
        arrays_str(a, t->batch_id);
        arrays_str(a, t->source);
        arrays_str(a, t->config_revision);
        for (int k = 0; k < RESULT_STATUSES; k++)
            arrays_int(a, t->rows[k]);
        arrays_int(a, t->dead_letters);
        arrays_time(a, now_ns);
        arrays_time(a, now_ns);
    }
    int rc = postgres_query(&s->pg, batches_sql, a, false, &back, f);
    arrays_begin(a, "ttt");
    for (int i = 0; rc >= 0 && i < PQntuples(back); i++) {
        uint8_t sum[32];
        struct key key = {postgres_cell(back, i, 0), postgres_cell(back, i, 1), {NULL, 0}};
        output_sum_parse(postgres_cell(back, i, 2), sum);
        const struct batch_tally *t = tally_of(s, &key);
        if (!t)
            continue;
        output_sum_add(sum, t->outputs);
        arrays_str(a, key.run);
        arrays_str(a, key.batch_id);
        arrays_hash(a, sum);
    }
    if (rc >= 0)
        rc = postgres_query(&s->pg, sums_sql, a, false, &none, f);
    PQclear(back);
    PQclear(none);
    return rc;
}

static int put_progress(struct sink_postgres *s, const struct commit_part *part,
                        struct postgres_failure *f)
{
    struct postgres_arrays *a = &s->arrays;
    PGresult *none = NULL;
    arrays_begin(a, "tttillw");
    for (size_t i = 0; i < part->n_progress; i++) {
        const struct progress *p = &part->progress[i];
        arrays_str(a, p->run);
        arrays_str(a, p->group);
        arrays_str(a, p->source);
        arrays_int(a, p->partition);
        arrays_int(a, p->position);
        arrays_int(a, p->messages);
        arrays_time(a, part->now_ns);
    }
    int rc = postgres_query(&s->pg, progress_sql, a, false, &none, f);
    PQclear(none);
    return rc;
}

static int put_lost(struct sink_postgres *s, const struct commit_part *part,
                    struct postgres_failure *f)
{
    struct postgres_arrays *a = &s->arrays;
    PGresult *none = NULL;
    arrays_begin(a, "tttilltw");
    for (size_t i = 0; i < part->n_lost_ranges; i++) {
        const struct lost_range *l = &part->lost_ranges[i];
        arrays_str(a, l->run);
        arrays_str(a, l->group);
        arrays_str(a, l->source);
        arrays_int(a, l->partition);
        arrays_int(a, l->from);
        arrays_int(a, l->to);
        arrays_str(a, l->reason);
        arrays_time(a, part->now_ns);
    }
    int rc = postgres_query(&s->pg, lost_sql, a, false, &none, f);
    PQclear(none);
    return rc;
}

/* COMMIT of a transaction that the server has given up answers ROLLBACK, without an error. */
static int end(struct sink_postgres *s, struct postgres_failure *f)
{
    PGresult *back = NULL;
    int rc = postgres_query(&s->pg, "COMMIT", NULL, false, &back, f);
    if (rc >= 0 && strcmp(PQcmdStatus(back), "COMMIT") != 0) {
        *f = (struct postgres_failure){.action = SQL_CONFLICT, .text = "rolled back at COMMIT"};
        rc = E_RETRY;
    }
    PQclear(back);
    return rc;
}

int postgres_commit_part(struct sink_postgres *s, struct commit_part *part,
                         struct postgres_failure *f)
{
    s->n_tallies = 0;
    part->fresh_dead_letters = 0;
    part->stage = STAGE_BEGIN;
    int rc = postgres_begin(&s->pg, f);
    FAILPOINT("s7.after_begin");
    if (rc >= 0 && part->n_rows) {
        part->stage = STAGE_RESULTS;
        rc = put_results(s, part, f);
        FAILPOINT("s7.after_results");
        if (rc >= 0)
            rc = find_conflicts(s, part, f);
        if (rc == SINK_CONFLICT) {
            postgres_rollback(&s->pg);
            return rc;
        }
    }
    if (rc >= 0 && part->n_dead_letters) {
        part->stage = STAGE_DEAD_LETTERS;
        rc = put_dead_letters(s, part, f);
        FAILPOINT("s7.after_dead_letters");
    }
    if (rc < 0)
        return rc;
    part->stage = STAGE_REST;
    if (s->n_tallies)
        rc = put_batches(s, part->now_ns, f);
    FAILPOINT("s7.after_batches");
    if (rc >= 0 && part->n_progress)
        rc = put_progress(s, part, f);
    if (rc >= 0 && part->n_lost_ranges)
        rc = put_lost(s, part, f);
    if (rc >= 0) {
        part->stage = STAGE_COMMIT;
        FAILPOINT("s7.before_commit");
        rc = end(s, f);
        FAILPOINT("s7.after_commit");
    }
    return rc;
}
