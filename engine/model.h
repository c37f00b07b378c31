/* model: a Hugging Face model folder: its configuration, its weights and the forward pass, written
 * once over backend ops. Families: Qwen2/2.5 (R1-Distill), Qwen3, Llama 3.x, Mistral.
 *
 * A folder as downloaded, a hub cache (models--x/snapshots/y, symlinks followed; the folder above
 * it with one snapshot is accepted) or a ModelScope folder. Never the network. */
#ifndef TRANCHE_ENGINE_MODEL_H
#define TRANCHE_ENGINE_MODEL_H

#include <limits.h>

#include "engine/backend.h"

enum rope_type { ROPE_DEFAULT, ROPE_LLAMA3, ROPE_YARN };
enum { EOS_IDS_MAX = 16, MODEL_LAYERS_MAX = 256 };

struct rope_config {
    enum rope_type type;
    double theta, factor, low_freq_factor, high_freq_factor;
    double beta_fast, beta_slow, attention_factor; /* attention_factor 1 where the type has none */
    int32_t original_max_positions;
};
struct model_config {
    char family[16]; /* model_type: "qwen2", "qwen3", "llama", "mistral" */
    int32_t hidden, inner, n_layers, n_heads, n_kv_heads, head_dim, max_positions;
    int64_t vocab_size;
    float norm_eps;
    bool tied, qkv_bias, o_bias, mlp_bias, qk_norm;
    enum dtype dtype; /* of the weights in the files */
    struct rope_config rope;
    int32_t window[MODEL_LAYERS_MAX]; /* per layer, 0: full attention */
    int32_t eos_ids[EOS_IDS_MAX];
    int32_t n_eos_ids, bos_id;
};
/* generation_config.json: what a request gets where it says nothing; has_* false: absent. */
struct generation_defaults {
    bool has_temperature, has_top_p, has_top_k, has_min_p, has_repetition_penalty,
        has_max_new_tokens;
    bool do_sample;
    float temperature, top_p, min_p, repetition_penalty;
    int32_t top_k, max_new_tokens;
};

/* Pure: both JSON texts -> struct. `generation` may be empty. E_FATAL names file, field, both
 * values. */
int model_config_parse(struct model_config *out, struct str config, struct err *err) TR_MUSTCHECK;
int generation_config_parse(struct generation_defaults *out, struct model_config *eos_into,
                            struct str generation, struct err *err) TR_MUSTCHECK;
/* Adds one id to the end-of-sequence set unless it is in it: the tokenizer's own eos, which the
 * engine's opener joins to a copy of the configuration. E_FATAL when the set is full. */
int model_config_add_eos(struct model_config *c, int32_t id, struct err *err) TR_MUSTCHECK;

/* The folder with config.json: `dir` as given, or the snapshot of a hub cache below it. E_FATAL
 * when there is none. */
int model_find(char out[PATH_MAX], const char *dir, struct err *err) TR_MUSTCHECK;

struct model;
/* Resolves the folder, reads config and safetensors headers and checks every tensor against the
 * config. Files stay open and are never mapped; network_open reads the weights. */
int model_open(struct model **out, const char *dir, struct err *err) TR_MUSTCHECK;
void model_close(struct model *m);                              /* NULL is legal */
const struct model_config *model_config(const struct model *m); /* eos_ids: of the two configs */
const struct generation_defaults *model_generation(const struct model *m);
const char *model_dir(const struct model *m); /* resolved */
int64_t model_weight_bytes(const struct model *m);
/* inv_freq-derived table [positions, head_dim]: head_dim/2 cosines, head_dim/2 sines. */
void rope_table(const struct model_config *c, int32_t positions, float *cos_sin);

/* A model on a backend: weights uploaded (progress is logged as events), activations taken. The
 * RoPE table covers positions 0 .. max_positions-1. Weights and activations are the backend's
 * memory and go with it; `m` is not needed afterwards. E_FATAL; the backend is then only good to
 * close. */
struct network;
int network_open(struct network **out, const struct model *m, struct backend *b, int32_t rows_cap,
                 int32_t max_positions, struct err *err) TR_MUSTCHECK;
/* Takes the buffers of network_open on `b` and nothing else: what it would cost. They are b's. */
int network_plan(const struct model_config *c, struct backend *b, int32_t rows_cap,
                 struct err *err) TR_MUSTCHECK;
void network_close(struct network *n);
/* The forward pass of one step: embed, layers, head, sampling. Tokens as backend step_end. */
int network_forward(struct network *n, const struct step *step, struct sample_token *tokens,
                    struct err *err) TR_MUSTCHECK;
/* The same through the first layer alone: every op once, for a backend that prepares on first use.
 * Its tokens mean nothing. */
int network_warm(struct network *n, const struct step *step, struct sample_token *tokens,
                 struct err *err) TR_MUSTCHECK;

#endif
