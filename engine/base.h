/* base: what every file may lean on: byte strings, errors, an arena, the clock, CHECK.
 * It deliberately knows nothing of models, queues or files, and prints only when a CHECK fails.
 * Logging lives in log.h, JSON in json.h. */
#ifndef TRANCHE_ENGINE_BASE_H
#define TRANCHE_ENGINE_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TR_MUSTCHECK    __attribute__((warn_unused_result))
#define TR_PRINTF(f, a) __attribute__((format(printf, f, a)))
#define TR_COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define TR_MIN(a, b)    ((a) < (b) ? (a) : (b))
#define TR_MAX(a, b)    ((a) > (b) ? (a) : (b))

/* A bug, not an error: prints file:line and the condition on stderr, then aborts, in every build.
 */
#define CHECK(cond) ((cond) ? (void)0 : check_failed(__FILE__, __LINE__, #cond))
__attribute__((noreturn)) void check_failed(const char *file, int line, const char *cond);

/* ---- str: borrowed bytes, not NUL-terminated; {NULL,0} is the empty string. ---- */
struct str {
    const char *ptr;
    size_t len;
};
#define STR(literal) ((struct str){(literal), sizeof(literal) - 1})
#define STR_FMT      "%.*s"
#define STR_ARG(s)   (int)(s).len, (s).ptr

static inline struct str str_of(const char *nul_terminated)
{
    return (struct str){nul_terminated, nul_terminated ? strlen(nul_terminated) : 0};
}
static inline bool str_eq(struct str a, struct str b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.ptr, b.ptr, a.len) == 0);
}

/* ---- err: what went wrong, and what the caller does about it. ----
 * A function that can fail returns int: >= 0 success (a count where useful), or one of the classes
 * below. Its last parameter is `struct err *` (never NULL): untouched on success; the first failure
 * wins. Messages name the thing and both values:
 *   "config.json: num_attention_heads: want a multiple of num_key_value_heads 3, file has 14". */
enum {
    E_OK = 0,
    E_JOB = -1,   /* this job fails: write its row and go on */
    E_RETRY = -2, /* the world is down: wait and try again, nothing is lost */
    E_FATAL = -3, /* leave with a non-zero status; jobs stay unacknowledged */
    E_USAGE = -4, /* the operator's mistake in an option or config: exit 64 */
};
struct err {
    int code;      /* E_*; 0 = no failure yet */
    char type[32]; /* stable error_code of the row or log event, "" when there is none */
    char msg[252]; /* text for people, always NUL-terminated, cut at a UTF-8 boundary */
};
/* Records a failure unless one is recorded already. Returns `code`, so `return err_set(...)` works.
 */
int err_set(struct err *err, int code, const char *fmt, ...) TR_PRINTF(3, 4);
/* The same with a stable type name ("prompt_too_long", "unknown_field", ...). */
int err_typed(struct err *err, int code, const char *type, const char *fmt, ...) TR_PRINTF(4, 5);
/* The same with errno's text appended. */
int err_errno(struct err *err, int code, const char *fmt, ...) TR_PRINTF(3, 4);

/* ---- arena: bump allocation from one block; reset, never freed singly. ----
 * arena_alloc returns zeroed memory aligned to 16 bytes, or NULL when the arena is full (the caller
 * turns that into an error: arenas are sized from limits and never grow). */
struct arena {
    char *base;
    size_t used, cap;
};
int arena_open(struct arena *arena, size_t cap, struct err *err) TR_MUSTCHECK;
void *arena_alloc(struct arena *arena, size_t size);
/* Copies bytes and adds a NUL behind them; ptr is NULL when the arena is full. */
struct str arena_str(struct arena *arena, struct str s);
void arena_reset(struct arena *arena);
void arena_close(struct arena *arena);

/* ---- clock: the only source of time. Tests pass their own. ---- */
struct clock {
    int64_t (*mono_ns)(void *ctx); /* monotonic: intervals, leases, timeouts */
    int64_t (*wall_ns)(void *ctx); /* since 1970, UTC: columns and deadlines */
    void (*sleep_ns)(void *ctx, int64_t ns);
    void *ctx;
};
const struct clock *clock_system(void);
static inline int64_t clock_mono_ns(const struct clock *c)
{
    return c->mono_ns(c->ctx);
}
static inline int64_t clock_wall_ns(const struct clock *c)
{
    return c->wall_ns(c->ctx);
}
static inline void clock_sleep_ns(const struct clock *c, int64_t ns)
{
    c->sleep_ns(c->ctx, ns);
}

/* ---- memory taken at open: zeroed, aligned to 64 bytes, overflow-checked. Aborts never; NULL when
 * the system refuses. Free with mem_free. ---- */
void *mem_alloc(size_t count, size_t size);
/* How often the system has refused the calling thread so far. Where it has not moved, everything
 * that was asked for in between is there. */
int64_t mem_refused(void);
void mem_free(void *ptr);

/* Stable 64-bit hash (FNV-1a with a final mix): tables and tests, never security. */
uint64_t hash_bytes(const void *ptr, size_t len, uint64_t seed);

#ifdef __cplusplus
}
#endif
#endif
