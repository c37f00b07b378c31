/* schedule: see schedule.h. */
#include "engine/schedule.h"

#include "kernels/kernels.h"

/* A decode row writes id n_computed, whose page may not be there yet. */
static bool needs_page(const struct schedule_seq *s)
{
    return s->n_computed >= s->n_pages * KV_PAGE_TOKENS;
}

static bool decodes(const struct schedule_seq *s)
{
    return s->n_tokens - s->n_computed == 1;
}

static void pick(struct schedule_plan *plan, const struct schedule_seq *s, int32_t seq,
                 int32_t count)
{
    bool new_page = needs_page(s);
    plan->picks[plan->n_picks++] = (struct schedule_pick){seq, s->n_computed, count, new_page};
    plan->n_rows += count;
    plan->pages_left -= new_page;
}

int32_t schedule_running(const struct schedule_seq *seqs, int32_t n,
                         const struct schedule_limits *limits, int32_t pages_free,
                         struct schedule_plan *plan)
{
    plan->n_picks = plan->n_rows = 0;
    plan->n_running = n;
    plan->pages_left = pages_free;
    /* A prefill that is the oldest of all keeps one row, however many decode. */
    int32_t first_prefill = n > 0 && !seqs[0].held && !decodes(&seqs[0]) ? 1 : 0;
    int32_t rows = limits->step_tokens - first_prefill;
    for (int32_t i = 0; i < n && rows > 0; i++) {
        if (seqs[i].held || !decodes(&seqs[i]))
            continue;
        if (needs_page(&seqs[i]) && plan->pages_left == 0) {
            CHECK(n > 1); /* else one sequence of the greatest length did not fit */
            return n - 1;
        }
        pick(plan, &seqs[i], i, 1);
        rows--;
    }
    rows += first_prefill;
    for (int32_t i = 0; i < n && rows > 0; i++) {
        if (seqs[i].held || decodes(&seqs[i]))
            continue;
        int32_t count = TR_MIN(seqs[i].n_tokens - seqs[i].n_computed, limits->chunk_tokens);
        count = TR_MIN(count, rows);
        pick(plan, &seqs[i], i, count);
        rows -= count;
    }
    return -1;
}

bool schedule_room(const struct schedule_plan *plan, const struct schedule_limits *limits)
{
    return plan->n_running < limits->slots && plan->n_rows < limits->step_tokens;
}

int32_t schedule_admit(struct schedule_plan *plan, const struct schedule_limits *limits,
                       int32_t n_tokens, int32_t n_computed, int32_t pages)
{
    if (!schedule_room(plan, limits))
        return 0;
    /* Half or none of it gave the same throughput (schedule_bench, W2: 46.6k to 46.7k tokens/s). */
    int32_t reserve = plan->n_running == 0 ? 0 : plan->n_running + limits->n_pages / 64;
    if (plan->pages_left - pages < reserve)
        return 0;
    int32_t count = TR_MIN(n_tokens - n_computed, limits->chunk_tokens);
    count = TR_MIN(count, limits->step_tokens - plan->n_rows);
    plan->picks[plan->n_picks++] =
        (struct schedule_pick){plan->n_running, n_computed, count, false};
    plan->n_rows += count;
    plan->n_running++;
    plan->pages_left -= pages;
    return count;
}
