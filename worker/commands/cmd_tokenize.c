/* cmd_tokenize: `tranche tokenize`: lines of JSON strings to arrays of ids and back, streaming.
 * Stops at the first bad line, because whoever reads the output counts lines. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine/json.h"
#include "engine/tokenizer.h"
#include "worker/commands/commands.h"

enum {
    LINE_BYTES_MAX = 64 << 20,
    READ_BYTES = 1 << 18,
    INT_TEXT_MAX = 12, /* "2147483647," */
    ESCAPE_MAX = 6,    /* \u001f */
};

/* Input lines; the buffer grows with the longest line seen. */
struct lines {
    char *buf;
    size_t start, end, cap;
    bool eof;
    int64_t number; /* of the line given last, from 1 */
};
struct work {
    struct tokenizer *tokenizer;
    struct tokenizer_scratch *scratch;
    unsigned flags;
    bool decode, skip_special;
    struct lines in;
    int32_t *ids;
    size_t ids_cap;
    char *text, *out;
    size_t text_cap, out_cap;
};

/* Grows *buf to at least `want` items, keeping its bytes. */
static int grow(void **buf, size_t *cap, size_t want, size_t item, struct err *err)
{
    if (want <= *cap)
        return E_OK;
    size_t n = TR_MAX(want, *cap * 2);
    void *bigger = mem_alloc(n, item);
    if (!bigger)
        return err_set(err, E_FATAL, "tokenize: no memory for %zu bytes", n * item);
    if (*buf)
        memcpy(bigger, *buf, *cap * item);
    mem_free(*buf);
    *buf = bigger;
    *cap = n;
    return E_OK;
}

static int lines_fill(struct lines *in, struct err *err)
{
    if (in->start > 0) {
        memmove(in->buf, in->buf + in->start, in->end - in->start);
        in->end -= in->start;
        in->start = 0;
    }
    if (in->end > LINE_BYTES_MAX)
        return err_set(err, E_JOB, "line %lld: want at most %d bytes, found more",
                       (long long)in->number + 1, LINE_BYTES_MAX);
    int rc = grow((void **)&in->buf, &in->cap, in->end + READ_BYTES, 1, err);
    if (rc != E_OK)
        return rc;
    /* What is done is shown before we wait: a program at the other end may want it first. */
    if (fflush(stdout) != 0)
        return command_output_failed(err, "standard output", "write");
    ssize_t n;
    do
        n = read(STDIN_FILENO, in->buf + in->end, in->cap - in->end);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return err_errno(err, E_FATAL, "standard input");
    in->eof = n == 0;
    in->end += (size_t)n;
    return E_OK;
}

/* 1 with the next line (without its end), 0 at the end of the input, or an error. */
static int lines_next(struct lines *in, struct str *line, struct err *err)
{
    size_t seen = 0;
    for (;;) {
        char *from = in->buf + in->start;
        char *end = in->buf ? memchr(from + seen, '\n', in->end - in->start - seen) : NULL;
        if (end || (in->eof && in->end > in->start)) {
            size_t n = end ? (size_t)(end - from) : in->end - in->start;
            *line = (struct str){from, n};
            in->start += n + (end != NULL);
            in->number++;
            if (n && from[n - 1] == '\r')
                line->len--;
            return 1;
        }
        if (in->eof)
            return 0;
        seen = in->end - in->start;
        int rc = lines_fill(in, err);
        if (rc != E_OK)
            return rc;
    }
}

/* A string without escapes is its own bytes; the tokenizer refuses what is no UTF-8. */
static bool plain_string(struct str line, struct str *text)
{
    if (line.len < 2 || line.ptr[0] != '"' || line.ptr[line.len - 1] != '"')
        return false;
    bool plain = true;
    for (size_t i = 1; i + 1 < line.len; i++) {
        unsigned char c = (unsigned char)line.ptr[i];
        plain &= (c != '"') & (c != '\\') & (c >= 0x20);
    }
    *text = (struct str){line.ptr + 1, line.len - 2};
    return plain;
}

static char *put_int(char *p, uint32_t v)
{
    char digits[10];
    int n = 0;
    do
        digits[n++] = (char)('0' + v % 10);
    while (v /= 10);
    while (n)
        *p++ = digits[--n];
    return p;
}

static int write_out(const char *ptr, size_t n, struct err *err)
{
    if (fwrite(ptr, 1, n, stdout) != n)
        return command_output_failed(err, "standard output", "write");
    return E_OK;
}

static int encode_text(struct work *w, struct str text, struct err *err)
{
    int64_t n;
    for (;;) {
        n = tokenizer_encode(w->tokenizer, w->scratch, text, w->flags, w->ids, w->ids_cap, err);
        if (n < 0)
            return (int)n;
        if ((size_t)n <= w->ids_cap)
            break;
        int rc = grow((void **)&w->ids, &w->ids_cap, (size_t)n, sizeof *w->ids, err);
        if (rc != E_OK)
            return rc;
    }
    int rc = grow((void **)&w->out, &w->out_cap, (size_t)n * INT_TEXT_MAX + 4, 1, err);
    if (rc != E_OK)
        return rc;
    char *p = w->out;
    *p++ = '[';
    for (int64_t i = 0; i < n; i++) {
        if (i)
            *p++ = ',';
        p = put_int(p, (uint32_t)w->ids[i]);
    }
    *p++ = ']';
    *p++ = '\n';
    return write_out(w->out, (size_t)(p - w->out), err);
}

static int encode_line(struct work *w, struct str line, struct err *err)
{
    json_t *doc = NULL;
    struct str text;
    int rc = E_OK;
    if (!plain_string(line, &text)) {
        rc = json_parse(&doc, line, "JSON", &json_limits_file, err);
        if (rc == E_OK && !json_is_string(doc))
            rc = err_set(err, E_JOB, "want a JSON string, found %s", json_type_name(doc));
        text = json_str(doc);
    }
    if (rc == E_OK)
        rc = encode_text(w, text, err);
    json_decref(doc);
    return rc;
}

static char *put_json_string(char *p, struct str s)
{
    static const char hex[] = "0123456789abcdef";
    /* RFC 8259's short escapes of 8 .. 13; 11 has none. */
    static const char shorts[] = "btn\0fr";
    *p++ = '"';
    for (size_t i = 0; i < s.len; i++) {
        unsigned char c = (unsigned char)s.ptr[i];
        char letter = c == '"' || c == '\\' ? (char)c : c >= 8 && c <= 13 ? shorts[c - 8] : '\0';
        if (c >= 0x20 && !letter) {
            *p++ = (char)c;
        } else if (letter) {
            *p++ = '\\';
            *p++ = letter;
        } else {
            memcpy(p, "\\u00", 4);
            p[4] = hex[c >> 4];
            p[5] = hex[c & 15];
            p += ESCAPE_MAX;
        }
    }
    *p++ = '"';
    return p;
}

static int decode_ids(struct work *w, size_t n, struct err *err)
{
    size_t bytes;
    for (;;) {
        bytes = tokenizer_decode(w->tokenizer, w->ids, n, w->skip_special, w->text, w->text_cap);
        if (bytes <= w->text_cap)
            break;
        int rc = grow((void **)&w->text, &w->text_cap, bytes, 1, err);
        if (rc != E_OK)
            return rc;
    }
    int rc = grow((void **)&w->out, &w->out_cap, bytes * ESCAPE_MAX + 3, 1, err);
    if (rc != E_OK)
        return rc;
    char *p = put_json_string(w->out, (struct str){w->text, bytes});
    *p++ = '\n';
    return write_out(w->out, (size_t)(p - w->out), err);
}

static int decode_line(struct work *w, struct str line, struct err *err)
{
    json_t *doc = NULL;
    int32_t limit = tokenizer_vocab_size(w->tokenizer);
    int rc = json_parse(&doc, line, "JSON", &json_limits_file, err);
    if (rc == E_OK && !json_is_array(doc))
        rc = err_set(err, E_JOB, "want a JSON array of ids, found %s", json_type_name(doc));
    size_t n = rc == E_OK ? json_array_size(doc) : 0;
    if (rc == E_OK)
        rc = grow((void **)&w->ids, &w->ids_cap, n, sizeof *w->ids, err);
    for (size_t i = 0; i < n && rc == E_OK; i++) {
        const json_t *item = json_array_get(doc, i);
        json_int_t id = json_integer_value(item);
        if (!json_is_integer(item))
            rc =
                err_set(err, E_JOB, "item %zu: want a token id, found %s", i, json_type_name(item));
        else if (id < 0 || id >= limit)
            rc = err_set(err, E_JOB, "item %zu: want an id below %d, found %lld", i, limit,
                         (long long)id);
        else
            w->ids[i] = (int32_t)id;
    }
    if (rc == E_OK)
        rc = decode_ids(w, n, err);
    json_decref(doc);
    return rc;
}

static int run_lines(struct work *w, struct err *err)
{
    struct str line;
    int rc;
    while ((rc = lines_next(&w->in, &line, err)) > 0) {
        struct err why = {0};
        rc = w->decode ? decode_line(w, line, &why) : encode_line(w, line, &why);
        if (rc == E_JOB)
            return err_set(err, rc, "line %lld: %s", (long long)w->in.number, why.msg);
        if (rc < 0) {
            *err = why; /* with its type */
            return rc;
        }
    }
    return rc;
}

int command_tokenize(const struct config *config)
{
    struct err err = {0};
    struct work w = {.decode = config_flag(config, "decode"),
                     .skip_special = config_flag(config, "skip-special"),
                     .flags = (config_flag(config, "add-special") ? TOKENIZER_ADD_SPECIAL : 0u) |
                              (config_flag(config, "plain-text") ? TOKENIZER_PLAIN_TEXT : 0u)};
    const char *dir = config_text(config, "model");
    command_log_setup(config);
    int rc = dir ? tokenizer_open(&w.tokenizer, dir, &err)
                 : err_set(&err, E_USAGE,
                           "--model: want a folder with a tokenizer.json, found "
                           "none");
    if (rc == E_OK) {
        w.scratch = tokenizer_scratch_open(w.tokenizer);
        rc = w.scratch ? run_lines(&w, &err)
                       : err_set(&err, E_FATAL, "tokenizer: no memory for its scratch");
    }
    mem_free(w.in.buf);
    mem_free(w.ids);
    mem_free(w.text);
    mem_free(w.out);
    tokenizer_scratch_close(w.scratch);
    tokenizer_close(w.tokenizer);
    return rc == E_OK ? EXIT_WELL : command_failed(config, &err);
}
