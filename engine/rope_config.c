/* rope_config: the RoPE part of config.json -> struct rope_config. Every key there changes the
 * frequencies, so an unknown one is an error, unlike in the rest of the file. */
#include <math.h>

#include "engine/config_fields.h"
#include "engine/log.h"

static int parse_rope_type(struct rope_config *r, const struct fields *f)
{
    const json_t *old = field_get(f, "type"), *type = field_get(f, "rope_type");
    if (old && type && !json_equal(old, type))
        return field_wrong(f, "type", "the same as rope_type");
    const char *name = type ? "rope_type" : "type";
    type = type ? type : old;
    if (!type && json_object_size(f->object) > (field_get(f, "rope_theta") ? 1u : 0u))
        return field_wrong(f, "rope_type", "\"default\", \"llama3\" or \"yarn\"");
    if (!type || json_text_is(type, "default"))
        r->type = ROPE_DEFAULT;
    else if (json_text_is(type, "llama3"))
        r->type = ROPE_LLAMA3;
    else if (json_text_is(type, "yarn"))
        r->type = ROPE_YARN;
    else
        return field_wrong(f, name, "\"default\", \"llama3\" or \"yarn\"");
    return E_OK;
}

/* Every key of a RoPE object changes the frequencies: an unknown one is an error. */
static int check_rope_keys(const struct rope_config *r, const struct fields *f)
{
    static const char *const common[] = {"type", "rope_type", "rope_theta"};
    static const char *const llama3[] = {"factor", "low_freq_factor", "high_freq_factor",
                                         "original_max_position_embeddings"};
    static const char *const yarn[] = {"factor",     "original_max_position_embeddings",
                                       "beta_fast",  "beta_slow",
                                       "truncate",   "attention_factor",
                                       "attn_factor"};
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)f->object, name, value)
    {
        bool known = json_is_null(value) || name_listed(name, common, TR_COUNT(common));
        if (r->type == ROPE_LLAMA3)
            known |= name_listed(name, llama3, TR_COUNT(llama3));
        if (r->type == ROPE_YARN)
            known |= name_listed(name, yarn, TR_COUNT(yarn));
        if (strcmp(name, "partial_rotary_factor") == 0)
            known |= json_number_value(value) == 1.0;
        if (!known)
            return field_wrong(f, name, "nothing: this key is not understood for its rope_type");
    }
    return E_OK;
}

static int parse_llama3(struct rope_config *r, const struct fields *f)
{
    int rc;
    if ((rc = field_f64(f, "factor", 1, 1e6, (double)NAN, &r->factor)) != E_OK ||
        (rc = field_f64(f, "low_freq_factor", 1e-6, 1e6, (double)NAN, &r->low_freq_factor)) !=
            E_OK ||
        (rc = field_f64(f, "high_freq_factor", 1e-6, 1e6, (double)NAN, &r->high_freq_factor)) !=
            E_OK ||
        (rc = field_i32(f, "original_max_position_embeddings", 1, POSITIONS_MAX, INT64_MIN,
                        &r->original_max_positions)) != E_OK)
        return rc;
    if (r->low_freq_factor >= r->high_freq_factor)
        return err_set(f->err, E_FATAL,
                       "%slow_freq_factor: want less than high_freq_factor %g, file has %g",
                       f->where, r->high_freq_factor, r->low_freq_factor);
    return E_OK;
}

/* Peng et al. 2023 (YaRN). `attn_factor` is no key of Transformers, which ignores it; vLLM and the
 * makers of DeepSeek-R1-0528-Qwen3-8B multiply by it, and a user's test found them right. */
static int parse_yarn(struct rope_config *r, const struct fields *f, int32_t max_positions)
{
    double multiplier = 1;
    bool truncate = true;
    int rc;
    if ((rc = field_f64(f, "factor", 1, 1e6, (double)NAN, &r->factor)) != E_OK ||
        (rc = field_f64(f, "beta_fast", 1e-6, 1e6, 32, &r->beta_fast)) != E_OK ||
        (rc = field_f64(f, "beta_slow", 1e-6, 1e6, 1, &r->beta_slow)) != E_OK ||
        (rc = field_i32(f, "original_max_position_embeddings", 1, POSITIONS_MAX, max_positions,
                        &r->original_max_positions)) != E_OK ||
        (rc = field_f64(f, "attention_factor", 1e-6, 1e6, 0.1 * log(r->factor) + 1,
                        &r->attention_factor)) != E_OK ||
        (rc = field_f64(f, "attn_factor", 1e-6, 1e6, 1, &multiplier)) != E_OK ||
        (rc = field_bool(f, "truncate", true, &truncate)) != E_OK)
        return rc;
    if (!truncate)
        return field_wrong(f, "truncate", "true");
    if (r->beta_slow >= r->beta_fast)
        return err_set(f->err, E_FATAL, "%sbeta_slow: want less than beta_fast %g, file has %g",
                       f->where, r->beta_fast, r->beta_slow);
    r->attention_factor *= multiplier;
    if (multiplier != 1)
        LOG(LOG_WARN, "rope_attn_factor_honoured", LOG_S("file", "config.json"),
            LOG_F("attn_factor", multiplier), LOG_F("attention_factor", r->attention_factor));
    if (r->factor * r->original_max_positions != (double)max_positions)
        LOG(LOG_WARN, "rope_factor_differs", LOG_S("file", "config.json"),
            LOG_F("factor", r->factor),
            LOG_I("original_max_position_embeddings", r->original_max_positions),
            LOG_I("max_position_embeddings", max_positions));
    return E_OK;
}

/* rope_scaling (Transformers 4) or rope_parameters (5), and rope_theta in one of two places. */
int rope_config_parse(struct model_config *c, const struct fields *f)
{
    const json_t *old = field_get(f, "rope_scaling"), *now = field_get(f, "rope_parameters");
    if (old && now && !json_equal(old, now))
        return field_wrong(f, "rope_scaling", "the same as rope_parameters");
    struct fields inner = {now ? "config.json: rope_parameters." : "config.json: rope_scaling.",
                           now ? now : old, f->err};
    struct rope_config *r = &c->rope;
    double inside = 0;
    int rc;
    *r = (struct rope_config){.type = ROPE_DEFAULT, .attention_factor = 1, .factor = 1};
    if (inner.object && !json_is_object(inner.object))
        return field_wrong(f, now ? "rope_parameters" : "rope_scaling", "an object or null");
    if ((rc = field_f64(f, "rope_theta", 1.0001, 1e15, 0, &r->theta)) != E_OK ||
        (rc = field_f64(&inner, "rope_theta", 1.0001, 1e15, 0, &inside)) != E_OK)
        return rc;
    if (r->theta != 0 && inside != 0 && r->theta != inside)
        return field_wrong(f, "rope_theta", "the same as rope_parameters.rope_theta");
    r->theta = r->theta != 0 ? r->theta : inside;
    if (r->theta == 0) {
        r->theta = 10000; /* the four classes' default: Llama 1 files lack the field */
        LOG(LOG_WARN, "rope_theta_absent", LOG_S("file", "config.json"), LOG_F("used", r->theta));
    }
    if (!inner.object)
        return E_OK;
    if ((rc = parse_rope_type(r, &inner)) != E_OK || (rc = check_rope_keys(r, &inner)) != E_OK)
        return rc;
    if (r->type == ROPE_LLAMA3)
        return parse_llama3(r, &inner);
    return r->type == ROPE_YARN ? parse_yarn(r, &inner, c->max_positions) : E_OK;
}
