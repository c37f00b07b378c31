/* log: one line an event on stderr, JSON or logfmt, with a level, a stable event name and typed
 * fields. Never prompt or completion text: ids, lengths and hashes only.
 * Thread-safe: a line is formatted on the stack and written with one write(2). */
#ifndef TRANCHE_ENGINE_LOG_H
#define TRANCHE_ENGINE_LOG_H

#include "engine/base.h"

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR, LOG_OFF };
enum log_format { LOG_LOGFMT, LOG_JSON };

struct log_field {
    const char *key;
    enum { LOG_FIELD_STR, LOG_FIELD_INT, LOG_FIELD_F64 } kind;
    struct str s;
    int64_t i;
    double f;
};
#define LOG_S(key, nul_terminated)                                                                 \
    ((struct log_field){(key), LOG_FIELD_STR, str_of(nul_terminated), 0, 0})
#define LOG_STR(key, str) ((struct log_field){(key), LOG_FIELD_STR, (str), 0, 0})
#define LOG_I(key, value) ((struct log_field){(key), LOG_FIELD_INT, {0}, (int64_t)(value), 0})
#define LOG_F(key, value) ((struct log_field){(key), LOG_FIELD_F64, {0}, 0, (double)(value)})

/* LOG(LOG_INFO, "model_loaded", LOG_S("path", dir), LOG_I("bytes", n), LOG_F("seconds", s));
 * At least one field. Lines longer than 4 KiB are cut at a field's end and marked "cut":true. */
#define LOG(level, event, ...)                                                                     \
    do {                                                                                           \
        if (log_enabled(level)) {                                                                  \
            const struct log_field log_fields_[] = {__VA_ARGS__};                                  \
            log_event(level, event, log_fields_, TR_COUNT(log_fields_));                           \
        }                                                                                          \
    } while (0)

/* Process-wide; call once at start. Default: LOG_INFO, logfmt, fd 2. */
void log_setup(enum log_level level, enum log_format format, int fd);
bool log_enabled(enum log_level level);
/* The last few warnings and errors, oldest first, each cut to half a KiB and without its newline.
 */
void log_recent(void (*take)(void *ctx, struct str line), void *ctx);
/* Goes back to the line's beginning and clears it, on a terminal. */
#define LOG_CLEAR "\r\033[K"
/* Somebody keeps a line without an end on the log's terminal: each log line clears it first, in the
 * same write, and it is for its owner to draw it again. Process-wide, any thread; default: none. */
void log_over_live_line(bool stands);
void log_event(enum log_level level, const char *event, const struct log_field *fields, size_t n);

#endif
