/* suspects: see suspects.h. */
#include "worker/suspects.h"

#include "worker/job/job.h"

bool suspect_is(int32_t starts)
{
    return starts >= SUSPECT_STARTS;
}

bool suspect_convicted(int32_t starts, int32_t deaths)
{
    return suspect_is(starts) && deaths >= SUSPECT_CONVICTS;
}

int64_t suspect_limit(int32_t starts, int64_t wave)
{
    if (!suspect_is(starts))
        return 0;
    int32_t halvings = TR_MIN(starts - (SUSPECT_STARTS - 1), 62);
    return TR_MAX(wave >> halvings, (int64_t)1);
}

void suspects_add(struct suspects *s, struct job *job)
{
    int level = TR_MIN(TR_MAX(job->attempts, 0), SUSPECT_LEVELS - 1);
    job->next = NULL;
    if (s->levels[level].last)
        s->levels[level].last->next = job;
    else
        s->levels[level].first = job;
    s->levels[level].last = job;
    s->levels[level].n++;
    s->n++;
}

struct job *suspects_take(struct suspects *s)
{
    for (int i = 0; i < SUSPECT_LEVELS; i++) {
        struct job *job = s->levels[i].first;
        if (!job)
            continue;
        s->levels[i].first = job->next;
        if (!job->next)
            s->levels[i].last = NULL;
        s->levels[i].n--;
        s->n--;
        job->next = NULL;
        return job;
    }
    return NULL;
}

int64_t suspects_group(const struct suspects *s, int64_t wave)
{
    int64_t size = 0;
    for (int i = 0; i < SUSPECT_LEVELS; i++) {
        int64_t n = s->levels[i].n;
        if (n == 0)
            continue;
        int64_t limit = TR_MIN(suspect_limit(TR_MAX(i, SUSPECT_STARTS), wave), (s->n + 1) / 2);
        int64_t room = TR_MAX(limit - size, (int64_t)0);
        size += TR_MIN(n, room);
        if (n > room)
            break;
    }
    return size;
}
