/* export: see export.h. Rows become lines by splicing: `choices` and `logprobs` hold OpenAI's own
 * JSON already (`prompt_logprobs` vLLM's), so nothing is parsed. A row at a time: flat memory at
 * any size of batch. */
#include "worker/commands/export.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker/commands/commands.h"
#include "worker/config/config.h"
#include "worker/job/text.h"
#include "worker/sink/query.h"
#include "worker/sink/sink.h"

/* A file that appears under its name when it is complete; a pipe or a device, as it is. */
struct output {
    FILE *f;
    const char *path;
    char fresh[PATH_MAX]; /* "": none to be renamed */
    int64_t lines;
};
struct exporter {
    struct query *q;
    const struct export_opts *opts;
    struct str run, batch;
    char batch_name[600];
    struct output ok, errors;
    struct text line;
};

enum column {
    COL_CUSTOM_ID,
    COL_STATUS,
    COL_CHOICES,
    COL_LOGPROBS,
    COL_PROMPT_LOGPROBS,
    COL_ERROR_CODE,
    COL_ERROR_DETAIL,
    COL_MODEL,
    COL_FINGERPRINT,
    COL_PROMPT_TOKENS,
    COL_COMPLETION_TOKENS,
    COL_REASONING_TOKENS,
    COL_CACHED_TOKENS,
    COL_CREATED
};
/* A job given up after crashes has both, and the row says it. Another letter of its id stays. */
#define NO_DEAD_ROW                                                                                \
    "NOT EXISTS (SELECT 1 FROM results s WHERE s.run=l.run AND s.batch_id=l.batch_id AND "         \
    "s.custom_id=l.custom_id AND s.status='dead' AND s.error_code=l.reason)"
/* Input order: file line, else a broker's partition and offset, else a stream's id, whose two
 * halves are numbers. The sorter of SQLite sees keys alone, and the rows are looked up behind it: a
 * batch is larger than memory. */
static const char sqlite_sql[] =
    "SELECT k.custom_id, coalesce(r.status, 'invalid'), r.choices, r.logprobs, "
    "r.prompt_logprobs, coalesce(r.error_code, d.reason), coalesce(r.error_detail, d.detail), "
    "r.model, r.fingerprint, "
    "r.prompt_tokens, r.completion_tokens, r.reasoning_tokens, r.cached_tokens, strftime('%s', "
    "r.finished_at) FROM (SELECT * FROM (SELECT 0 AS kind, rowid AS id, source AS j, custom_id "
    "FROM results WHERE run=$1 AND batch_id=$2 UNION ALL SELECT 1, rowid, source, custom_id FROM "
    "dead_letters l WHERE run=$1 AND batch_id=$2 AND " NO_DEAD_ROW
    ") ORDER BY j->>'$.topic', j->>'$.partition', "
    "coalesce(j->>'$.line', j->>'$.offset', j->>'$.position', 0), CAST(j->>'$.id' AS integer), "
    "CAST(substr(j->>'$.id', instr(j->>'$.id', '-') + 1) AS integer), custom_id, kind LIMIT -1) k "
    "LEFT JOIN results r ON k.kind=0 AND r.rowid=k.id "
    "LEFT JOIN dead_letters d ON k.kind=1 AND d.rowid=k.id";
static const char postgres_sql[] =
    "SELECT custom_id, status, choices, logprobs, prompt_logprobs, error_code, error_detail, "
    "model, fingerprint, prompt_tokens, completion_tokens, reasoning_tokens, cached_tokens, "
    "floor(extract(epoch FROM finished_at))::bigint FROM (SELECT 0 AS kind, custom_id, status, "
    "choices, logprobs, prompt_logprobs, error_code, error_detail, model, fingerprint, "
    "prompt_tokens, completion_tokens, reasoning_tokens, cached_tokens, finished_at, "
    "source::json AS j FROM "
    "results WHERE run=$1 AND batch_id=$2 UNION ALL SELECT 1, custom_id, 'invalid', NULL, NULL, "
    "NULL, reason, detail, NULL, NULL, 0, 0, 0, 0, NULL, source::json FROM dead_letters l WHERE "
    "run=$1 AND batch_id=$2 AND " NO_DEAD_ROW
    ") x ORDER BY (j->>'topic') COLLATE \"C\" NULLS FIRST, (j->>'partition')::bigint "
    "NULLS FIRST, coalesce((j->>'line')::bigint, (j->>'offset')::bigint, (j->>'position')::bigint, "
    "0), split_part(j->>'id', '-', 1)::numeric NULLS FIRST, split_part(j->>'id', '-', "
    "2)::numeric NULLS FIRST, custom_id NULLS FIRST, kind";

static struct str column(const struct query *q, enum column at)
{
    return query_text(q, (int)at);
}

static int output_open(struct output *o, const char *path, struct err *err)
{
    struct stat is;
    *o = (struct output){.path = path, .f = stdout};
    if (strcmp(path, "-") == 0)
        return E_OK;
    if (stat(path, &is) != 0 || S_ISREG(is.st_mode) || S_ISDIR(is.st_mode))
        snprintf(o->fresh, sizeof o->fresh, "%s.%ld.tmp", path, (long)getpid());
    const char *name = *o->fresh ? o->fresh : path;
    o->f = fopen(name, "we");
    if (o->f)
        return E_OK;
    if (errno == ENOSPC || errno == EDQUOT || errno == EIO) /* as when the disk fills later */
        return command_output_failed(err, path, "write");
    return err_errno(err, E_USAGE, "%s: cannot write", name);
}

/* keep: the file gets its name; else it goes. */
static int output_close(struct output *o, bool keep, struct err *err)
{
    int rc = E_OK;
    if (!o->f)
        return rc;
    if (fflush(o->f) != 0 || ferror(o->f))
        rc = command_output_failed(err, o->path, "write");
    if (o->f != stdout) {
        if (fclose(o->f) != 0 && rc == E_OK)
            rc = command_output_failed(err, o->path, "write");
        keep = keep && rc == E_OK;
        if (keep && *o->fresh && rename(o->fresh, o->path) != 0) {
            rc = command_output_failed(err, o->path, "rename");
            keep = false;
        }
        if (!keep && *o->fresh)
            unlink(o->fresh);
    }
    o->f = NULL;
    return rc;
}

/* A stable id for a row: 24 hex digits of its key's hash. */
static void row_id(const struct exporter *x, struct str custom_id, char out[65])
{
    uint8_t sha[32];
    struct text key = {0};
    text_add(&key, x->run);
    text_char(&key, '\0');
    text_add(&key, x->batch);
    text_char(&key, '\0');
    text_add(&key, custom_id);
    sha256_of(text_view(&key), sha);
    text_close(&key);
    sha256_hex(sha, out);
    out[24] = '\0';
}

/* The next element of a JSON array's text behind *at; false at its end. */
static bool next_element(struct str array, size_t *at, struct str *element)
{
    size_t i = *at == 0 ? 1 : *at;
    int depth = 0;
    bool quoted = false;
    for (size_t from = i; i < array.len; i++) {
        char c = array.ptr[i];
        if (quoted) {
            i += c == '\\';
            quoted = c != '"';
        } else if (c == '"') {
            quoted = true;
        } else if (depth == 0 && (c == ',' || c == ']')) {
            *element = (struct str){array.ptr + from, i - from};
            *at = i + 1;
            return i > from;
        } else {
            depth += c == '{' || c == '[';
            depth -= c == '}' || c == ']';
        }
    }
    return false;
}

static size_t count_elements(struct str array)
{
    size_t n = 0, at = 0;
    struct str one;
    while (next_element(array, &at, &one))
        n++;
    return n;
}

/* `choices` with each "logprobs":null replaced, and where `prompts` has elements, that of the
 * choice's prompt behind it: choices lie by prompt. The pattern cannot stand inside a JSON string:
 * there its quotes would be escaped. */
static void add_choices(struct text *t, struct str choices, struct str logprobs, struct str prompts)
{
    static const char hole[] = "\"logprobs\":null,\"finish_reason\":";
    const size_t key = strlen("\"logprobs\":");
    bool any = logprobs.len || prompts.len;
    size_t n_choices = any ? count_elements(choices) : 0, at = 0, prompt_at = 0;
    size_t each = TR_MAX(n_choices / TR_MAX(count_elements(prompts), (size_t)1), (size_t)1);
    struct str one = STR("null"), prompt = STR("null");
    for (size_t i = 0; i < n_choices; i++) {
        const char *found = memmem(choices.ptr, choices.len, hole, sizeof hole - 1);
        if (!found || (logprobs.len && !next_element(logprobs, &at, &one)))
            break;
        size_t n = (size_t)(found - choices.ptr) + key;
        text_add(t, (struct str){choices.ptr, n});
        text_add(t, one);
        if (prompts.len && (i % each != 0 || next_element(prompts, &prompt_at, &prompt))) {
            text_add(t, STR(",\"prompt_logprobs\":"));
            text_add(t, prompt);
        }
        choices.ptr += n + 4; /* null */
        choices.len -= n + 4;
    }
    text_add(t, choices);
}

/* Where vLLM has them: a chat's body, which has one prompt; each choice of a completion. */
static void add_prompt_of_chat(struct text *t, struct str prompts)
{
    size_t at = 0;
    struct str one;
    if (!next_element(prompts, &at, &one))
        return;
    text_add(t, STR(",\"prompt_logprobs\":"));
    text_add(t, one);
}

static void add_body(struct text *t, const struct query *q, const char *id)
{
    static const char chat_head[] = "[{\"index\":0,\"message\":";
    struct str choices = column(q, COL_CHOICES), model = column(q, COL_MODEL);
    struct str prompts = column(q, COL_PROMPT_LOGPROBS), none = {NULL, 0};
    bool chat = choices.len >= sizeof chat_head - 1 &&
                memcmp(choices.ptr, chat_head, sizeof chat_head - 1) == 0;
    int64_t in = query_int(q, COL_PROMPT_TOKENS);
    int64_t out = query_int(q, COL_COMPLETION_TOKENS);
    text_f(t, "{\"id\":\"%s-%s\",\"object\":\"%s\",\"created\":%lld,\"model\":",
           chat ? "chatcmpl" : "cmpl", id, chat ? "chat.completion" : "text_completion",
           (long long)query_int(q, COL_CREATED));
    text_json_str(t, model);
    text_add(t, STR(",\"choices\":"));
    add_choices(t, choices, column(q, COL_LOGPROBS), chat ? none : prompts);
    if (chat)
        add_prompt_of_chat(t, prompts);
    text_f(t,
           ",\"usage\":{\"prompt_tokens\":%lld,\"completion_tokens\":%lld,\"total_tokens\":%lld,"
           "\"prompt_tokens_details\":{\"cached_tokens\":%lld},"
           "\"completion_tokens_details\":{\"reasoning_tokens\":%lld}},\"system_fingerprint\":",
           (long long)in, (long long)out, (long long)(in + out),
           (long long)query_int(q, COL_CACHED_TOKENS),
           (long long)query_int(q, COL_REASONING_TOKENS));
    text_json_str(t, column(q, COL_FINGERPRINT));
    text_char(t, '}');
}

/* Messages begin with the field they speak of: "max_tokens: want ...". */
static struct str param_of(struct str detail)
{
    size_t n = 0;
    while (n < detail.len &&
           (detail.ptr[n] == '_' || detail.ptr[n] == '.' || detail.ptr[n] == '[' ||
            detail.ptr[n] == ']' || (detail.ptr[n] >= 'a' && detail.ptr[n] <= 'z') ||
            (detail.ptr[n] >= '0' && detail.ptr[n] <= '9')))
        n++;
    bool field = n > 0 && n + 1 < detail.len && detail.ptr[n] == ':' && detail.ptr[n + 1] == ' ' &&
                 !str_eq((struct str){detail.ptr, n}, STR("message"));
    return field ? (struct str){detail.ptr, n} : (struct str){NULL, 0};
}

static void add_error(struct text *t, const struct query *q, const char *id)
{
    struct str status = column(q, COL_STATUS), detail = column(q, COL_ERROR_DETAIL);
    bool expired = str_eq(status, STR("expired")), cancelled = str_eq(status, STR("cancelled"));
    if (expired || cancelled) {
        text_f(t, "null,\"error\":{\"code\":\"batch_%s\",\"message\":",
               expired ? "expired" : "cancelled");
        text_json_str(t, detail);
        text_char(t, '}');
        return;
    }
    bool invalid = str_eq(status, STR("invalid"));
    struct str param = param_of(detail);
    text_f(t, "{\"status_code\":%d,\"request_id\":\"req_%s\",\"body\":{\"error\":{\"message\":",
           invalid ? 400 : 500, id);
    text_json_str(t, detail);
    text_f(t, ",\"type\":\"%s\",\"param\":", invalid ? "invalid_request_error" : "server_error");
    if (invalid && param.ptr)
        text_json_str(t, param);
    else
        text_add(t, STR("null"));
    text_add(t, STR(",\"code\":"));
    text_json_str(t, column(q, COL_ERROR_CODE));
    text_add(t, STR("}}},\"error\":null"));
}

static int put_row(struct exporter *x, struct err *err)
{
    char id[65];
    struct text *t = &x->line;
    struct str custom_id = column(x->q, COL_CUSTOM_ID);
    bool ok = str_eq(column(x->q, COL_STATUS), STR("ok"));
    row_id(x, custom_id, id);
    text_reset(t);
    text_f(t, "{\"id\":\"batch_req_%s\",\"custom_id\":", id);
    text_json_str(t, custom_id);
    text_add(t, STR(",\"response\":"));
    if (ok) {
        text_f(t, "{\"status_code\":200,\"request_id\":\"req_%s\",\"body\":", id);
        add_body(t, x->q, id);
        text_add(t, STR("},\"error\":null"));
    } else {
        add_error(t, x->q, id);
    }
    text_add(t, STR("}\n"));
    struct output *o = ok ? &x->ok : &x->errors;
    o->lines++;
    if (t->failed)
        return err_set(err, E_FATAL, "export: no memory for a line");
    if (fwrite(t->ptr, 1, t->len, o->f) != t->len)
        return command_output_failed(err, o->path, "write");
    return E_OK;
}

static int put_all(struct exporter *x, struct err *err)
{
    struct str parameters[] = {x->run, x->batch};
    const char *sql = query_is_postgres(x->q) ? postgres_sql : sqlite_sql;
    int more, rc = query_stream(x->q, sql, parameters, 2, err);
    while (rc >= 0 && (more = query_next(x->q, err)) != 0)
        rc = more < 0 ? more : put_row(x, err);
    return rc;
}

/* The batch to export: the one named, which must exist, or the only one of the run. */
static int choose_batch(struct exporter *x, struct err *err)
{
    struct text names = {0};
    int64_t n = 0;
    bool named = false;
    const char *db = x->opts->db.url;
    int more, rc = query_stream(x->q, "SELECT batch_id FROM batches WHERE run=$1 ORDER BY 1",
                                &x->run, 1, err);
    while (rc >= 0 && (more = query_next(x->q, err)) > 0) {
        struct str name = query_text(x->q, 0);
        named = named || (x->opts->batch && str_eq(name, str_of(x->opts->batch)));
        if (n++ < 8)
            text_f(&names, "%s" STR_FMT, n > 1 ? ", " : "", STR_ARG(name));
        snprintf(x->batch_name, sizeof x->batch_name, STR_FMT, STR_ARG(name));
    }
    rc = rc >= 0 ? TR_MIN(more, E_OK) : rc;
    if (rc >= 0 && n == 0)
        rc = err_set(err, E_USAGE, "%s: run " STR_FMT " has no rows", db, STR_ARG(x->run));
    else if (rc >= 0 && x->opts->batch && !named)
        rc = err_set(err, E_USAGE, "--batch: want one of this run (" STR_FMT "), got %s",
                     STR_ARG(text_view(&names)), x->opts->batch);
    else if (rc >= 0 && !x->opts->batch && n > 1)
        rc = err_set(err, E_USAGE, "--batch: want one of this run's %lld: " STR_FMT "%s",
                     (long long)n, STR_ARG(text_view(&names)), n > 8 ? ", ..." : "");
    x->batch = str_of(x->opts->batch ? x->opts->batch : x->batch_name);
    text_close(&names);
    return rc;
}

static int write_files(struct exporter *x, struct err *err)
{
    char beside[PATH_MAX];
    const char *out = x->opts->output ? x->opts->output : "-", *bad = x->opts->errors;
    bool ours = !bad && strcmp(out, "-") != 0;
    struct err quiet = {0};
    snprintf(beside, sizeof beside, "%s.errors.jsonl", out);
    bad = bad ? bad : ours ? beside : "-";
    int rc = output_open(&x->ok, out, err);
    if (rc == E_OK)
        rc = output_open(&x->errors, bad, err);
    if (rc == E_OK)
        rc = put_all(x, err);
    bool keep_errors = rc == E_OK && (!ours || x->errors.lines > 0);
    int closed = output_close(&x->errors, keep_errors, rc == E_OK ? err : &quiet);
    rc = rc == E_OK ? closed : rc;
    closed = output_close(&x->ok, rc == E_OK, rc == E_OK ? err : &quiet);
    rc = rc == E_OK ? closed : rc;
    if (rc == E_OK && ours && x->errors.lines == 0)
        unlink(beside); /* of an earlier export: it would tell of errors that are gone */
    if (rc == E_OK && (strcmp(out, "-") != 0 || strcmp(bad, "-") != 0))
        fprintf(stderr, "%lld answers in %s, %lld errors%s%s\n", (long long)x->ok.lines, out,
                (long long)x->errors.lines, x->errors.lines ? " in " : "",
                x->errors.lines ? bad : "");
    return rc;
}

int export_main(const struct export_opts *o, struct err *err)
{
    struct exporter x = {.opts = o, .run = str_of(o->run && *o->run ? o->run : "main")};
    int rc = query_open(&x.q, &o->db, QUERY_READ, err);
    if (rc >= 0)
        rc = choose_batch(&x, err);
    if (rc >= 0)
        rc = write_files(&x, err);
    query_close(x.q);
    text_close(&x.line);
    return rc;
}
