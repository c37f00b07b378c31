/* kafka_watermark: see kafka_watermark.h. */
#include "worker/source/kafka_watermark.h"

enum { RING_FIRST = 256 };

void kafka_watermark_start(struct kafka_watermark *w, int64_t position)
{
    w->first = w->n = w->open = 0;
    w->position = position;
}

void kafka_watermark_close(struct kafka_watermark *w)
{
    mem_free(w->ring);
    *w = (struct kafka_watermark){0};
}

static int64_t *entry(const struct kafka_watermark *w, size_t i)
{
    return &w->ring[(w->first + i) & (w->cap - 1)];
}

static int grow(struct kafka_watermark *w, struct err *err)
{
    size_t cap = w->cap ? w->cap * 2 : RING_FIRST;
    int64_t *ring = mem_alloc(cap, sizeof *ring);
    if (!ring)
        return err_set(err, E_FATAL, "kafka: no memory for %zu open offsets", cap);
    for (size_t i = 0; i < w->n; i++)
        ring[i] = *entry(w, i);
    mem_free(w->ring);
    w->ring = ring;
    w->cap = cap;
    w->first = 0;
    return E_OK;
}

int kafka_watermark_deliver(struct kafka_watermark *w, int64_t offset, struct err *err)
{
    if (offset < w->position)
        return 0;
    if (w->n == w->cap) {
        int rc = grow(w, err);
        if (rc < 0)
            return rc;
    }
    *entry(w, w->n++) = offset * 2;
    w->open++;
    w->position = offset + 1;
    return 1;
}

bool kafka_watermark_done(struct kafka_watermark *w, int64_t offset)
{
    size_t low = 0, high = w->n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (*entry(w, middle) / 2 < offset)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == w->n || *entry(w, low) / 2 != offset)
        return false;
    w->open -= !(*entry(w, low) & 1);
    *entry(w, low) |= 1;
    while (w->n && (*entry(w, 0) & 1)) {
        w->first = (w->first + 1) & (w->cap - 1);
        w->n--;
    }
    return true;
}

void kafka_watermark_end(struct kafka_watermark *w, int64_t offset)
{
    w->position = TR_MAX(w->position, offset);
}

int64_t kafka_watermark_value(const struct kafka_watermark *w)
{
    return w->n ? *entry(w, 0) / 2 : w->position;
}
