/* outstanding: see outstanding.h. */
#include "worker/outstanding.h"

int outstanding_open(struct outstanding *o, size_t cap, struct err *err)
{
    *o = (struct outstanding){.cap = cap, .n_buckets = 1024};
    while (o->n_buckets < cap)
        o->n_buckets *= 2;
    o->ring = mem_alloc(cap, sizeof *o->ring);
    o->buckets = mem_alloc(o->n_buckets, sizeof *o->buckets);
    if (o->ring && o->buckets && job_heap_open(&o->waiting, cap, err) == E_OK)
        return E_OK;
    outstanding_close(o);
    return err_set(err, E_FATAL, "worker: no memory for %zu jobs in flight", cap);
}

void outstanding_close(struct outstanding *o)
{
    for (size_t i = 0; o->ring && i < o->cap; i++)
        job_close(o->ring[i]);
    for (int32_t p = 0; p < SOURCE_PARTITIONS_MAX; p++)
        outstanding_disown(o, p, 0);
    for (struct job *job = o->orphans.first, *behind; job; job = behind) {
        behind = job->behind;
        job_close(job);
    }
    mem_free(o->ring);
    job_heap_close(&o->waiting);
    mem_free(o->buckets);
    *o = (struct outstanding){0};
}

void outstanding_arrive(struct outstanding *o, struct job *job)
{
    struct job **slot = &o->ring[(size_t)job->arrival % o->cap];
    CHECK(*slot == NULL);
    *slot = job;
}

static bool orphan(const struct outstanding *o, const struct job *job)
{
    return job->epoch != o->partitions[job->partition].epoch;
}

static struct partition *list_of(struct outstanding *o, const struct job *job)
{
    return orphan(o, job) ? &o->orphans : &o->partitions[job->partition];
}

void outstanding_disown(struct outstanding *o, int32_t partition, int32_t epoch)
{
    struct partition *p = &o->partitions[partition], *orphans = &o->orphans;
    if (p->first) {
        p->first->before = orphans->last;
        if (orphans->last)
            orphans->last->behind = p->first;
        else
            orphans->first = p->first;
        orphans->last = p->last;
    }
    *p = (struct partition){.epoch = epoch};
}

bool outstanding_orphaned(const struct outstanding *o, const struct job *job)
{
    while (job && orphan(o, job))
        job = job->same;
    return job == NULL;
}

struct job *outstanding_next(struct outstanding *o)
{
    struct job **slot = &o->ring[(size_t)o->next_arrival % o->cap], *job = *slot;
    if (!job)
        return NULL;
    CHECK(job->arrival == o->next_arrival);
    *slot = NULL;
    o->next_arrival++;
    o->n++;
    struct partition *p = list_of(o, job);
    job->before = p->last;
    job->behind = NULL;
    if (p->last)
        p->last->behind = job;
    else
        p->first = job;
    p->last = job;
    p->used = true;
    p->position = job->position;
    p->messages = job->sequence + 1;
    return job;
}

static struct job **bucket_of(const struct outstanding *o, const struct job *job)
{
    return &o->buckets[job->key_hash & (o->n_buckets - 1)];
}

struct job *outstanding_find(const struct outstanding *o, const struct job *job)
{
    struct job *at = *bucket_of(o, job);
    while (at && !(at->key_hash == job->key_hash && str_eq(at->custom_id, job->custom_id) &&
                   str_eq(at->batch_id, job->batch_id) && str_eq(at->run, job->run)))
        at = at->bucket;
    return at;
}

struct job *outstanding_find_key(const struct outstanding *o, const struct key *key)
{
    struct job wanted = {.run = key->run, .batch_id = key->batch_id, .custom_id = key->custom_id};
    wanted.key_hash = job_key_hash(key);
    return outstanding_find(o, &wanted);
}

void outstanding_enter_key(struct outstanding *o, struct job *job)
{
    struct job **bucket = bucket_of(o, job);
    job->bucket = *bucket;
    *bucket = job;
}

void outstanding_leave_key(struct outstanding *o, struct job *job)
{
    for (struct job **at = bucket_of(o, job); *at; at = &(*at)->bucket)
        if (*at == job) {
            *at = job->bucket;
            job->bucket = NULL;
            return;
        }
}

void outstanding_leave(struct outstanding *o, struct job *job)
{
    struct partition *p = list_of(o, job);
    if (job->before)
        job->before->behind = job->behind;
    else
        p->first = job->behind;
    if (job->behind)
        job->behind->before = job->before;
    else
        p->last = job->before;
    job->before = job->behind = NULL;
    o->n--;
}

void outstanding_hold(struct outstanding *o, const struct job *job)
{
    struct partition *p = &o->partitions[job->partition];
    if (orphan(o, job) || (p->held && p->held_sequence <= job->sequence))
        return;
    p->held = true;
    p->held_sequence = job->sequence;
    p->held_position = job->from_position;
}

void outstanding_each(struct outstanding *o, void (*visit)(void *ctx, struct job *job), void *ctx)
{
    for (size_t p = 0; p <= SOURCE_PARTITIONS_MAX; p++)
        for (struct job *job = p < SOURCE_PARTITIONS_MAX ? o->partitions[p].first
                                                         : o->orphans.first,
                        *behind;
             job; job = behind) {
            behind = job->behind;
            visit(ctx, job);
        }
}

int64_t partition_watermark(const struct partition *p, int committing, int64_t *messages)
{
    const struct job *job = p->first;
    while (job && job->stage == committing)
        job = job->behind;
    *messages = job ? job->sequence : p->messages;
    if (p->held && p->held_sequence <= *messages) {
        *messages = p->held_sequence;
        return p->held_position;
    }
    return job ? job->from_position : p->position;
}
