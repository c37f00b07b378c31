/* json: see json.h. */
#include "engine/json.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/plain_file.h"

const struct json_limits json_limits_job = {.bytes_max = 4u << 20, .depth_max = 64};
const struct json_limits json_limits_file = {
    .bytes_max = 64u << 20, .depth_max = 64, .wide_integers = true};

/* Deepest nesting of [ and { outside strings; does not need the text to be valid. Runs before the
 * parser so that its recursion is bounded by our limit, not by Jansson's 2,048. */
static int nesting(struct str text, int stop_at)
{
    int depth = 0, deepest = 0;
    bool quoted = false;
    for (size_t i = 0; i < text.len && deepest < stop_at; i++) {
        char c = text.ptr[i];
        if (quoted) {
            if (c == '\\')
                i++;
            else if (c == '"')
                quoted = false;
        } else if (c == '"') {
            quoted = true;
        } else if (c == '[' || c == '{') {
            depth++;
            deepest = TR_MAX(deepest, depth);
        } else if (c == ']' || c == '}') {
            depth--;
        }
    }
    return deepest;
}

/* Parses again with ".0" behind each integer that is too long for 64 bits: Transformers writes "no
 * limit" into tokenizer_config.json as the integer 1000000000000000019884624838656. */
static json_t *load_wide(struct str text, size_t flags, json_error_t *why)
{
    enum { DIGITS_MAX = 18 };
    size_t used = 0, i = 0;
    char *copy = mem_alloc(text.len + text.len / DIGITS_MAX * 2 + 2, 1);
    if (!copy)
        return NULL;
    while (i < text.len) {
        size_t begin = i++;
        char c = text.ptr[begin];
        if (c == '"') {
            while (i < text.len && text.ptr[i] != '"')
                i += text.ptr[i] == '\\' ? 2 : 1;
            i = TR_MIN(i + 1, text.len);
        } else if (c >= '0' && c <= '9') {
            while (i < text.len && memchr("0123456789.eE+-", text.ptr[i], 15))
                i++;
        }
        memcpy(copy + used, text.ptr + begin, i - begin);
        used += i - begin;
        bool number = c >= '0' && c <= '9' && i - begin > DIGITS_MAX;
        for (size_t d = begin; d < i && number; d++)
            number = text.ptr[d] >= '0' && text.ptr[d] <= '9';
        if (number) {
            memcpy(copy + used, ".0", 2);
            used += 2;
        }
    }
    json_t *doc = json_loadb(copy, used, flags, why);
    mem_free(copy);
    return doc;
}

int json_parse(json_t **out, struct str text, const char *name, const struct json_limits *limits,
               struct err *err)
{
    if (text.len > limits->bytes_max)
        return err_typed(err, E_JOB, "too_large", "%s: %zu bytes, the limit is %zu", name, text.len,
                         limits->bytes_max);
    if (nesting(text, limits->depth_max + 1) > limits->depth_max)
        return err_typed(err, E_JOB, "bad_json", "%s: nested deeper than the limit of %d", name,
                         limits->depth_max);
    json_error_t why;
    size_t flags = JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_ANY;
    json_t *doc = json_loadb(text.len ? text.ptr : "", text.len, flags, &why);
    if (!doc && limits->wide_integers && json_error_code(&why) == json_error_numeric_overflow)
        doc = load_wide(text, flags, &why);
    if (!doc)
        return err_typed(err, E_JOB, "bad_json", "%s: line %d, column %d: %s", name, why.line,
                         why.column, why.text);
    *out = doc;
    return E_OK;
}

/* Reads up to cap bytes; returns the count or -1 with errno. */
static ssize_t read_full(int fd, char *buf, size_t cap)
{
    size_t used = 0;
    while (used < cap) {
        ssize_t n = read(fd, buf + used, cap - used);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        if (n == 0)
            break;
        used += (size_t)n;
    }
    return (ssize_t)used;
}

int json_parse_file(json_t **out, const char *path, const struct json_limits *limits,
                    struct err *err)
{
    int rc = E_OK;
    char *text = NULL;
    struct stat st;
    /* a FIFO is refused below, not waited for */
    int fd = plain_file_open(AT_FDCWD, path);
    if (fd < 0)
        return err_errno(err, E_FATAL, "%s: cannot open", path);
    if (fstat(fd, &st) != 0) {
        rc = err_errno(err, E_FATAL, "%s: cannot stat", path);
        goto out;
    }
    if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size > limits->bytes_max) {
        rc = err_set(err, E_FATAL, "%s: want a regular file of at most %zu bytes, it has %lld",
                     path, limits->bytes_max, (long long)st.st_size);
        goto out;
    }
    text = mem_alloc((size_t)st.st_size, 1);
    ssize_t got = text ? read_full(fd, text, (size_t)st.st_size) : -1;
    if (got < 0) {
        rc = err_errno(err, E_FATAL, "%s: cannot read", path);
        goto out;
    }
    rc = json_parse(out, (struct str){text, (size_t)got}, path, limits, err);
out:
    mem_free(text);
    close(fd);
    return rc;
}

const char *json_type_name(const json_t *value)
{
    if (!value)
        return "absent";
    static const char *const names[] = {"object", "array", "string", "integer",
                                        "real",   "true",  "false",  "null"};
    return names[json_typeof(value)];
}
