/* model_config: published configs by family, and each field's wrong value named with both values.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>

#include "engine/log.h"
#include "engine/model.h"

/* The published values of DeepSeek-R1-Distill-Qwen-1.5B. */
static const char r1_distill[] =
    "{\"architectures\":[\"Qwen2ForCausalLM\"],\"attention_dropout\":0.0,\"bos_token_id\":151643,"
    "\"eos_token_id\":151643,\"hidden_act\":\"silu\",\"hidden_size\":1536,"
    "\"initializer_range\":0.02,\"intermediate_size\":8960,\"max_position_embeddings\":131072,"
    "\"max_window_layers\":21,\"model_type\":\"qwen2\",\"num_attention_heads\":12,"
    "\"num_hidden_layers\":28,\"num_key_value_heads\":2,\"rms_norm_eps\":1e-06,"
    "\"rope_theta\":10000,\"sliding_window\":4096,\"tie_word_embeddings\":false,"
    "\"torch_dtype\":\"bfloat16\",\"transformers_version\":\"4.44.0\",\"use_cache\":true,"
    "\"use_mrope\":false,\"use_sliding_window\":false,\"vocab_size\":151936}";

#define COMMON                                                                                     \
    "\"hidden_act\":\"silu\",\"hidden_size\":64,\"intermediate_size\":160,"                        \
    "\"max_position_embeddings\":4096,\"num_attention_heads\":4,\"num_hidden_layers\":3,"          \
    "\"num_key_value_heads\":2,\"rms_norm_eps\":1e-5,\"vocab_size\":320"
#define QWEN2   "{\"model_type\":\"qwen2\",\"rope_theta\":10000.0," COMMON
#define QWEN3   "{\"model_type\":\"qwen3\",\"rope_theta\":10000.0," COMMON
#define LLAMA   "{\"model_type\":\"llama\",\"rope_theta\":500000," COMMON
#define MISTRAL "{\"model_type\":\"mistral\",\"rope_theta\":1e4," COMMON

static struct model_config config;
static struct err last;
static int parse(const char *text)
{
    last = (struct err){0};
    return model_config_parse(&config, str_of(text), &last);
}

static void accepted(const char *text)
{
    if (parse(text) != E_OK)
        fail_msg("%s", last.msg);
}

static void refused(const char *text, const char *why)
{
    struct model_config before = config;
    assert_int_equal(parse(text), E_FATAL);
    if (!strstr(last.msg, why))
        fail_msg("\"%s\" does not say \"%s\"", last.msg, why);
    assert_memory_equal(&before, &config, sizeof config); /* untouched on failure */
}

static void r1_distill_is_read(void **state)
{
    (void)state;
    accepted(r1_distill);
    assert_string_equal(config.family, "qwen2");
    assert_int_equal(config.hidden, 1536);
    assert_int_equal(config.inner, 8960);
    assert_int_equal(config.n_layers, 28);
    assert_int_equal(config.n_heads, 12);
    assert_int_equal(config.n_kv_heads, 2);
    assert_int_equal(config.head_dim, 128);
    assert_int_equal(config.max_positions, 131072);
    assert_int_equal(config.vocab_size, 151936);
    assert_true(config.norm_eps == 1e-6f);
    assert_true(config.qkv_bias && !config.o_bias && !config.mlp_bias && !config.qk_norm);
    assert_false(config.tied);
    assert_int_equal(config.dtype, DTYPE_BF16);
    assert_int_equal(config.rope.type, ROPE_DEFAULT);
    assert_true(config.rope.theta == 10000 && config.rope.attention_factor == 1);
    for (int i = 0; i < 28; i++)
        assert_int_equal(config.window[i], 0);
    assert_int_equal(config.n_eos_ids, 1);
    assert_int_equal(config.eos_ids[0], 151643);
}

static void families_differ_in_biases_and_norms(void **state)
{
    (void)state;
    accepted(QWEN2 "}");
    assert_true(config.qkv_bias && !config.o_bias);
    accepted(QWEN3 ",\"head_dim\":32}");
    assert_true(config.qk_norm && !config.qkv_bias && config.head_dim == 32);
    accepted(QWEN3 ",\"attention_bias\":true}");
    assert_true(config.qkv_bias && config.o_bias);
    accepted(LLAMA ",\"attention_bias\":true,\"mlp_bias\":true,\"head_dim\":null}");
    assert_true(config.qkv_bias && config.o_bias && config.mlp_bias && config.head_dim == 16);
    accepted(LLAMA "}");
    assert_true(!config.qkv_bias && !config.o_bias && !config.mlp_bias && !config.tied);
    accepted(MISTRAL ",\"sliding_window\":null,\"tie_word_embeddings\":true}");
    assert_true(!config.qkv_bias && config.tied);
    refused(QWEN2 ",\"attention_bias\":false}", "attention_bias: want true, file has false");
    refused(MISTRAL ",\"sliding_window\":null,\"attention_bias\":true}",
            "attention_bias: want false, file has true");
    refused(QWEN3 ",\"mlp_bias\":true}", "mlp_bias: want false, file has true");
}

static void numbers_may_be_real_or_integer(void **state)
{
    (void)state;
    accepted(QWEN2 ",\"head_dim\":16.0}");
    assert_int_equal(config.head_dim, 16);
    refused(QWEN2 ",\"head_dim\":16.5}", "config.json: head_dim: want a whole number");
    refused(QWEN2 ",\"head_dim\":\"16\"}", "file has \"16\"");
    refused(QWEN2 ",\"head_dim\":15}", "head_dim: want an even number, file has 15");
    refused("{\"model_type\":\"llama\"}", "hidden_size: want a whole number from 1 to 131072, file "
                                          "has nothing");
    refused("{\"model_type\":\"llama\",\"hidden_size\":null}", "file has null");
    refused("{\"model_type\":\"llama\",\"hidden_size\":9e99}", "file has 9e99");
    refused("{\"model_type\":\"llama\",\"hidden_size\":-1}", "file has -1");
}

static void unknown_kinds_are_refused(void **state)
{
    (void)state;
    refused("{\"model_type\":\"gemma3\"," COMMON "}",
            "model_type: want qwen2, qwen3, llama or mistral, file has \"gemma3\"");
    refused("{" COMMON "}", "model_type");
    refused(QWEN2 ",\"architectures\":[\"Qwen2ForSequenceClassification\"]}",
            "architectures: want [\"Qwen2ForCausalLM\"], file has "
            "[\"Qwen2ForSequenceClassification\"]");
    refused(QWEN2 ",\"architectures\":[\"LlamaForCausalLM\"]}", "LlamaForCausalLM");
    refused(QWEN2 ",\"hidden_act\":\"gelu\"", "line");
    refused("{\"model_type\":\"llama\",\"hidden_act\":\"gelu\"}",
            "hidden_act: want \"silu\", file has \"gelu\"");
    refused(QWEN2 ",\"quantization_config\":{\"bits\":4}}",
            "quantization_config: want nothing (this is not supported), file has {\"bits\":4}");
    accepted(QWEN2 ",\"quantization_config\":null}");
    refused(QWEN2 ",\"use_mrope\":true}", "use_mrope: want false, file has true");
    refused(LLAMA ",\"partial_rotary_factor\":0.5}",
            "partial_rotary_factor: want 1.0, file has 0.5");
    accepted(LLAMA ",\"partial_rotary_factor\":1}");
    refused(QWEN2 ",\"torch_dtype\":\"float8_e4m3fn\"}", "torch_dtype");
    refused("[]", "want an object, file has array");
    refused("{", "config.json: line 1");
    refused("", "config.json");
}

static void head_counts_must_fit(void **state)
{
    (void)state;
    refused("{\"model_type\":\"llama\",\"hidden_size\":64,\"intermediate_size\":160,"
            "\"max_position_embeddings\":64,\"num_attention_heads\":14,\"num_hidden_layers\":3,"
            "\"num_key_value_heads\":3,\"rms_norm_eps\":1e-5,\"vocab_size\":320}",
            "num_attention_heads: want a multiple of num_key_value_heads 3, file has 14");
    refused("{\"model_type\":\"llama\",\"hidden_size\":65,\"intermediate_size\":160,"
            "\"max_position_embeddings\":64,\"num_attention_heads\":4,\"num_hidden_layers\":3,"
            "\"num_key_value_heads\":2,\"rms_norm_eps\":1e-5,\"vocab_size\":320}",
            "hidden_size: want a multiple of num_attention_heads 4");
    accepted("{\"model_type\":\"llama\",\"hidden_size\":64,\"intermediate_size\":160,"
             "\"max_position_embeddings\":64,\"num_attention_heads\":4,\"num_hidden_layers\":3,"
             "\"rms_norm_eps\":1e-5,\"vocab_size\":320}");
    assert_int_equal(config.n_kv_heads, 4);
    refused("{\"model_type\":\"qwen2\",\"hidden_size\":64,\"intermediate_size\":160,"
            "\"max_position_embeddings\":64,\"num_attention_heads\":4,\"num_hidden_layers\":3,"
            "\"rms_norm_eps\":1e-5,\"vocab_size\":320}",
            "num_key_value_heads");
    refused("{\"model_type\":\"llama\",\"hidden_size\":64,\"intermediate_size\":160,"
            "\"max_position_embeddings\":64,\"num_attention_heads\":4,\"num_hidden_layers\":257,"
            "\"rms_norm_eps\":1e-5,\"vocab_size\":320}",
            "num_hidden_layers: want a whole number from 1 to 256, file has 257");
}

static void windows_follow_the_family(void **state)
{
    (void)state;
    accepted(QWEN2 ",\"use_sliding_window\":true,\"sliding_window\":64,\"max_window_layers\":2}");
    assert_true(config.window[0] == 0 && config.window[1] == 0 && config.window[2] == 64);
    accepted(QWEN2 ",\"use_sliding_window\":true,\"sliding_window\":64,\"layer_types\":"
                   "[\"sliding_attention\",\"full_attention\",\"full_attention\"]}");
    assert_true(config.window[0] == 64 && config.window[1] == 0 && config.window[2] == 0);
    accepted(MISTRAL ",\"sliding_window\":4096}");
    assert_true(config.window[0] == 4096 && config.window[2] == 4096);
    accepted(MISTRAL ",\"sliding_window\":null}");
    assert_true(config.window[0] == 0);
    accepted(LLAMA ",\"sliding_window\":null}");
    refused(LLAMA ",\"sliding_window\":4096}", "sliding_window: want null");
    refused(MISTRAL "}", "sliding_window: want a number or null, file has nothing");
    refused(QWEN2 ",\"use_sliding_window\":true,\"sliding_window\":null}", "sliding_window");
    refused(QWEN2 ",\"use_sliding_window\":true,\"sliding_window\":9}", "max_window_layers");
    refused(QWEN2 ",\"sliding_window\":9,\"layer_types\":"
                  "[\"sliding_attention\",\"full_attention\",\"full_attention\"]}",
            "layer_types[0]: sliding_attention, but");
    refused(QWEN2 ",\"layer_types\":[\"full_attention\"]}", "layer_types: want 3 entries");
    refused(QWEN2 ",\"layer_types\":[\"full_attention\",\"full_attention\",\"chunked\"]}",
            "layer_types[2]: want full_attention or sliding_attention, file has \"chunked\"");
}

static void rope_is_read_in_both_forms(void **state)
{
    (void)state;
    accepted(LLAMA ",\"rope_scaling\":{\"factor\":32.0,\"high_freq_factor\":4.0,"
                   "\"low_freq_factor\":1.0,\"original_max_position_embeddings\":8192,"
                   "\"rope_type\":\"llama3\"}}");
    assert_int_equal(config.rope.type, ROPE_LLAMA3);
    assert_true(config.rope.theta == 500000 && config.rope.factor == 32);
    assert_true(config.rope.high_freq_factor == 4 && config.rope.original_max_positions == 8192);
    accepted("{\"model_type\":\"llama\"," COMMON ",\"rope_parameters\":{\"rope_theta\":1e6,"
             "\"rope_type\":\"default\"},\"dtype\":\"float16\"}");
    assert_true(config.rope.theta == 1e6 && config.rope.type == ROPE_DEFAULT);
    assert_int_equal(config.dtype, DTYPE_F16);
    accepted("{\"model_type\":\"llama\"," COMMON ",\"rope_parameters\":{\"rope_theta\":1e6}}");
    accepted(QWEN3 ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,"
                   "\"original_max_position_embeddings\":1024}}");
    assert_int_equal(config.rope.type, ROPE_YARN);
    assert_true(fabs(config.rope.attention_factor - 1.138629436) < 1e-8);
    assert_true(config.rope.beta_fast == 32 && config.rope.beta_slow == 1);
    accepted(QWEN3
             ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4.0,"
             "\"original_max_position_embeddings\":1024,\"attn_factor\":0.8782488562869419}}");
    assert_true(fabs(config.rope.attention_factor - 1.0) < 1e-9);
    accepted("{\"model_type\":\"llama\"," COMMON "}");
    assert_true(config.rope.theta == 10000);
}

static void rope_is_never_guessed(void **state)
{
    (void)state;
    refused(LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.0}}",
            "config.json: rope_scaling.type: want \"default\", \"llama3\" or \"yarn\", file has "
            "\"linear\"");
    refused(LLAMA ",\"rope_scaling\":{\"rope_type\":\"dynamic\",\"factor\":2.0}}", "dynamic");
    refused(LLAMA ",\"rope_scaling\":{\"type\":\"yarn\",\"rope_type\":\"llama3\"}}",
            "type: want the");
    refused(LLAMA ",\"rope_scaling\":{\"factor\":2.0}}", "rope_type");
    refused(LLAMA ",\"rope_scaling\":{\"rope_type\":\"default\",\"mrope_section\":[1]}}",
            "mrope_section");
    refused(LLAMA ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2,\"mscale\":0.7}}",
            "rope_scaling.mscale: want nothing");
    refused(LLAMA ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2,\"truncate\":false}}",
            "truncate: want true, file has false");
    refused(LLAMA ",\"rope_scaling\":{\"rope_type\":\"yarn\"}}", "rope_scaling.factor");
    refused(LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8}}", "low_freq_factor");
    refused(LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,"
                  "\"high_freq_factor\":1,\"original_max_position_embeddings\":64}}",
            "low_freq_factor: want less than high_freq_factor 1, file has 4");
    refused(LLAMA ",\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":10000}}",
            "rope_theta: want the same");
    refused(LLAMA ",\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\"}}}",
            "rope_type");
    refused(LLAMA ",\"rope_scaling\":7}", "rope_scaling: want an object or null, file has 7");
    refused(LLAMA ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2},"
                  "\"rope_parameters\":{\"type\":\"yarn\",\"factor\":4}}",
            "the same as rope_parameters");
}

static int generation(struct generation_defaults *g, const char *text)
{
    last = (struct err){0};
    return generation_config_parse(g, &config, str_of(text), &last);
}

static void generation_defaults_are_read(void **state)
{
    (void)state;
    struct generation_defaults g;
    accepted(r1_distill);
    assert_int_equal(generation(&g,
                                "{\"_from_model_config\":true,\"bos_token_id\":151646,"
                                "\"eos_token_id\":151643,\"do_sample\":true,\"temperature\":0.6,"
                                "\"top_p\":0.95}"),
                     E_OK);
    assert_true(g.has_temperature && g.temperature == 0.6f && g.has_top_p && g.top_p == 0.95f);
    assert_true(g.do_sample && !g.has_top_k && !g.has_min_p && !g.has_max_new_tokens);
    assert_int_equal(generation(&g, ""), E_OK);
    assert_false(g.has_temperature);
    assert_int_equal(generation(&g, "{\"temperature\":null,\"top_k\":20,\"max_new_tokens\":9}"),
                     E_OK);
    assert_true(!g.has_temperature && g.top_k == 20 && g.max_new_tokens == 9);
    assert_int_equal(generation(&g, "{\"top_p\":1.5}"), E_FATAL);
    assert_string_equal(last.msg,
                        "generation_config.json: top_p: want a number from 0 to 1, file has 1.5");
    assert_int_equal(generation(&g, "nothing"), E_FATAL);
}

static void eos_ids_are_a_set(void **state)
{
    (void)state;
    struct generation_defaults g;
    accepted(QWEN2 ",\"eos_token_id\":[7,9,7]}");
    assert_int_equal(config.n_eos_ids, 2);
    assert_int_equal(generation(&g, "{}"), E_OK);
    assert_int_equal(config.n_eos_ids, 2); /* config.json's stay where the other is silent */
    assert_int_equal(generation(&g, "{\"eos_token_id\":[3,4]}"), E_OK);
    assert_int_equal(config.n_eos_ids, 2);
    assert_int_equal(config.eos_ids[0], 3);
    assert_int_equal(model_config_add_eos(&config, 4, &last), E_OK);
    assert_int_equal(config.n_eos_ids, 2);
    for (int32_t id = 10; id < 10 + EOS_IDS_MAX - 2; id++)
        assert_int_equal(model_config_add_eos(&config, id, &last), E_OK);
    assert_int_equal(model_config_add_eos(&config, 99, &last), E_FATAL);
    refused(QWEN2 ",\"eos_token_id\":320}",
            "eos_token_id: want ids below vocab_size, file has 320");
    refused(QWEN2 ",\"eos_token_id\":[1,-2]}", "eos_token_id");
    refused(QWEN2 ",\"eos_token_id\":\"</s>\"}", "eos_token_id");
}

int main(void)
{
    log_setup(LOG_ERROR, LOG_LOGFMT, 2);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(r1_distill_is_read),
        cmocka_unit_test(families_differ_in_biases_and_norms),
        cmocka_unit_test(numbers_may_be_real_or_integer),
        cmocka_unit_test(unknown_kinds_are_refused),
        cmocka_unit_test(head_counts_must_fit),
        cmocka_unit_test(windows_follow_the_family),
        cmocka_unit_test(rope_is_read_in_both_forms),
        cmocka_unit_test(rope_is_never_guessed),
        cmocka_unit_test(generation_defaults_are_read),
        cmocka_unit_test(eos_ids_are_a_set),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
