/* breaker: see breaker.h. */
#include "worker/breaker.h"

static const int64_t PAUSE_MIN_NS = 5000000000, PAUSE_MAX_NS = 300000000000;

int64_t breaker_room(const struct breaker *b, int64_t now_ns)
{
    if (b->state == BREAKER_CLOSED)
        return INT64_MAX;
    return b->state == BREAKER_OPEN && now_ns >= b->until_ns ? 1 : 0;
}

void breaker_probe(struct breaker *b)
{
    CHECK(b->state == BREAKER_OPEN);
    b->state = BREAKER_PROBING;
}

void breaker_no_answer(struct breaker *b)
{
    if (b->state == BREAKER_PROBING)
        b->state = BREAKER_OPEN; /* its pause is over: the next one may try */
}

static void note(struct breaker *b, bool failed)
{
    if (b->n == BREAKER_WINDOW)
        b->n_failed -= b->failed[b->at];
    else
        b->n++;
    b->failed[b->at] = failed;
    b->n_failed += failed;
    b->at = (b->at + 1) % BREAKER_WINDOW;
}

enum breaker_change breaker_ended(struct breaker *b, bool failed, bool probe, int64_t now_ns)
{
    if (b->state == BREAKER_CLOSED) {
        note(b, failed);
        if (b->n < BREAKER_LEAST || b->n_failed <= b->share * b->n)
            return BREAKER_SAME;
        b->state = BREAKER_OPEN;
        b->pause_ns = TR_MIN(TR_MAX(b->pause_ns * 2, PAUSE_MIN_NS), PAUSE_MAX_NS);
        b->until_ns = now_ns + b->pause_ns;
        return BREAKER_TRIPPED;
    }
    /* What was in flight when it opened says nothing about now. */
    if (!probe)
        return BREAKER_SAME;
    if (!failed) {
        *b = (struct breaker){.share = b->share, .state = BREAKER_CLOSED};
        return BREAKER_MENDED;
    }
    b->state = BREAKER_OPEN;
    b->pause_ns = TR_MIN(b->pause_ns * 2, PAUSE_MAX_NS);
    b->until_ns = now_ns + b->pause_ns;
    return BREAKER_SAME;
}
