/* weights: the safetensors files of a model folder, single or sharded, and which tensor plays which
 * part in the forward pass, with its shape by the configuration. No compute, no backend. */
#ifndef TRANCHE_ENGINE_WEIGHTS_H
#define TRANCHE_ENGINE_WEIGHTS_H

#include "engine/model.h"
#include "engine/safetensors.h"

enum tensor_role {
    TENSOR_EMBED, /* these three once a model */
    TENSOR_NORM,
    TENSOR_HEAD,
    TENSOR_ATTN_NORM, /* the rest once a layer */
    TENSOR_MLP_NORM,
    TENSOR_Q,
    TENSOR_K,
    TENSOR_V,
    TENSOR_Q_BIAS,
    TENSOR_K_BIAS,
    TENSOR_V_BIAS,
    TENSOR_Q_NORM,
    TENSOR_K_NORM,
    TENSOR_O,
    TENSOR_O_BIAS,
    TENSOR_GATE,
    TENSOR_UP,
    TENSOR_GATE_BIAS,
    TENSOR_UP_BIAS,
    TENSOR_DOWN,
    TENSOR_DOWN_BIAS,
    TENSOR_ROLES
};

struct weights;
/* Opens model.safetensors.index.json with all its shards, else model.safetensors. Errors: E_FATAL;
 * a folder with other weights (pytorch_model.bin, GGUF) or none is named as such. */
int weights_open(struct weights **out, const char *dir, struct err *err) TR_MUSTCHECK;
void weights_close(struct weights *w); /* NULL is legal */

/* Checks that every tensor the configuration needs is there, with its shape; matrices of one dtype
 * (into c->dtype), vectors of any float dtype. Tensors that nothing needs are logged; a bias or
 * norm that the configuration denies is an error. *bytes: of the needed tensors. */
int weights_check(const struct weights *w, struct model_config *c, int64_t *bytes,
                  struct err *err) TR_MUSTCHECK;

/* Where the tensor of a role lies. `layer` is ignored for the roles of the whole model. Legal only
 * for roles that weights_needs says are needed, after weights_check. */
struct weights_tensor {
    const struct safetensors *file;
    const struct safetensors_tensor *tensor;
    int64_t n, k; /* a matrix [n, k]; k = 1: a vector */
};
bool weights_needs(const struct model_config *c, enum tensor_role role);
struct weights_tensor weights_tensor(const struct weights *w, const struct model_config *c,
                                     enum tensor_role role, int32_t layer);

size_t weights_n_files(const struct weights *w);
const char *weights_file_name(const struct weights *w, size_t i); /* without its folder */
uint64_t weights_header_bytes(const struct weights *w);           /* a sum, for log lines */

const struct weights *model_weights(const struct model *m);

#endif
