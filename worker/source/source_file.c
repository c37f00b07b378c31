/* source_file: JSON lines from a file or standard input. See source.h. It finds line ends and knows
 * nothing of JSON. */
#include "worker/source/source.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

enum { READ_BYTES = 1 << 20, LONG_KEPT = 1024 };

struct source_file {
    struct source source;
    const struct clock *clock;
    int fd;
    bool regular, ended, held; /* held: `line` is read but did not fit the budget */
    char *block;               /* [READ_BYTES] */
    size_t at, filled;
    char *line; /* [JOB_BYTES_MAX + 1]: a line that crosses blocks is put together here */
    size_t line_len, line_full;
    int64_t position, line_number, sequence, size;
    struct str found; /* the whole line that take_line found; in block or line */
};

static struct source_file *file_of(struct source *s)
{
    return (struct source_file *)s;
}

/* Reads the next block. Returns 1, 0 when nothing came within timeout_ns, E_USAGE on an error;
 * `ended` at the end. */
static int fill(struct source_file *f, int64_t timeout_ns, struct err *err)
{
    if (!f->regular) {
        struct pollfd p = {.fd = f->fd, .events = POLLIN};
        int rc = poll(&p, 1, (int)TR_MIN(timeout_ns / 1000000, (int64_t)1000));
        if (rc == 0 || (rc < 0 && errno == EINTR))
            return 0;
    }
    ssize_t n = read(f->fd, f->block, READ_BYTES);
    if (n < 0 && errno == EINTR)
        return 0;
    if (n < 0)
        return err_errno(err, E_USAGE, "%s: cannot read", f->source.label);
    f->at = 0;
    f->filled = (size_t)n;
    f->ended = n == 0;
    return 1;
}

static void keep_part(struct source_file *f, const char *bytes, size_t n)
{
    size_t room = JOB_BYTES_MAX + 1 - f->line_len;
    memcpy(f->line + f->line_len, bytes, TR_MIN(n, room));
    f->line_len += TR_MIN(n, room);
    f->line_full += n;
}

/* Finds the next line. Returns 1 with f->found, 0 when there is none yet, or an error. A line of
 * any length passes through flat memory: what exceeds the limit is counted, not kept. */
static int take_line(struct source_file *f, int64_t timeout_ns, struct err *err)
{
    for (;;) {
        if (f->at == f->filled && !f->ended) {
            int rc = fill(f, timeout_ns, err);
            if (rc <= 0)
                return rc;
        }
        const char *from = f->block + f->at;
        size_t left = f->filled - f->at;
        const char *end = left ? memchr(from, '\n', left) : NULL;
        size_t n = end ? (size_t)(end - from) : left;
        f->at += n + (end != NULL);
        f->position += (int64_t)(n + (end != NULL));
        if (end && f->line_len == 0) {
            f->found = (struct str){from, n};
            f->line_full = n;
            return 1;
        }
        keep_part(f, from, n);
        if (end || (f->ended && f->line_full > 0)) {
            f->found = (struct str){f->line, f->line_len};
            f->line_len = 0;
            return 1;
        }
        if (f->ended)
            return 0;
    }
}

static bool blank(struct str s)
{
    size_t i = 0;
    while (i < s.len && (s.ptr[i] == ' ' || s.ptr[i] == '\t' || s.ptr[i] == '\r'))
        i++;
    return i == s.len;
}

/* The found line without BOM and CR; *full becomes its true length. */
static struct str trim_line(struct source_file *f, size_t *full)
{
    struct str s = f->found;
    *full = f->line_full;
    if (f->line_number == 1 && s.len >= 3 && memcmp(s.ptr, "\xEF\xBB\xBF", 3) == 0) {
        s.ptr += 3;
        s.len -= 3;
        *full -= 3;
    }
    if (s.len && *full == s.len && s.ptr[s.len - 1] == '\r') {
        s.len--;
        *full -= 1;
    }
    return s;
}

static struct job *make_job(struct source_file *f, struct str line, size_t full)
{
    if (full > JOB_BYTES_MAX)
        line.len = TR_MIN(line.len, (size_t)LONG_KEPT);
    struct job *job = job_open(line.len);
    if (!job)
        return NULL;
    if (line.len)
        memcpy((char *)(uintptr_t)job->message.ptr, line.ptr, line.len);
    job->message_full = full;
    job->queued_ns = clock_wall_ns(f->clock);
    job->sequence = f->sequence;
    job->position = f->position;
    if (job_printf(job, &job->origin, "%s:%lld", f->source.stem, (long long)f->line_number) < 0 ||
        job_printf(job, &job->place, "\"line\":%lld", (long long)f->line_number) < 0) {
        job_close(job);
        return NULL;
    }
    return job;
}

static int file_claim(struct source *source, const struct source_budget *budget, struct job **out,
                      int cap, int64_t timeout_ns, bool *drained, struct err *err)
{
    struct source_file *f = file_of(source);
    int n = 0;
    int64_t bytes = 0;
    *drained = false;
    while (n < cap && n < budget->rows) {
        int rc = f->held ? 1 : take_line(f, n ? 0 : timeout_ns, err);
        if (rc < 0)
            return rc;
        if (rc == 0)
            break;
        f->line_number += !f->held;
        f->held = false;
        size_t full;
        struct str line = trim_line(f, &full);
        if (blank(line) && full == line.len) {
            f->line_full = 0;
            continue;
        }
        if (n && bytes + (int64_t)line.len > budget->bytes) {
            f->held = true;
            break;
        }
        out[n] = make_job(f, line, full);
        if (!out[n])
            return err_set(err, E_FATAL, "%s: no memory for a line of %zu bytes", source->label,
                           line.len);
        bytes += (int64_t)line.len;
        f->line_full = 0;
        f->sequence++;
        n++;
    }
    *drained = n == 0 && f->ended && !f->held && f->at == f->filled;
    return n;
}

static int file_service(struct source *source, struct source_service *out, struct err *err)
{
    (void)source;
    (void)err;
    *out = (struct source_service){0};
    return E_OK;
}

static int file_nothing(struct source *source, struct job *const *jobs, size_t n, struct err *err)
{
    (void)source;
    (void)jobs;
    (void)n;
    (void)err;
    return E_OK;
}

static int64_t file_position(const struct source *source, int32_t partition)
{
    CHECK(partition == 0);
    return ((const struct source_file *)source)->position;
}

static void file_lag(const struct source *source, struct source_lag *out)
{
    const struct source_file *f = (const struct source_file *)source;
    out->messages = f->ended ? 0 : -1;
    out->bytes = f->regular ? TR_MAX(f->size - f->position, (int64_t)0) : -1;
    out->bytes_total = f->regular ? f->size : -1;
    out->pending = out->retained = -1;
    out->joined = true;
}

static void file_close(struct source *source)
{
    struct source_file *f = file_of(source);
    if (f->fd > 0)
        close(f->fd);
    mem_free(f->block);
    mem_free(f->line);
    mem_free(f);
}

/* "dir/jobs.jsonl" -> label "dir/jobs.jsonl", stem "jobs". */
static void name_source(struct source *s, const char *path)
{
    const char *base = strrchr(path, '/');
    base = base ? base + 1 : path;
    const char *dot = strrchr(base, '.');
    int len = dot && dot != base ? (int)(dot - base) : (int)strlen(base);
    bool standard = strcmp(path, "-") == 0;
    snprintf(s->label, sizeof s->label, "%s", standard ? "stdin" : path);
    snprintf(s->stem, sizeof s->stem, "%.*s", standard ? 5 : len, standard ? "stdin" : base);
}

int source_file_open(struct source **out, const char *path, const struct clock *clock,
                     struct err *err)
{
    static const struct source_ops ops = {.name = "file",
                                          .claim = file_claim,
                                          .service = file_service,
                                          .ack = file_nothing,
                                          .release = file_nothing,
                                          .position = file_position,
                                          .lag = file_lag,
                                          .close = file_close};
    struct source_file *f = mem_alloc(1, sizeof *f);
    if (!f)
        return err_set(err, E_FATAL, "%s: no memory", path);
    f->source.ops = &ops;
    f->clock = clock;
    name_source(&f->source, path);
    int rc = E_OK;
    struct stat st;
    f->block = mem_alloc(READ_BYTES, 1);
    f->line = mem_alloc(JOB_BYTES_MAX + 1, 1);
    f->fd = strcmp(path, "-") == 0 ? 0 : open(path, O_RDONLY | O_CLOEXEC);
    if (!f->block || !f->line)
        rc = err_set(err, E_FATAL, "%s: no memory for the read buffers", path);
    else if (f->fd < 0 || fstat(f->fd, &st) != 0)
        rc = err_errno(err, E_USAGE, "%s: cannot open", path);
    else if (S_ISDIR(st.st_mode))
        rc = err_set(err, E_USAGE, "%s: want a file of JSON lines, this is a directory", path);
    if (rc < 0) {
        file_close(&f->source);
        return rc;
    }
    f->regular = S_ISREG(st.st_mode);
    f->size = f->regular ? (int64_t)st.st_size : -1;
    *out = &f->source;
    return E_OK;
}
