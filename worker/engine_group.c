/* engine_group: the engines of one worker, a thread each, as one. See threads.h. */
#include "worker/threads.h"

struct engine_group {
    struct engine_team team;
    struct engine_thread *threads[ENGINES_MAX];
    int n;
};

int engine_group_open(struct engine_group **out, const struct engine_group_opts *opts,
                      struct err *err)
{
    CHECK(opts->n >= 1 && opts->n <= ENGINES_MAX);
    struct engine_group *g = mem_alloc(1, sizeof *g);
    if (!g)
        return err_set(err, E_FATAL, "engine group: no memory");
    g->team.n = opts->n;
    atomic_store(&g->team.alive, opts->n);
    int rc = E_OK;
    for (; rc == E_OK && g->n < opts->n; g->n += rc == E_OK) {
        struct engine_thread_opts o = {.engine = opts->engines[g->n],
                                       .team = &g->team,
                                       .member = g->n,
                                       .ready = opts->ready,
                                       .tasks = opts->tasks,
                                       .events = opts->events,
                                       .clock = opts->clock,
                                       .self = opts->self};
        rc = engine_thread_open(&g->threads[g->n], &o, err);
    }
    if (rc < 0) {
        engine_group_close(g);
        return rc;
    }
    *out = g;
    return E_OK;
}

void engine_group_drain(struct engine_group *g, int64_t until_ns)
{
    for (int i = 0; i < g->n; i++)
        engine_thread_drain(g->threads[i], until_ns);
}

void engine_group_cut(struct engine_group *g)
{
    for (int i = 0; i < g->n; i++)
        engine_thread_cut(g->threads[i]);
}

void engine_group_stop(struct engine_group *g)
{
    for (int i = 0; i < g->n; i++)
        engine_thread_stop(g->threads[i]);
}

void engine_group_hold(struct engine_group *g, bool hold)
{
    for (int i = 0; i < g->n; i++)
        engine_thread_hold(g->threads[i], hold);
}

int64_t engine_group_finished(struct engine_group *g)
{
    int64_t n = 0;
    for (int i = 0; i < g->n; i++)
        n += engine_thread_finished(g->threads[i]);
    return n;
}

void engine_group_stats(struct engine_group *g, struct engine_stats *out)
{
    struct engine_stats one;
    engine_thread_stats(g->threads[0], out);
    for (int i = 1; i < g->n; i++) {
        engine_thread_stats(g->threads[i], &one);
        engine_stats_add(out, &one);
    }
}

const struct err *engine_group_error(const struct engine_group *g)
{
    for (int i = 1; i < g->n; i++) {
        if (atomic_load(&g->team.members[i].gone) && engine_thread_error(g->threads[i])->code)
            return engine_thread_error(g->threads[i]);
    }
    return engine_thread_error(g->threads[0]);
}

void engine_group_close(struct engine_group *g)
{
    if (!g)
        return;
    engine_group_stop(g);
    for (int i = 0; i < g->n; i++)
        engine_thread_close(g->threads[i]);
    mem_free(g);
}
