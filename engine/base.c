/* base: see base.h. */
#include "engine/base.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

void check_failed(const char *file, int line, const char *cond)
{
    fprintf(stderr, "%s:%d: CHECK failed: %s\n", file, line, cond);
    abort();
}

/* Drops a multi-byte character that vsnprintf cut in the middle. */
static void utf8_trim(char *msg)
{
    size_t n = strlen(msg), back = 0;
    while (back < n && back < 3 && ((unsigned char)msg[n - 1 - back] & 0xC0) == 0x80)
        back++;
    if (back == n)
        return;
    unsigned char lead = (unsigned char)msg[n - 1 - back];
    size_t want = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : lead >= 0xC0 ? 1 : 0;
    if (want != back)
        msg[n - 1 - back] = '\0';
}

static int err_vset(struct err *err, int code, const char *type, const char *fmt, va_list ap)
{
    CHECK(code < 0);
    if (err->code != 0)
        return code;
    err->code = code;
    snprintf(err->type, sizeof err->type, "%s", type);
    int n = vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    if (n < 0 || (size_t)n >= sizeof err->msg)
        utf8_trim(err->msg);
    return code;
}

int err_set(struct err *err, int code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    err_vset(err, code, "", fmt, ap);
    va_end(ap);
    return code;
}

int err_typed(struct err *err, int code, const char *type, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    err_vset(err, code, type, fmt, ap);
    va_end(ap);
    return code;
}

int err_errno(struct err *err, int code, const char *fmt, ...)
{
    int saved = errno;
    if (err->code != 0)
        return code;
    va_list ap;
    va_start(ap, fmt);
    err_vset(err, code, "", fmt, ap);
    va_end(ap);
    size_t n = strlen(err->msg);
    snprintf(err->msg + n, sizeof err->msg - n, ": %s", strerror(saved));
    return code;
}

int arena_open(struct arena *arena, size_t cap, struct err *err)
{
    *arena = (struct arena){.base = mem_alloc(cap, 1), .cap = cap};
    if (!arena->base)
        return err_set(err, E_FATAL, "arena: cannot take %zu bytes", cap);
    return E_OK;
}

void *arena_alloc(struct arena *arena, size_t size)
{
    size_t start = (arena->used + 15) & ~(size_t)15;
    if (start > arena->cap || size > arena->cap - start)
        return NULL;
    arena->used = start + size;
    memset(arena->base + start, 0, size);
    return arena->base + start;
}

struct str arena_str(struct arena *arena, struct str s)
{
    char *copy = arena_alloc(arena, s.len + 1);
    if (!copy)
        return (struct str){NULL, 0};
    if (s.len)
        memcpy(copy, s.ptr, s.len);
    return (struct str){copy, s.len};
}

void arena_reset(struct arena *arena)
{
    arena->used = 0;
}

void arena_close(struct arena *arena)
{
    if (!arena)
        return;
    mem_free(arena->base);
    *arena = (struct arena){0};
}

static int64_t timespec_ns(clockid_t id)
{
    struct timespec ts;
    clock_gettime(id, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static int64_t system_mono(void *ctx)
{
    (void)ctx;
    return timespec_ns(CLOCK_MONOTONIC);
}

static int64_t system_wall(void *ctx)
{
    (void)ctx;
    return timespec_ns(CLOCK_REALTIME);
}

static void system_sleep(void *ctx, int64_t ns)
{
    (void)ctx;
    if (ns <= 0)
        return;
    struct timespec ts = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
    nanosleep(&ts, NULL);
}

const struct clock *clock_system(void)
{
    static const struct clock system_clock = {system_mono, system_wall, system_sleep, NULL};
    return &system_clock;
}

/* From this size on, pages of 2 MB: a gigabyte of weights in 4 KB pages costs seconds of faults at
 * load and a page walk for every 64 lines read later. */
enum { HUGE_PAGE = 2 << 20 };

static _Thread_local int64_t refused;

int64_t mem_refused(void)
{
    return refused;
}

void *mem_alloc(size_t count, size_t size)
{
    size_t bytes, align = 64;
    if (__builtin_mul_overflow(count, size, &bytes) || bytes > SIZE_MAX - HUGE_PAGE)
        return NULL;
    if (bytes >= 2 * HUGE_PAGE)
        align = HUGE_PAGE;
    bytes = (TR_MAX(bytes, 1) + align - 1) & ~(align - 1);
    void *ptr = aligned_alloc(align, bytes);
    if (ptr && align == HUGE_PAGE)
        madvise(ptr, bytes, MADV_HUGEPAGE); /* a wish: refusal changes nothing */
    if (ptr)
        memset(ptr, 0, bytes);
    else
        refused++;
    return ptr;
}

void mem_free(void *ptr)
{
    free(ptr);
}

uint64_t hash_bytes(const void *ptr, size_t len, uint64_t seed)
{
    const unsigned char *p = ptr;
    uint64_t h = 0xcbf29ce484222325u ^ seed;
    for (size_t i = 0; i < len; i++)
        h = (h ^ p[i]) * 0x100000001b3u;
    h ^= h >> 32;
    h *= 0xd6e8feb86659fd93u;
    h ^= h >> 32;
    return h;
}
