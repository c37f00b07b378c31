/* model_config: config.json and generation_config.json -> structs. Pure but for log lines.
 *
 * Three kinds of fields: understood (checked here, and every unexpected value is an error that
 * names field and both values), known to change nothing at inference (`harmless`), and known to
 * change the mathematics in a way that this forward pass does not have (`refused`). A field in none
 * of the three is logged. Field semantics: Hugging Face Transformers,
 * configuration_{qwen2,qwen3,llama, mistral}.py and modeling_rope_utils.py. */
#include <math.h>
#include <stdio.h>

#include "engine/config_fields.h"
#include "engine/log.h"

enum { SIZE_MAX_DIM = 1 << 17, VOCAB_MAX = 1 << 20 };

enum window_rule { WINDOW_NEVER, WINDOW_QWEN, WINDOW_ALWAYS };
static const struct family {
    const char *model_type, *architecture;
    bool qkv_bias, qk_norm;
    bool attention_bias, mlp_bias; /* the config's switch is honoured */
    enum window_rule window;
} families[] = {
    {"qwen2", "Qwen2ForCausalLM", true, false, false, false, WINDOW_QWEN},
    {"qwen3", "Qwen3ForCausalLM", false, true, true, false, WINDOW_QWEN},
    {"llama", "LlamaForCausalLM", false, false, true, true, WINDOW_NEVER},
    {"mistral", "MistralForCausalLM", false, false, false, false, WINDOW_ALWAYS},
};

/* ---- which fields may stand there ---- */
static const char *const understood[] = {
    "model_type",
    "architectures",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "eos_token_id",
    "bos_token_id",
    "torch_dtype",
    "dtype",
    "use_mrope",
    "quantization_config",
};
/* Training, generation and bookkeeping fields: no effect on the logits of these families. */
static const char *const harmless[] = {
    "_name_or_path",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "attention_dropout",
    "attn_implementation",
    "auto_map",
    "initializer_range",
    "pad_token_id",
    "pretraining_tp",
    "transformers_version",
    "use_cache",
    "chunk_size_feed_forward",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "is_decoder",
    "id2label",
    "label2id",
    "task_specific_params",
    "problem_type",
    "finetuning_task",
    "unsloth_version",
    "unsloth_fixed",
    "bad_words_ids",
    "begin_suppress_tokens",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "prefix",
    "pruned_heads",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torchscript",
    "typical_p",
    "use_bfloat16",
    "rope_interleaved",
    "keys_to_ignore_at_inference",
    "cross_attention_hidden_size",
    "tokenizer_name",
    "max_sequence_length",
    "seq_length",
};
/* What other families compute and this forward pass does not. The neutral value may stand there. */
static const struct {
    const char *name, *neutral; /* neutral as compact JSON; "" : only null */
} refused[] = {
    {"quantization_config", ""},
    {"compression_config", ""},
    {"use_mrope", "false"},
    {"rope_interleaved", "false"},
    {"is_encoder_decoder", "false"},
    {"add_cross_attention", "false"},
    {"partial_rotary_factor", "1.0"},
    {"rotary_pct", "1.0"},
    {"attn_logit_softcapping", ""},
    {"final_logit_softcapping", ""},
    {"logits_scaling", "1.0"},
    {"logit_scale", "1.0"},
    {"embedding_multiplier", "1.0"},
    {"residual_multiplier", "1.0"},
    {"attention_multiplier", ""},
    {"query_pre_attn_scalar", ""},
    {"num_experts", ""},
    {"num_local_experts", ""},
    {"vision_config", ""},
    {"text_config", ""},
    {"attention_sink", "false"},
    {"no_rope_layers", ""},
    {"adapter_config", ""},
};

static int check_refused(const struct fields *f)
{
    for (size_t i = 0; i < TR_COUNT(refused); i++) {
        const json_t *value = field_get(f, refused[i].name);
        if (!value)
            continue;
        char text[FIELD_SHOWN];
        bool neutral = strcmp(field_shown(value, text), refused[i].neutral) == 0 ||
                       (json_is_number(value) && strcmp(refused[i].neutral, "1.0") == 0 &&
                        json_number_value(value) == 1.0);
        if (!neutral)
            return field_wrong(f, refused[i].name,
                               refused[i].neutral[0] ? refused[i].neutral
                                                     : "nothing (this is not supported)");
    }
    return E_OK;
}

static void log_unknown(const struct fields *f)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)f->object, name, value)
    {
        bool known = name_listed(name, understood, TR_COUNT(understood)) ||
                     name_listed(name, harmless, TR_COUNT(harmless)) || json_is_null(value);
        for (size_t i = 0; i < TR_COUNT(refused) && !known; i++)
            known = strcmp(name, refused[i].name) == 0;
        char text[FIELD_SHOWN];
        if (!known)
            LOG(LOG_WARN, "model_config_field_unknown", LOG_S("file", "config.json"),
                LOG_S("field", name), LOG_S("value", field_shown(value, text)));
    }
}

/* ---- parts ---- */
static int parse_family(struct model_config *c, const struct fields *f, const struct family **out)
{
    const json_t *type = field_get(f, "model_type"), *architectures = field_get(f, "architectures");
    const struct family *family = NULL;
    for (size_t i = 0; i < TR_COUNT(families); i++)
        if (json_text_is(type, families[i].model_type))
            family = &families[i];
    if (!family)
        return field_wrong(f, "model_type", "qwen2, qwen3, llama or mistral");
    if (architectures && (json_array_size(architectures) != 1 ||
                          !json_text_is(json_array_get(architectures, 0), family->architecture))) {
        char want[64];
        snprintf(want, sizeof want, "[\"%s\"]", family->architecture);
        return field_wrong(f, "architectures", want);
    }
    if (field_get(f, "hidden_act") && !json_text_is(field_get(f, "hidden_act"), "silu"))
        return field_wrong(f, "hidden_act", "\"silu\"");
    snprintf(c->family, sizeof c->family, "%s", family->model_type);
    *out = family;
    return E_OK;
}

static int parse_sizes(struct model_config *c, const struct fields *f, const struct family *family)
{
    const int64_t required = INT64_MIN;
    double eps = 0;
    int rc;
    if ((rc = field_i32(f, "hidden_size", 1, SIZE_MAX_DIM, required, &c->hidden)) != E_OK ||
        (rc = field_i32(f, "intermediate_size", 1, 1 << 20, required, &c->inner)) != E_OK ||
        (rc = field_i32(f, "num_hidden_layers", 1, MODEL_LAYERS_MAX, required, &c->n_layers)) !=
            E_OK ||
        (rc = field_i32(f, "num_attention_heads", 1, 1024, required, &c->n_heads)) != E_OK ||
        (rc = field_i32(f, "max_position_embeddings", 1, POSITIONS_MAX, required,
                        &c->max_positions)) != E_OK ||
        (rc = field_i64(f, "vocab_size", 2, VOCAB_MAX, required, &c->vocab_size)) != E_OK ||
        (rc = field_f64(f, "rms_norm_eps", 1e-12, 1e-2, (double)NAN, &eps)) != E_OK ||
        (rc = field_bool(f, "tie_word_embeddings", false, &c->tied)) != E_OK)
        return rc;
    c->norm_eps = (float)eps;
    /* Absent: Llama's class says one KV head a head; the others' classes have a number of their own
     * that no shipped model means. */
    bool implied = json_object_get(f->object, "num_key_value_heads") ||
                   strcmp(family->model_type, "llama") == 0;
    if ((rc = field_i32(f, "num_key_value_heads", 1, 1024, implied ? c->n_heads : required,
                        &c->n_kv_heads)) != E_OK)
        return rc;
    if (c->n_heads % c->n_kv_heads != 0)
        return err_set(f->err, E_FATAL,
                       "%snum_attention_heads: want a multiple of num_key_value_heads %d, file has "
                       "%d",
                       f->where, c->n_kv_heads, c->n_heads);
    if (!field_get(f, "head_dim") && c->hidden % c->n_heads != 0)
        return err_set(f->err, E_FATAL,
                       "%shidden_size: want a multiple of num_attention_heads %d where head_dim is "
                       "absent, file has %d",
                       f->where, c->n_heads, c->hidden);
    if ((rc = field_i32(f, "head_dim", 2, 1024, c->hidden / c->n_heads, &c->head_dim)) != E_OK)
        return rc;
    if (c->head_dim % 2 != 0)
        return err_set(f->err, E_FATAL, "%shead_dim: want an even number, file has %d", f->where,
                       c->head_dim);
    return E_OK;
}

static int parse_biases(struct model_config *c, const struct fields *f, const struct family *family)
{
    bool attention = false, mlp = false;
    int rc;
    if ((rc = field_bool(f, "attention_bias", family->qkv_bias, &attention)) != E_OK ||
        (rc = field_bool(f, "mlp_bias", false, &mlp)) != E_OK)
        return rc;
    /* Qwen2's class always has q, k, v biases and Mistral's never; a switch that says otherwise
     * is some other model. */
    if (!family->attention_bias && attention != family->qkv_bias)
        return field_wrong(f, "attention_bias", family->qkv_bias ? "true" : "false");
    if (mlp && !family->mlp_bias)
        return field_wrong(f, "mlp_bias", "false");
    c->qkv_bias = attention;
    c->o_bias = attention && family->attention_bias;
    c->mlp_bias = mlp;
    c->qk_norm = family->qk_norm;
    return E_OK;
}

static int parse_dtype(struct model_config *c, const struct fields *f)
{
    const char *name = field_get(f, "dtype") ? "dtype" : "torch_dtype";
    const json_t *value = field_get(f, name);
    c->dtype = DTYPE_BF16;
    if (!value || json_text_is(value, "bfloat16"))
        return E_OK;
    if (!json_text_is(value, "float16") && !json_text_is(value, "float32"))
        return field_wrong(f, name, "\"bfloat16\", \"float16\" or \"float32\"");
    c->dtype = json_text_is(value, "float16") ? DTYPE_F16 : DTYPE_F32;
    return E_OK;
}

/* Fills window[] from layer_types, one entry a layer. */
static int parse_layer_types(struct model_config *c, const struct fields *f, int32_t window)
{
    const json_t *types = field_get(f, "layer_types");
    if (!json_is_array(types))
        return field_wrong(f, "layer_types", "an array of strings");
    if (json_array_size(types) != (size_t)c->n_layers)
        return err_set(f->err, E_FATAL,
                       "%slayer_types: want %d entries (num_hidden_layers), file has %zu", f->where,
                       c->n_layers, json_array_size(types));
    for (int32_t i = 0; i < c->n_layers; i++) {
        const json_t *type = json_array_get(types, (size_t)i);
        bool sliding = json_text_is(type, "sliding_attention");
        char text[FIELD_SHOWN];
        if (!sliding && !json_text_is(type, "full_attention"))
            return err_set(f->err, E_FATAL,
                           "%slayer_types[%d]: want full_attention or sliding_attention, file has "
                           "%s",
                           f->where, i, field_shown(type, text));
        if (sliding && window == 0)
            return err_set(f->err, E_FATAL,
                           "%slayer_types[%d]: sliding_attention, but %s has no sliding_window "
                           "in use",
                           f->where, i, c->family);
        c->window[i] = sliding ? window : 0;
    }
    return E_OK;
}

static int parse_windows(struct model_config *c, const struct fields *f, enum window_rule rule)
{
    int32_t window = 0, first = 0;
    bool use = rule == WINDOW_ALWAYS;
    int rc;
    if (rule == WINDOW_NEVER && field_get(f, "sliding_window"))
        return field_wrong(f, "sliding_window", "null (this family has none)");
    /* Absent is not null: Mistral's class then means 4096. */
    if (rule == WINDOW_ALWAYS && !json_object_get(f->object, "sliding_window"))
        return field_wrong(f, "sliding_window", "a number or null");
    if ((rule == WINDOW_QWEN && (rc = field_bool(f, "use_sliding_window", false, &use)) != E_OK) ||
        (rc = field_i32(f, "sliding_window", 1, POSITIONS_MAX, 0, &window)) != E_OK)
        return rc;
    if (rule == WINDOW_QWEN && use && window == 0)
        return field_wrong(f, "sliding_window", "a number, for use_sliding_window is true");
    if (!use)
        window = 0;
    if (field_get(f, "layer_types"))
        return parse_layer_types(c, f, window);
    if (rule == WINDOW_QWEN && use &&
        (rc = field_i32(f, "max_window_layers", 0, 1 << 20, INT64_MIN, &first)) != E_OK)
        return rc;
    for (int32_t i = first; i < c->n_layers; i++)
        c->window[i] = window;
    return E_OK;
}

/* eos_token_id: an integer or a list of them. Replaces what stands in `c`. */
static int parse_eos(struct model_config *c, const struct fields *f)
{
    const json_t *value = field_get(f, "eos_token_id");
    size_t n = json_is_array(value) ? json_array_size(value) : 1;
    if (!value)
        return E_OK;
    c->n_eos_ids = 0;
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_is_array(value) ? json_array_get(value, i) : value;
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) >= c->vocab_size)
            return field_wrong(f, "eos_token_id", "ids below vocab_size");
        if (model_config_add_eos(c, (int32_t)json_integer_value(id), f->err) != E_OK)
            return E_FATAL;
    }
    return E_OK;
}

int model_config_add_eos(struct model_config *c, int32_t id, struct err *err)
{
    for (int32_t i = 0; i < c->n_eos_ids; i++)
        if (c->eos_ids[i] == id)
            return E_OK;
    if (c->n_eos_ids == EOS_IDS_MAX)
        return err_set(err, E_FATAL, "eos_token_id: want at most %d ids, one more is %d",
                       EOS_IDS_MAX, id);
    c->eos_ids[c->n_eos_ids++] = id;
    return E_OK;
}

/* ---- whole files ---- */
static int parse_object(json_t **out, struct str text, const char *file, struct err *err)
{
    if (json_parse(out, text, file, &json_limits_file, err) != E_OK)
        return err->code = E_FATAL;
    if (json_is_object(*out))
        return E_OK;
    err_set(err, E_FATAL, "%s: want an object, file has %s", file, json_type_name(*out));
    json_decref(*out);
    *out = NULL;
    return E_FATAL;
}

int model_config_parse(struct model_config *out, struct str config, struct err *err)
{
    json_t *root = NULL;
    const struct family *family = NULL;
    struct model_config c = {.bos_id = -1};
    int rc = parse_object(&root, config, "config.json", err);
    struct fields f = {"config.json: ", root, err};
    if (rc != E_OK)
        return rc;
    if ((rc = parse_family(&c, &f, &family)) != E_OK || (rc = check_refused(&f)) != E_OK ||
        (rc = parse_sizes(&c, &f, family)) != E_OK || (rc = parse_biases(&c, &f, family)) != E_OK ||
        (rc = parse_dtype(&c, &f)) != E_OK ||
        (rc = parse_windows(&c, &f, family->window)) != E_OK ||
        (rc = rope_config_parse(&c, &f)) != E_OK || (rc = parse_eos(&c, &f)) != E_OK ||
        (rc = field_i32(&f, "bos_token_id", 0, (int32_t)(c.vocab_size - 1), -1, &c.bos_id)) != E_OK)
        goto out;
    log_unknown(&f);
    *out = c;
out:
    json_decref(root);
    return rc;
}

int generation_config_parse(struct generation_defaults *out, struct model_config *eos_into,
                            struct str generation, struct err *err)
{
    json_t *root = NULL;
    struct generation_defaults g = {0};
    int rc = E_OK;
    if (generation.len > 0)
        rc = parse_object(&root, generation, "generation_config.json", err);
    if (rc != E_OK)
        return rc;
    struct fields f = {"generation_config.json: ", root, err};
    double temperature = 0, top_p = 0, min_p = 0, penalty = 0;
    if ((rc = field_bool(&f, "do_sample", false, &g.do_sample)) != E_OK ||
        (rc = field_f64(&f, "temperature", 0, 100, 1, &temperature)) != E_OK ||
        (rc = field_f64(&f, "top_p", 0, 1, 1, &top_p)) != E_OK ||
        (rc = field_f64(&f, "min_p", 0, 1, 0, &min_p)) != E_OK ||
        (rc = field_f64(&f, "repetition_penalty", 1e-3, 1e3, 1, &penalty)) != E_OK ||
        (rc = field_i32(&f, "top_k", 0, INT32_MAX, 0, &g.top_k)) != E_OK ||
        (rc = field_i32(&f, "max_new_tokens", 1, INT32_MAX, 0, &g.max_new_tokens)) != E_OK ||
        (rc = parse_eos(eos_into, &f)) != E_OK)
        goto out;
    g.temperature = (float)temperature;
    g.top_p = (float)top_p;
    g.min_p = (float)min_p;
    g.repetition_penalty = (float)penalty;
    g.has_temperature = field_get(&f, "temperature");
    g.has_top_p = field_get(&f, "top_p");
    g.has_min_p = field_get(&f, "min_p");
    g.has_repetition_penalty = field_get(&f, "repetition_penalty");
    g.has_top_k = field_get(&f, "top_k");
    g.has_max_new_tokens = field_get(&f, "max_new_tokens");
    *out = g;
out:
    json_decref(root);
    return rc;
}
