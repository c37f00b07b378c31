/* Any bytes as config.json and, behind the first NUL, generation_config.json: a configuration whose
 * numbers the forward pass can be sized from, or an error with a text. */
#include "engine/log.h"
#include "engine/model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model_config c;
    struct generation_defaults g;
    struct err err = {0};
    struct str config = {(const char *)data, size}, generation = {NULL, 0};
    const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
    log_setup(LOG_OFF, LOG_LOGFMT, 2);
    if (nul) {
        config.len = (size_t)(nul - data);
        generation = (struct str){(const char *)nul + 1, size - config.len - 1};
    }
    if (model_config_parse(&c, config, &err) != E_OK) {
        CHECK(err.code == E_FATAL && err.msg[0]);
        return 0;
    }
    CHECK(c.n_layers >= 1 && c.n_layers <= MODEL_LAYERS_MAX && c.n_heads % c.n_kv_heads == 0);
    CHECK(c.head_dim >= 2 && c.head_dim % 2 == 0 && c.hidden >= 1 && c.inner >= 1);
    CHECK(c.rope.theta > 1 && c.rope.attention_factor > 0);
    for (int32_t i = 0; i < c.n_layers; i++)
        CHECK(c.window[i] >= 0);
    if (generation_config_parse(&g, &c, generation, &err) != E_OK)
        CHECK(err.code == E_FATAL && err.msg[0]);
    for (int32_t i = 0; i < c.n_eos_ids; i++)
        CHECK(c.eos_ids[i] >= 0 && c.eos_ids[i] < c.vocab_size);
    return 0;
}
