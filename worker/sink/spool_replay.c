/* spool_replay: from segments to the sink. See spool.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/log.h"
#include "worker/sink/spool_impl.h"

enum { PART_ROWS = 512 };

/* The rows of one transaction. */
struct part {
    struct result rows[PART_ROWS];
    const struct result *results[PART_ROWS];
    struct dead_letter dead_letters[PART_ROWS];
    struct lost_range lost_ranges[PART_ROWS];
    size_t n_results, n_dead_letters, n_lost_ranges;
};
struct replay {
    struct spool *s;
    struct sink *sink;
    struct spool_replayed *done;
    struct part *part;
    struct err *err;
};

static int read_segment(const char *path, struct text *out, struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = -1;
    char *at = NULL;
    text_reset(out);
    while (fd >= 0 && (at = text_room(out, 1 << 20)) && (n = read(fd, at, 1 << 20)) > 0)
        out->len += (size_t)n;
    int why = errno;
    if (fd >= 0)
        close(fd);
    if (out->failed)
        return err_set(err, E_RETRY, "spool: %s: no memory to read it", path);
    return n < 0 ? err_typed(err, E_FATAL, "spool_damaged", "spool: %s: %s", path, strerror(why))
                 : E_OK;
}

static int commit_part(struct replay *r)
{
    struct part *p = r->part;
    struct commit_counts counts = {0};
    struct commit c = {.results = p->results,
                       .n_results = p->n_results,
                       .dead_letters = p->dead_letters,
                       .n_dead_letters = p->n_dead_letters,
                       .lost_ranges = p->lost_ranges,
                       .n_lost_ranges = p->n_lost_ranges,
                       .now_ns = clock_wall_ns(clock_system())};
    if (p->n_results + p->n_dead_letters + p->n_lost_ranges == 0)
        return E_OK;
    int rc = r->sink->ops->commit(r->sink, &c, &counts, r->err);
    if (rc < 0)
        return rc;
    r->done->counts.inserted += counts.inserted;
    r->done->counts.already += counts.already;
    r->done->counts.dead_letters += counts.dead_letters;
    p->n_results = p->n_dead_letters = p->n_lost_ranges = 0;
    return E_OK;
}

/* Takes one row in; a full part goes to the sink. */
static int add_row(struct replay *r, const struct spool_row *row)
{
    struct part *p = r->part;
    if (row->kind == SPOOL_RESULT) {
        p->rows[p->n_results] = row->result;
        p->results[p->n_results] = &p->rows[p->n_results];
        p->n_results++;
    } else if (row->kind == SPOOL_DEAD_LETTER) {
        p->dead_letters[p->n_dead_letters++] = row->dead_letter;
    } else if (row->kind == SPOOL_LOST_RANGE) {
        p->lost_ranges[p->n_lost_ranges++] = row->lost_range;
    }
    bool full = p->n_results == PART_ROWS || p->n_dead_letters == PART_ROWS ||
                p->n_lost_ranges == PART_ROWS;
    return full ? commit_part(r) : E_OK;
}

/* Commits what a segment's bytes hold. *rows: how many that were. */
static int replay_bytes(struct replay *r, const char *path, struct str bytes, size_t at,
                        int64_t *rows)
{
    struct spool_row row;
    enum spool_found found;
    int rc = E_OK;
    r->part->n_results = r->part->n_dead_letters = r->part->n_lost_ranges = 0;
    for (size_t from = at; rc >= 0 && (found = spool_next(bytes, &at, &row)) != SPOOL_END;
         from = at) {
        if (found == SPOOL_ROW && row.kind != SPOOL_OWNER) {
            rc = add_row(r, &row);
            (*rows)++;
        } else if (found == SPOOL_DAMAGED) {
            r->done->damaged++;
            LOG(LOG_ERROR, "spool_record_damaged", LOG_S("segment", path), LOG_I("at", from),
                LOG_I("bytes", at - from));
        } else if (found == SPOOL_TORN) {
            r->done->torn_bytes += (int64_t)(at - from);
            LOG(LOG_WARN, "spool_tail_dropped", LOG_S("segment", path), LOG_I("at", from),
                LOG_I("bytes", at - from));
        }
    }
    return rc < 0 ? rc : commit_part(r);
}

/* Out of the way, for whoever wants to look at it. */
static void put_aside(struct spool *s, uint32_t number, const char *path)
{
    char bad[SPOOL_PATH_MAX];
    spool_path(s, number, "bad", bad);
    LOG(LOG_ERROR, "spool_segment_damaged", LOG_S("segment", path), LOG_S("moved_to", bad));
    if (rename(path, bad) != 0)
        LOG(LOG_WARN, "spool_not_renamed", LOG_S("segment", path), LOG_S("why", strerror(errno)));
}

static int replay_segment(struct replay *r, uint32_t number)
{
    struct spool *s = r->s;
    char path[SPOOL_PATH_MAX];
    int64_t size = spool_size(s, number), rows = 0;
    spool_path(s, number, "seg", path);
    if (size < 0)
        return E_OK; /* a hole in the numbers; if it was ours, its rows stay owed */
    struct err why = {0};
    int rc = read_segment(path, &s->buffer, &why);
    if (rc == E_RETRY)
        return err_set(r->err, E_RETRY, "%s", why.msg);
    struct str bytes = text_view(&s->buffer);
    int at = rc < 0 ? 0 : spool_owner_check(path, bytes, &s->owner, r->err);
    if (at < 0)
        return at;
    /* Nothing but the beginning of a head: the process died before it wrote a row. */
    bool begun = rc >= 0 && bytes.len < SPOOL_MAGIC_BYTES + SPOOL_HEAD_BYTES;
    if (at == 0 && !begun) {
        r->done->damaged++;
        put_aside(s, number, path);
    }
    rc = at == 0 ? E_OK : replay_bytes(r, path, bytes, (size_t)at, &rows);
    if (rc < 0)
        return rc;
    spool_remove(s, number);
    s->bytes -= size;
    r->done->rows += rows;
    if (number >= s->own)
        s->owed -= rows;
    return E_OK;
}

int spool_replay(struct spool *s, struct sink *sink, struct spool_replayed *done, struct err *err)
{
    struct replay r = {
        .s = s, .sink = sink, .done = done, .part = mem_alloc(1, sizeof *r.part), .err = err};
    if (!r.part)
        return err_set(err, E_RETRY, "spool: no memory to replay it");
    int rc = E_OK;
    spool_end_segment(s);
    for (; rc >= 0 && s->first < s->next; s->first += rc >= 0)
        rc = replay_segment(&r, s->first);
    mem_free(r.part);
    text_close(&s->buffer); /* a segment's bytes are not kept for the next outage */
    if (rc < 0)
        return rc;
    int64_t owed = s->owed;
    s->owed = 0;
    s->bytes = 0;
    if (owed > 0)
        return err_typed(err, E_FATAL, "spool_damaged",
                         "spool: %s: %lld rows of this process could not be read back; their jobs "
                         "are not acknowledged and run again at the next start",
                         s->dir, (long long)owed);
    return E_OK;
}
