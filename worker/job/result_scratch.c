/* result_scratch: the buffers that a thread makes rows in. See result.h. */
#include "worker/job/result.h"

static void give_back(struct result_scratch *s, size_t above)
{
    struct text *texts[] = {&s->raw, &s->text, &s->json, &s->logprobs, &s->repaired};
    for (size_t i = 0; i < TR_COUNT(texts); i++)
        if (texts[i]->cap > above)
            text_close(texts[i]);
}

void result_scratch_trim(struct result_scratch *s)
{
    give_back(s, RESULT_SCRATCH_MAX);
}

void result_scratch_close(struct result_scratch *s)
{
    give_back(s, 0);
    mem_free(s->offsets);
    *s = (struct result_scratch){0};
}
