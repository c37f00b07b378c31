/* sink_sqlite_result: binding, and a row of `results` in SQLite. See sink.h. */
#include <stdio.h>

#include "engine/log.h"
#include "worker/job/output_sum.h"
#include "worker/job/result.h"
#include "worker/sink/sink_sqlite.h"

enum { RESULT_COLUMNS = 34 };

/* SQLite binds NULL for what it refuses: such a statement must not run. */
static void bound(struct sink_sqlite *s, int rc)
{
    if (s->bind_rc == SQLITE_OK)
        s->bind_rc = rc;
}

void sqlite_bind_str(struct sink_sqlite *s, sqlite3_stmt *st, int at, struct str v)
{
    bound(s, v.ptr ? sqlite3_bind_text64(st, at, v.ptr, v.len, SQLITE_STATIC, SQLITE_UTF8)
                   : sqlite3_bind_null(st, at));
}

void sqlite_bind_blob(struct sink_sqlite *s, sqlite3_stmt *st, int at, struct str v)
{
    bound(s, v.ptr ? sqlite3_bind_blob64(st, at, v.ptr, v.len, SQLITE_STATIC)
                   : sqlite3_bind_null(st, at));
}

void sqlite_bind_time(struct sink_sqlite *s, sqlite3_stmt *st, int at, int64_t wall_ns)
{
    char text[32];
    wall_text(wall_ns, text);
    bound(s, wall_ns > 0 ? sqlite3_bind_text(st, at, text, -1, SQLITE_TRANSIENT)
                         : sqlite3_bind_null(st, at));
}

void sqlite_bind_hash(struct sink_sqlite *s, sqlite3_stmt *st, int at, const uint8_t sha256[32])
{
    char hex[65];
    sha256_hex(sha256, hex);
    bound(s, sqlite3_bind_text(st, at, hex, 64, SQLITE_TRANSIENT));
}

sqlite3_stmt *sqlite_with_key(struct sink_sqlite *s, enum statement id, const struct key *key)
{
    sqlite3_stmt *st = s->statements[id];
    sqlite3_reset(st);
    sqlite_bind_str(s, st, 1, key->run);
    sqlite_bind_str(s, st, 2, key->batch_id);
    sqlite_bind_str(s, st, 3, key->custom_id);
    return st;
}

static void bind_result(struct sink_sqlite *s, sqlite3_stmt *st, const struct result *r)
{
    int at = 4;
    sqlite_bind_str(s, st, at++, str_of(result_status_name(r->status)));
    sqlite_bind_str(s, st, at++, r->answer);
    sqlite_bind_str(s, st, at++, r->reasoning);
    if (r->correct >= 0)
        sqlite3_bind_int(st, at, r->correct);
    else
        sqlite3_bind_null(st, at);
    at++;
    sqlite_bind_str(s, st, at++, r->finish_reason);
    sqlite3_bind_int(st, at++, r->prompt_tokens);
    sqlite3_bind_int(st, at++, r->completion_tokens);
    sqlite3_bind_int(st, at++, r->reasoning_tokens);
    sqlite3_bind_int(st, at++, r->cached_tokens);
    sqlite_bind_str(s, st, at++, r->logprobs);
    sqlite_bind_str(s, st, at++, r->prompt_logprobs);
    sqlite_bind_str(s, st, at++, r->choices);
    sqlite_bind_str(s, st, at++, r->error_code);
    sqlite_bind_str(s, st, at++, r->error_detail);
    sqlite3_bind_int(st, at++, r->sanitized);
    sqlite_bind_blob(s, st, at++, r->raw);
    sqlite_bind_str(s, st, at++, r->model);
    sqlite_bind_str(s, st, at++, r->model_sha256);
    sqlite_bind_str(s, st, at++, r->fingerprint);
    sqlite_bind_str(s, st, at++, r->config_revision);
    sqlite_bind_str(s, st, at++, r->params);
    if (r->has_seed)
        sqlite3_bind_int64(st, at, r->seed);
    else
        sqlite3_bind_null(st, at);
    at++;
    sqlite_bind_str(s, st, at++, r->request);
    sqlite_bind_hash(s, st, at++, r->request_sha256);
    sqlite_bind_str(s, st, at++, r->source);
    sqlite3_bind_int(st, at++, r->attempts);
    sqlite_bind_str(s, st, at++, r->worker);
    sqlite3_bind_double(st, at++, r->device_seconds);
    sqlite_bind_time(s, st, at++, r->queued_ns);
    sqlite_bind_time(s, st, at++, r->started_ns);
    sqlite_bind_time(s, st, at++, r->finished_ns);
    CHECK(at == RESULT_COLUMNS + 1);
}

/* Whether the row that is there is another request's. */
static int is_conflict(struct sink_sqlite *s, const struct result *r, bool *conflict,
                       struct err *err)
{
    char hex[65];
    sqlite3_stmt *st = sqlite_with_key(s, S_LOOKUP, &r->key);
    int rc = sqlite3_step(st) == SQLITE_ROW ? E_OK : sink_sqlite_error(s, "conflict", err);
    sha256_hex(r->request_sha256, hex);
    *conflict = rc == E_OK && strcmp((const char *)sqlite3_column_text(st, 0), hex) != 0;
    sqlite3_reset(st);
    return rc;
}

static int insert(struct sink_sqlite *s, const struct result *r, struct err *err)
{
    sqlite3_stmt *st = sqlite_with_key(s, S_RESULT, &r->key);
    bind_result(s, st, r);
    return sink_sqlite_finish(s, st, NULL, err);
}

/* The same job's row where the file has no room for its texts. */
static void make_unstorable(struct sink_sqlite *s, struct result *out, const struct result *r,
                            char detail[160])
{
    size_t bytes = r->answer.len + r->reasoning.len + r->raw.len + r->choices.len +
                   r->logprobs.len + r->prompt_logprobs.len + r->request.len + r->params.len +
                   r->source.len;
    snprintf(detail, 160, "the database refused it: its texts have %zu bytes, a row holds %d",
             bytes, sqlite3_limit(s->db, SQLITE_LIMIT_LENGTH, -1));
    result_unstorable(out, r, str_of(detail));
    LOG(LOG_ERROR, "row_unstorable", LOG_STR("batch", r->key.batch_id),
        LOG_STR("custom_id", r->key.custom_id), LOG_S("text", detail));
}

int sink_sqlite_put_result(struct sink_sqlite *s, const struct result *r, int64_t now_ns,
                           struct commit_counts *counts, bool *conflict, struct err *err)
{
    struct result x;
    char detail[160];
    int rc = sink_sqlite_tally(s, &r->key, now_ns, err);
    if (rc >= 0)
        rc = insert(s, r, err);
    if (rc < 0 && strcmp(err->type, "too_large") == 0) {
        *err = (struct err){0};
        make_unstorable(s, &x, r, detail);
        r = &x;
        rc = insert(s, r, err);
    }
    if (rc < 0)
        return rc;
    if (sqlite3_changes(s->db) == 1) {
        counts->inserted++;
        s->tally.rows[r->status]++;
        if (!s->tally.source.ptr)
            s->tally.source = r->source;
        s->tally.config_revision = r->config_revision;
        output_sum_add(s->tally.outputs, r->output_sha256);
    } else {
        counts->already++;
        rc = conflict ? is_conflict(s, r, conflict, err) : E_OK;
    }
    if (rc >= 0 && r->attempts > 0)
        rc = sink_sqlite_finish(s, sqlite_with_key(s, S_FORGET, &r->key), NULL, err);
    if (rc >= 0 && s->any_parked)
        rc = sink_sqlite_finish(s, sqlite_with_key(s, S_FORGET_PARKED, &r->key), NULL, err);
    return rc;
}
