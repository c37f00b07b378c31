/* log: see log.h. */
#include "engine/log.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

enum { LOG_LINE_CAP = 4096, LOG_TAIL = 24 };

static enum log_level log_min = LOG_INFO;
static enum log_format log_style = LOG_LOGFMT;
static int log_fd = 2;
static atomic_bool live_line;

void log_setup(enum log_level level, enum log_format format, int fd)
{
    log_min = level;
    log_style = format;
    log_fd = fd;
}

void log_over_live_line(bool stands)
{
    atomic_store(&live_line, stands);
}

bool log_enabled(enum log_level level)
{
    return level >= log_min;
}

/* What log_recent tells. A line that comes while another one is kept is only written. */
enum { RECENT = 8, RECENT_BYTES = 512 };
static struct {
    pthread_mutex_t mutex;
    char text[RECENT][RECENT_BYTES];
    size_t len[RECENT], n; /* n: ever kept */
} recent = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static void keep(const char *text, size_t n)
{
    if (n > RECENT_BYTES) { /* between two characters */
        n = RECENT_BYTES;
        while (n > 0 && ((unsigned char)text[n] & 0xC0) == 0x80)
            n--;
    }
    if (pthread_mutex_trylock(&recent.mutex) != 0)
        return;
    memcpy(recent.text[recent.n % RECENT], text, n);
    recent.len[recent.n++ % RECENT] = n;
    pthread_mutex_unlock(&recent.mutex);
}

void log_recent(void (*take)(void *ctx, struct str line), void *ctx)
{
    pthread_mutex_lock(&recent.mutex);
    for (size_t i = recent.n > RECENT ? recent.n - RECENT : 0; i < recent.n; i++)
        take(ctx, (struct str){recent.text[i % RECENT], recent.len[i % RECENT]});
    pthread_mutex_unlock(&recent.mutex);
}

struct line {
    char buf[LOG_LINE_CAP];
    size_t n;
    bool full;
};

static void put(struct line *l, const char *s, size_t n)
{
    if (n > LOG_LINE_CAP - LOG_TAIL - l->n) {
        l->full = true;
        return;
    }
    memcpy(l->buf + l->n, s, n);
    l->n += n;
}

static void put_quoted(struct line *l, struct str s)
{
    put(l, "\"", 1);
    for (size_t i = 0; i < s.len && !l->full; i++) {
        unsigned char c = (unsigned char)s.ptr[i];
        if (c == '"' || c == '\\') {
            char esc[2] = {'\\', (char)c};
            put(l, esc, 2);
        } else if (c < 0x20 || c == 0x7F) {
            char esc[8];
            put(l, esc, (size_t)snprintf(esc, sizeof esc, "\\u%04x", c));
        } else {
            put(l, s.ptr + i, 1);
        }
    }
    put(l, "\"", 1);
}

static bool bare(struct str s)
{
    for (size_t i = 0; i < s.len; i++) {
        unsigned char c = (unsigned char)s.ptr[i];
        if (c <= ' ' || c == '"' || c == '=' || c == '\\' || c == 0x7F)
            return false;
    }
    return s.len > 0;
}

static void put_field(struct line *l, const struct log_field *f)
{
    size_t start = l->n;
    bool json = log_style == LOG_JSON;
    if (json) {
        put(l, ",", 1);
        put_quoted(l, str_of(f->key));
        put(l, ":", 1);
    } else {
        put(l, " ", 1);
        put(l, f->key, strlen(f->key));
        put(l, "=", 1);
    }
    char number[48];
    if (f->kind == LOG_FIELD_INT) {
        put(l, number, (size_t)snprintf(number, sizeof number, "%lld", (long long)f->i));
    } else if (f->kind == LOG_FIELD_F64) {
        int n = isfinite(f->f) ? snprintf(number, sizeof number, "%.6g", f->f)
                               : snprintf(number, sizeof number, "null");
        put(l, number, (size_t)n);
    } else if (json || !bare(f->s)) {
        put_quoted(l, f->s);
    } else {
        put(l, f->s.ptr, f->s.len);
    }
    if (l->full)
        l->n = start; /* never half a field */
}

void log_event(enum log_level level, const char *event, const struct log_field *fields, size_t n)
{
    static const char *const names[] = {"debug", "info", "warn", "error", "off"};
    struct line l = {.n = 0};
    if (atomic_load(&live_line))
        put(&l, LOG_CLEAR, sizeof LOG_CLEAR - 1);
    size_t start = l.n;
    int64_t now_ns = clock_wall_ns(clock_system());
    time_t sec = (time_t)(now_ns / 1000000000);
    struct tm tm;
    gmtime_r(&sec, &tm);
    char stamp[40];
    size_t k = strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(stamp + k, sizeof stamp - k, ".%03dZ", (int)(now_ns / 1000000 % 1000));
    bool json = log_style == LOG_JSON;
    char head[256];
    int h = snprintf(head, sizeof head,
                     json ? "{\"ts\":\"%s\",\"level\":\"%s\",\"event\":\"%s\""
                          : "ts=%s level=%s event=%s",
                     stamp, names[level], event);
    put(&l, head, TR_MIN((size_t)h, sizeof head - 1));
    for (size_t i = 0; i < n && !l.full; i++)
        put_field(&l, &fields[i]);
    if (l.full)
        l.n += (size_t)snprintf(l.buf + l.n, LOG_TAIL, json ? ",\"cut\":true" : " cut=true");
    l.n += (size_t)snprintf(l.buf + l.n, LOG_LINE_CAP - l.n, json ? "}\n" : "\n");
    if (level >= LOG_WARN)
        keep(l.buf + start, l.n - 1 - start);
    ssize_t ignored = write(log_fd, l.buf, l.n);
    (void)ignored; /* a log that cannot be written must not stop the work */
}
