/* Any bytes as a parked state: refused with a type, or read into the room given; what is read and
 * written again is the same bytes. The first byte chooses the shape; with its top bit set the
 * checksum and the two hashes are made right first, so that the fuzzer gets behind them. */
#include "worker/job/parked_state.h"

enum { CAP = 64, TOP = 3, PROMPT = 8, HEAD = 104 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void mend(struct text *in)
{
    uint8_t sum[32];
    if (in->len < HEAD + 8)
        return;
    memcpy(in->ptr, "TPK\1", 4);
    memset(in->ptr + 40, 0, 64);
    sha256_of((struct str){in->ptr, in->len - 8}, sum);
    memcpy(in->ptr + in->len - 8, sum, 8);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct text in, again;
    static int32_t ids[CAP], top_ids[CAP * TOP], best_ids[PROMPT * TOP];
    static float logprobs[CAP], top[CAP * TOP], prompt[PROMPT], best[PROMPT * TOP];
    struct parked_shape shape = {.n_top = -1, .prompt_top = -1, .n_prompt = PROMPT};
    struct parked_life life = {0};
    struct err err = {0};
    if (size == 0)
        return 0;
    shape.n_top = (data[0] & 7) % (TOP + 2) - 1;
    shape.prompt_top = (data[0] >> 3 & 7) % (TOP + 2) - 1;
    struct generated g = {.cap = CAP,
                          .ids = ids,
                          .logprobs = logprobs,
                          .top_ids = top_ids,
                          .top_logprobs = top,
                          .prompt_logprobs = prompt,
                          .prompt_top_ids = best_ids,
                          .prompt_top_logprobs = best};
    text_reset(&in);
    text_add(&in, (struct str){(const char *)data + 1, size - 1});
    if (data[0] & 0x80)
        mend(&in);
    if (parked_state_read(text_view(&in), &shape, &life, &g, &err) < 0) {
        CHECK(err.code == E_JOB && err.type[0] && err.msg[0] && g.n == 0);
        return 0;
    }
    CHECK(g.n >= 0 && g.n <= CAP);
    text_reset(&again);
    parked_state_write(&again, &shape, &life, &g);
    /* But for the reserved bytes, which nobody reads. */
    CHECK(again.len == in.len && memcmp(again.ptr + HEAD, in.ptr + HEAD, in.len - HEAD - 8) == 0);
    return 0;
}
