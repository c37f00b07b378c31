/* dead_letters: see dead_letters.h. */
#include "worker/sink/dead_letters.h"

static const char *const names[LETTER_FIELDS] = {"run", "batch", "id", "reason", "key"};
static const char *const states[] = {"any", "open", "redriven"};

static int parse_state(struct letter_filter *f, struct str value, struct err *err)
{
    for (size_t i = 0; i < TR_COUNT(states); i++)
        if (str_eq(value, str_of(states[i]))) {
            f->state = (enum letter_state)i;
            f->state_named = true;
            return E_OK;
        }
    return err_set(err, E_USAGE, "--filter: state: want one of any, open, redriven, found \"%.*s\"",
                   (int)TR_MIN(value.len, (size_t)60), value.ptr);
}

static int parse_pair(struct letter_filter *f, struct str pair, struct err *err)
{
    const char *equals = pair.len ? memchr(pair.ptr, '=', pair.len) : NULL;
    struct str name = {pair.ptr, equals ? (size_t)(equals - pair.ptr) : pair.len};
    struct str value = {equals ? equals + 1 : "", equals ? pair.len - name.len - 1 : 0};
    if (equals && str_eq(name, STR("state")))
        return parse_state(f, value, err);
    for (size_t i = 0; equals && value.len && i < LETTER_FIELDS; i++)
        if (str_eq(name, str_of(names[i]))) {
            f->fields[i] = value;
            return E_OK;
        }
    return err_set(
        err, E_USAGE,
        "--filter: want NAME=VALUE with one of run, batch, id, reason, key, state, found "
        "\"%.*s\"",
        (int)TR_MIN(pair.len, (size_t)60), pair.ptr);
}

int letter_filter_parse(struct letter_filter *f, struct str text, struct err *err)
{
    int rc = E_OK;
    while (rc >= 0 && text.len) {
        const char *comma = memchr(text.ptr, ',', text.len);
        size_t n = comma ? (size_t)(comma - text.ptr) : text.len;
        rc = parse_pair(f, (struct str){text.ptr, n}, err);
        n += comma != NULL;
        text = (struct str){text.ptr + n, text.len - n};
    }
    return rc;
}

#define LETTER_IS(n, column) "(CAST($" n " AS text) IS NULL OR " column "=$" n ")"
#define LETTERS                                                                                    \
    LETTER_IS("1", "run")                                                                          \
    " AND " LETTER_IS("2", "batch_id") " AND " LETTER_IS("3", "custom_id") " AND " LETTER_IS(      \
        "4", "reason") " AND " LETTER_IS("5", "source_key")

const char *letter_filter_sql(enum letter_state state)
{
    return state == LETTER_OPEN       ? LETTERS " AND redriven_at IS NULL"
           : state == LETTER_REDRIVEN ? LETTERS " AND redriven_at IS NOT NULL"
                                      : LETTERS;
}

int redrive_run(struct str run, struct text *out, struct err *err)
{
    int times = 0;
    bool marked = run.len > 2 && run.ptr[run.len - 2] == '~' && run.ptr[run.len - 1] >= '1' &&
                  run.ptr[run.len - 1] <= '9';
    if (marked) {
        times = run.ptr[run.len - 1] - '0';
        run.len -= 2;
    }
    if (times >= REDRIVES_MAX)
        return err_set(err, E_JOB, "it was sent again %d times; want at most %d", times,
                       REDRIVES_MAX);
    text_reset(out);
    text_f(out, STR_FMT "~%d", STR_ARG(run), times + 1);
    return E_OK;
}
