/* model: folders as people have them, and weights that do not fit their configuration. Folders are
 * written here: a Llama of one layer and a few hundred weights. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/log.h"
#include "engine/model.h"
#include "engine/weights.h"
#include "tests/unit/models_root.h"

static const char config_text[] =
    "{\"model_type\":\"llama\",\"hidden_size\":4,\"intermediate_size\":6,"
    "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"num_hidden_layers\":1,\"vocab_size\":5,"
    "\"max_position_embeddings\":64,\"rms_norm_eps\":1e-5,\"rope_theta\":1e4,"
    "\"tie_word_embeddings\":false,\"eos_token_id\":2}";
static const char qwen2_text[] =
    "{\"model_type\":\"qwen2\",\"hidden_size\":4,\"intermediate_size\":6,"
    "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"num_hidden_layers\":1,\"vocab_size\":5,"
    "\"max_position_embeddings\":64,\"rms_norm_eps\":1e-5,\"rope_theta\":1e4,"
    "\"tie_word_embeddings\":true,\"eos_token_id\":2}";

#define LAYER "model.layers.0."
struct tensor {
    const char *name, *dtype, *shape;
    size_t values, value_bytes;
};
static const struct tensor plain[] = {
    {"model.embed_tokens.weight", "BF16", "5,4", 20, 2},
    {"model.norm.weight", "F32", "4", 4, 4}, /* fp32 norms in a bf16 file are legal */
    {"lm_head.weight", "BF16", "5,4", 20, 2},
    {LAYER "input_layernorm.weight", "BF16", "4", 4, 2},
    {LAYER "post_attention_layernorm.weight", "F16", "4", 4, 2},
    {LAYER "self_attn.q_proj.weight", "BF16", "4,4", 16, 2},
    {LAYER "self_attn.k_proj.weight", "BF16", "2,4", 8, 2},
    {LAYER "self_attn.v_proj.weight", "BF16", "2,4", 8, 2},
    {LAYER "self_attn.o_proj.weight", "BF16", "4,4", 16, 2},
    {LAYER "mlp.gate_proj.weight", "BF16", "6,4", 24, 2},
    {LAYER "mlp.up_proj.weight", "BF16", "6,4", 24, 2},
    {LAYER "mlp.down_proj.weight", "BF16", "4,6", 24, 2},
};
enum { N_PLAIN = TR_COUNT(plain), TENSORS_CAP = N_PLAIN + 4 };

static char dir[2 * PATH_MAX]; /* of the running test */
static struct err last;

static void write_file(const char *name, const void *bytes, size_t n)
{
    char path[3 * PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    fclose(f);
}

static void write_tensors(const char *file, const struct tensor *tensors, size_t n)
{
    char text[8192];
    size_t used = 8, at = 0;
    used += (size_t)sprintf(text + used, "{");
    for (size_t i = 0; i < n; i++) {
        size_t bytes = tensors[i].values * tensors[i].value_bytes;
        used += (size_t)snprintf(
            text + used, sizeof text - used,
            "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}", i ? "," : "",
            tensors[i].name, tensors[i].dtype, tensors[i].shape, at, at + bytes);
        at += bytes;
    }
    used += (size_t)sprintf(text + used, "}");
    uint64_t header = used - 8;
    memcpy(text, &header, 8);
    assert_true(used + at <= sizeof text);
    memset(text + used, 0, at);
    write_file(file, text, used + at);
}

/* A new folder with config.json. */
static void folder(const char *name, const char *config)
{
    snprintf(dir, sizeof dir, "%s/%s", root, name);
    assert_int_equal(mkdir(dir, 0700), 0);
    write_file("config.json", config, strlen(config));
}

static void opens(const char *path)
{
    struct model *m = NULL;
    last = (struct err){0};
    if (model_open(&m, path, &last) != E_OK)
        fail_msg("%s", last.msg);
    assert_int_equal(model_config(m)->hidden, 4);
    model_close(m);
}

static void refused(const char *path, const char *why)
{
    struct model *m = NULL;
    last = (struct err){0};
    assert_int_equal(model_open(&m, path, &last), E_FATAL);
    assert_null(m);
    if (!strstr(last.msg, why))
        fail_msg("\"%s\" does not say \"%s\"", last.msg, why);
}

static void a_plain_folder_opens(void **state)
{
    (void)state;
    folder("plain", config_text);
    write_tensors("model.safetensors", plain, N_PLAIN);
    write_file("generation_config.json", "{\"eos_token_id\":[3,4],\"top_k\":7}", 32);
    write_file("configuration.json", "{}", 2); /* ModelScope leaves these beside the model */
    write_file(".mdl", "x", 1);
    struct model *m;
    assert_int_equal(model_open(&m, dir, &last), E_OK);
    assert_int_equal(model_config(m)->n_eos_ids, 2);
    assert_int_equal(model_config(m)->dtype, DTYPE_BF16);
    assert_int_equal(model_generation(m)->top_k, 7);
    assert_string_equal(model_dir(m), dir);
    assert_int_equal(model_weight_bytes(m), 2 * (20 + 20 + 4 + 4 + 16 + 8 + 8 + 16 + 72) + 16);
    model_close(m);
    model_close(NULL);
}

/* Opens a folder whose tensor `i` is `t` instead; NULL name: it is left out. */
static void with_tensor(const char *name, size_t i, struct tensor t, const char *why)
{
    struct tensor tensors[TENSORS_CAP];
    size_t n = 0;
    folder(name, config_text);
    for (size_t k = 0; k < N_PLAIN; k++)
        if (k != i || t.name)
            tensors[n++] = k == i ? t : plain[k];
    write_tensors("model.safetensors", tensors, n);
    refused(dir, why);
}

static void tensors_must_fit_the_config(void **state)
{
    (void)state;
    with_tensor("dtype", 5, (struct tensor){LAYER "self_attn.q_proj.weight", "F32", "4,4", 16, 4},
                LAYER "self_attn.q_proj.weight: want bf16 [4,4], file has f32 [4,4] "
                      "(model.safetensors)");
    with_tensor("shape", 6, (struct tensor){LAYER "self_attn.k_proj.weight", "BF16", "4,4", 16, 2},
                "k_proj.weight: want bf16 [2,4], file has bf16 [4,4]");
    with_tensor("rank", 3, (struct tensor){LAYER "input_layernorm.weight", "BF16", "4,1", 4, 2},
                "input_layernorm.weight: want bf16 [4], file has bf16 [4,1]");
    with_tensor("embed", 0, (struct tensor){"model.embed_tokens.weight", "I8", "5,4", 20, 1},
                "model.embed_tokens.weight: want bf16 [5,4], file has i8 [5,4]");
    with_tensor("vocab", 0, (struct tensor){"model.embed_tokens.weight", "BF16", "6,4", 24, 2},
                "want bf16 [5,4], file has bf16 [6,4]");
    with_tensor("vector", 1, (struct tensor){"model.norm.weight", "F64", "4", 4, 8},
                "model.norm.weight: want bf16 [4], file has f64 [4]");
    with_tensor("gone", 11, (struct tensor){0},
                LAYER "mlp.down_proj.weight: want bf16 [4,6], no file has it");
    with_tensor("untied", 2, (struct tensor){0},
                "lm_head.weight: want bf16 [5,4], no file has it (tie_word_embeddings is false)");
}

static void extra_tensors_are_judged(void **state)
{
    (void)state;
    struct tensor tensors[TENSORS_CAP];
    memcpy(tensors, plain, sizeof plain);
    tensors[N_PLAIN] = (struct tensor){LAYER "self_attn.rotary_emb.inv_freq", "F32", "1", 1, 4};
    tensors[N_PLAIN + 1] = (struct tensor){"model.layers.7.mlp.up_proj.weight", "I8", "1", 1, 1};
    tensors[N_PLAIN + 2] = (struct tensor){"vision.weight", "U8", "1", 1, 1};
    folder("extra", config_text);
    write_tensors("model.safetensors", tensors, N_PLAIN + 3);
    opens(dir);
    tensors[N_PLAIN] = (struct tensor){LAYER "self_attn.q_proj.bias", "BF16", "4", 4, 2};
    folder("denied", config_text);
    write_tensors("model.safetensors", tensors, N_PLAIN + 1);
    refused(dir, LAYER "self_attn.q_proj.bias: config.json of this llama says there is none");
}

static void a_tied_head_may_be_in_the_file(void **state)
{
    (void)state;
    struct tensor tensors[TENSORS_CAP];
    memcpy(tensors, plain, sizeof plain);
    tensors[N_PLAIN] = (struct tensor){LAYER "self_attn.q_proj.bias", "BF16", "4", 4, 2};
    tensors[N_PLAIN + 1] = (struct tensor){LAYER "self_attn.k_proj.bias", "BF16", "2", 2, 2};
    tensors[N_PLAIN + 2] = (struct tensor){LAYER "self_attn.v_proj.bias", "BF16", "2", 2, 2};
    folder("tied", qwen2_text);
    write_tensors("model.safetensors", tensors, N_PLAIN + 3);
    opens(dir);
    memmove(tensors + 2, tensors + 3, sizeof tensors[0] * N_PLAIN);
    write_tensors("model.safetensors", tensors, N_PLAIN + 2);
    opens(dir);
    write_tensors("model.safetensors", tensors, N_PLAIN + 1);
    refused(dir, "self_attn.v_proj.bias: want bf16 [2], no file has it");
}

static void write_index(const char *file_a, const char *file_b, size_t split)
{
    char text[4096];
    size_t n = (size_t)sprintf(text, "{\"metadata\":{\"total_size\":1},\"weight_map\":{");
    for (size_t i = 0; i < N_PLAIN; i++)
        n += (size_t)sprintf(text + n, "%s\"%s\":\"%s\"", i ? "," : "", plain[i].name,
                             i < split ? file_a : file_b);
    n += (size_t)sprintf(text + n, "}}");
    write_file("model.safetensors.index.json", text, n);
}

static void shards_are_joined(void **state)
{
    (void)state;
    static const char a[] = "model-00001-of-00002.safetensors";
    static const char b[] = "model-00002-of-00002.safetensors";
    folder("shards", config_text);
    write_tensors(a, plain, 5);
    write_tensors(b, plain + 5, N_PLAIN - 5);
    write_index(a, b, 5);
    opens(dir);
    write_index(a, b, 6);
    refused(dir, "self_attn.q_proj.weight: want it in model-00001-of-00002.safetensors, which has "
                 "no such tensor");
    write_index(a, "model-00003-of-00002.safetensors", 5);
    refused(dir, "No such file");
    write_index(a, "../shards/model-00002-of-00002.safetensors", 5);
    refused(dir, "want a plain file name ending in .safetensors, file has \"../shards/");
    write_index(a, "..", 5);
    refused(dir, "plain file name");
    write_index(a, "/etc/passwd", 5);
    refused(dir, "plain file name");
    write_file("model.safetensors.index.json", "{\"weight_map\":7}", 16);
    refused(dir, "weight_map: want a filled object, file has integer");
    write_file("model.safetensors.index.json", "{", 1);
    refused(dir, "model.safetensors.index.json: line 1");
}

static void a_hub_cache_opens(void **state)
{
    (void)state;
    char repo[PATH_MAX], path[3 * PATH_MAX];
    snprintf(repo, sizeof repo, "%s/models--x--y", root);
    assert_int_equal(mkdir(repo, 0700), 0);
    snprintf(dir, sizeof dir, "%s/blobs", repo);
    assert_int_equal(mkdir(dir, 0700), 0);
    write_file("c0ffee", config_text, strlen(config_text));
    write_tensors("beef", plain, N_PLAIN);
    snprintf(path, sizeof path, "%s/snapshots", repo);
    assert_int_equal(mkdir(path, 0700), 0);
    refused(repo, "want one snapshot or refs/main to name one, found 0");
    snprintf(path, sizeof path, "%s/snapshots/0123abcd", repo);
    assert_int_equal(mkdir(path, 0700), 0);
    refused(repo, "want config.json in it, there is none");
    snprintf(path, sizeof path, "%s/snapshots/0123abcd/config.json", repo);
    assert_int_equal(symlink("../../blobs/c0ffee", path), 0);
    snprintf(path, sizeof path, "%s/snapshots/0123abcd/model.safetensors", repo);
    assert_int_equal(symlink("../../blobs/gone", path), 0);
    refused(repo, "No such file"); /* a download that was broken off */
    assert_int_equal(unlink(path), 0);
    assert_int_equal(symlink("../../blobs/beef", path), 0);
    opens(repo);
    snprintf(path, sizeof path, "%s/snapshots/0123abcd", repo);
    opens(path);
    snprintf(path, sizeof path, "%s/snapshots/ffff", repo);
    assert_int_equal(mkdir(path, 0700), 0);
    refused(repo, "found 2");
    snprintf(dir, sizeof dir, "%s/refs", repo);
    assert_int_equal(mkdir(dir, 0700), 0);
    write_file("main", "0123abcd\n", 9);
    opens(repo);
}

static void folders_without_weights_say_why(void **state)
{
    (void)state;
    refused("/nonexistent/model", "model folder /nonexistent/model: No such file");
    refused("/dev/null", "want a folder, it is a file");
    refused(root, "want config.json in it, there is none");
    folder("none", config_text);
    refused(dir, "folder has no weights");
    write_file("pytorch_model.bin", "x", 1);
    refused(dir, "want model.safetensors or model.safetensors.index.json, folder has "
                 "pytorch_model.bin: convert it to safetensors");
    write_file("model.safetensors", "version https://git-lfs.github.com/spec/v1\n", 43);
    refused(dir, "git lfs pull");
    write_tensors("model.safetensors", plain, N_PLAIN);
    opens(dir);
    char path[3 * PATH_MAX];
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    assert_int_equal(truncate(path, 700), 0);
    refused(dir, "model.safetensors: ");
    write_file("generation_config.json", "{\"temperature\":-1}", 18);
    refused(dir, "generation_config.json: temperature: want a number from 0 to 100, file has -1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_plain_folder_opens),
        cmocka_unit_test(tensors_must_fit_the_config),
        cmocka_unit_test(extra_tensors_are_judged),
        cmocka_unit_test(a_tied_head_may_be_in_the_file),
        cmocka_unit_test(shards_are_joined),
        cmocka_unit_test(a_hub_cache_opens),
        cmocka_unit_test(folders_without_weights_say_why),
    };
    return cmocka_run_group_tests(tests, models_root_make, models_root_remove);
}
