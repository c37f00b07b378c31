/* weights: see weights.h. Index format: {"metadata": {...}, "weight_map": {tensor: file}}. */
#include "engine/weights.h"

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>

#include "engine/json.h"
#include "engine/log.h"

enum { SHARDS_MAX = 512, TENSOR_NAME_MAX = 128, SHAPE_TEXT = 64 };
#define INDEX_NAME  "model.safetensors.index.json"
#define SINGLE_NAME "model.safetensors"

struct weights {
    json_t *index; /* NULL: a single file */
    size_t n_files;
    struct safetensors files[SHARDS_MAX];
};

enum dim { DIM_ONE, DIM_VOCAB, DIM_HIDDEN, DIM_INNER, DIM_Q, DIM_KV, DIM_HEAD };
static const struct {
    const char *name; /* behind "model.layers.N." for the roles of a layer */
    enum dim n, k;    /* DIM_ONE: a vector */
} roles[TENSOR_ROLES] = {
    [TENSOR_EMBED] = {"model.embed_tokens.weight", DIM_VOCAB, DIM_HIDDEN},
    [TENSOR_NORM] = {"model.norm.weight", DIM_HIDDEN, DIM_ONE},
    [TENSOR_HEAD] = {"lm_head.weight", DIM_VOCAB, DIM_HIDDEN},
    [TENSOR_ATTN_NORM] = {"input_layernorm.weight", DIM_HIDDEN, DIM_ONE},
    [TENSOR_MLP_NORM] = {"post_attention_layernorm.weight", DIM_HIDDEN, DIM_ONE},
    [TENSOR_Q] = {"self_attn.q_proj.weight", DIM_Q, DIM_HIDDEN},
    [TENSOR_K] = {"self_attn.k_proj.weight", DIM_KV, DIM_HIDDEN},
    [TENSOR_V] = {"self_attn.v_proj.weight", DIM_KV, DIM_HIDDEN},
    [TENSOR_Q_BIAS] = {"self_attn.q_proj.bias", DIM_Q, DIM_ONE},
    [TENSOR_K_BIAS] = {"self_attn.k_proj.bias", DIM_KV, DIM_ONE},
    [TENSOR_V_BIAS] = {"self_attn.v_proj.bias", DIM_KV, DIM_ONE},
    [TENSOR_Q_NORM] = {"self_attn.q_norm.weight", DIM_HEAD, DIM_ONE},
    [TENSOR_K_NORM] = {"self_attn.k_norm.weight", DIM_HEAD, DIM_ONE},
    [TENSOR_O] = {"self_attn.o_proj.weight", DIM_HIDDEN, DIM_Q},
    [TENSOR_O_BIAS] = {"self_attn.o_proj.bias", DIM_HIDDEN, DIM_ONE},
    [TENSOR_GATE] = {"mlp.gate_proj.weight", DIM_INNER, DIM_HIDDEN},
    [TENSOR_UP] = {"mlp.up_proj.weight", DIM_INNER, DIM_HIDDEN},
    [TENSOR_GATE_BIAS] = {"mlp.gate_proj.bias", DIM_INNER, DIM_ONE},
    [TENSOR_UP_BIAS] = {"mlp.up_proj.bias", DIM_INNER, DIM_ONE},
    [TENSOR_DOWN] = {"mlp.down_proj.weight", DIM_HIDDEN, DIM_INNER},
    [TENSOR_DOWN_BIAS] = {"mlp.down_proj.bias", DIM_HIDDEN, DIM_ONE},
};

static int64_t dim_size(const struct model_config *c, enum dim d)
{
    switch (d) {
    case DIM_VOCAB:
        return c->vocab_size;
    case DIM_HIDDEN:
        return c->hidden;
    case DIM_INNER:
        return c->inner;
    case DIM_Q:
        return (int64_t)c->n_heads * c->head_dim;
    case DIM_KV:
        return (int64_t)c->n_kv_heads * c->head_dim;
    case DIM_HEAD:
        return c->head_dim;
    case DIM_ONE:
        break;
    }
    return 1;
}

bool weights_needs(const struct model_config *c, enum tensor_role role)
{
    switch (role) {
    case TENSOR_HEAD:
        return !c->tied;
    case TENSOR_Q_BIAS:
    case TENSOR_K_BIAS:
    case TENSOR_V_BIAS:
        return c->qkv_bias;
    case TENSOR_O_BIAS:
        return c->o_bias;
    case TENSOR_Q_NORM:
    case TENSOR_K_NORM:
        return c->qk_norm;
    case TENSOR_GATE_BIAS:
    case TENSOR_UP_BIAS:
    case TENSOR_DOWN_BIAS:
        return c->mlp_bias;
    default:
        return true;
    }
}

static void role_name(enum tensor_role role, int32_t layer, char name[static TENSOR_NAME_MAX])
{
    if (role < TENSOR_ATTN_NORM)
        snprintf(name, TENSOR_NAME_MAX, "%s", roles[role].name);
    else
        snprintf(name, TENSOR_NAME_MAX, "model.layers.%d.%s", layer, roles[role].name);
}

/* The role that a tensor's name stands for; TENSOR_ROLES when it stands for none. */
static enum tensor_role role_of(const char *name, int32_t *layer)
{
    int at = 0, role = 0, end = TENSOR_ATTN_NORM;
    *layer = 0;
    if (sscanf(name, "model.layers.%9d.%n", layer, &at) == 1 && at > 0) {
        char again[32]; /* "model.layers.+03." is not layer 3 */
        int n = snprintf(again, sizeof again, "model.layers.%d.", *layer);
        if (n != at || memcmp(again, name, (size_t)n) != 0)
            return TENSOR_ROLES;
        role = TENSOR_ATTN_NORM;
        end = TENSOR_ROLES;
    }
    for (; role < end; role++)
        if (strcmp(name + at, roles[role].name) == 0)
            return (enum tensor_role)role;
    return TENSOR_ROLES;
}

/* ---- files ---- */
static bool has_suffix(const char *name, const char *suffix)
{
    size_t n = strlen(name), k = strlen(suffix);
    return n > k && strcmp(name + n - k, suffix) == 0;
}

static int file_path(char path[static PATH_MAX], const char *dir, const char *name, struct err *err)
{
    int n = snprintf(path, PATH_MAX, "%s/%s", dir, name);
    if (n >= 0 && n < PATH_MAX)
        return E_OK;
    return err_set(err, E_FATAL, "model folder: want a path below %d bytes, it has %d", PATH_MAX,
                   n);
}

/* Says what the folder holds instead of weights that we read. */
static int no_weights(const char *dir, struct err *err)
{
    char found[256] = "";
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d)) != NULL;) {
        bool weights = has_suffix(e->d_name, ".bin") || has_suffix(e->d_name, ".pt") ||
                       has_suffix(e->d_name, ".pth") || has_suffix(e->d_name, ".gguf") ||
                       has_suffix(e->d_name, ".safetensors") || has_suffix(e->d_name, ".onnx") ||
                       has_suffix(e->d_name, ".h5") || has_suffix(e->d_name, ".msgpack");
        /* The lowest name, so that the message does not hang on the folder's order. */
        if (weights && (!found[0] || strcmp(e->d_name, found) < 0))
            snprintf(found, sizeof found, "%s", e->d_name);
    }
    if (d)
        closedir(d);
    if (found[0])
        return err_set(err, E_FATAL,
                       "%s: want " SINGLE_NAME " or " INDEX_NAME
                       ", folder has %.96s: convert it to "
                       "safetensors",
                       dir, found);
    return err_set(err, E_FATAL,
                   "%s: want " SINGLE_NAME " or " INDEX_NAME ", folder has no weights", dir);
}

static int check_shard_name(struct str name, struct err *err)
{
    if (name.len == 0 || name.len >= sizeof((struct safetensors *)0)->name ||
        memchr(name.ptr, '/', name.len) || memchr(name.ptr, '\\', name.len) ||
        memchr(name.ptr, 0, name.len) || name.ptr[0] == '.' ||
        !has_suffix(name.ptr, ".safetensors"))
        return err_set(err, E_FATAL,
                       INDEX_NAME ": weight_map: want a plain file name ending in .safetensors, "
                                  "file has \"%.*s\"",
                       (int)TR_MIN(name.len, 96), name.ptr ? name.ptr : "");
    return E_OK;
}

static struct safetensors *find_file(const struct weights *w, const char *name)
{
    for (size_t i = 0; i < w->n_files; i++)
        if (strcmp(w->files[i].name, name) == 0)
            return (struct safetensors *)&w->files[i];
    return NULL;
}

static int open_file(struct weights *w, const char *dir, const char *name, struct err *err)
{
    char path[PATH_MAX];
    int rc = file_path(path, dir, name, err);
    if (rc == E_OK)
        rc = safetensors_open(&w->files[w->n_files], path, err);
    if (rc == E_OK)
        w->n_files++;
    return rc;
}

/* Links are not followed: one to a missing blob must be an error of its own, not "no weights". */
static bool entry_exists(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0;
}

static int open_shards(struct weights *w, const char *dir, struct err *err)
{
    const char *tensor;
    json_t *value, *map = json_object_get(w->index, "weight_map");
    int rc;
    if (!json_is_object(map) || json_object_size(map) == 0)
        return err_set(err, E_FATAL, INDEX_NAME ": weight_map: want a filled object, file has %s",
                       json_type_name(map));
    json_object_foreach(map, tensor, value)
    {
        struct str name = json_str(value);
        if ((rc = check_shard_name(name, err)) != E_OK)
            return rc;
        struct safetensors *file = find_file(w, name.ptr);
        if (!file && w->n_files == SHARDS_MAX)
            return err_set(err, E_FATAL, INDEX_NAME ": want at most %d files, one more is %s",
                           SHARDS_MAX, name.ptr);
        if (!file && (rc = open_file(w, dir, name.ptr, err)) != E_OK)
            return rc;
        if (!safetensors_find(find_file(w, name.ptr), str_of(tensor)))
            return err_set(err, E_FATAL,
                           INDEX_NAME ": %.96s: want it in %s, which has no such "
                                      "tensor",
                           tensor, name.ptr);
    }
    return E_OK;
}

int weights_open(struct weights **out, const char *dir, struct err *err)
{
    char path[PATH_MAX];
    int rc = file_path(path, dir, INDEX_NAME, err);
    if (rc != E_OK)
        return rc;
    struct weights *w = mem_alloc(1, sizeof *w);
    if (!w)
        return err_set(err, E_FATAL, "weights: cannot take %zu bytes", sizeof *w);
    if (entry_exists(path)) {
        rc = json_parse_file(&w->index, path, &json_limits_file, err);
        if (rc != E_OK)
            rc = err->code = E_FATAL;
        else
            rc = open_shards(w, dir, err);
    } else {
        rc = file_path(path, dir, SINGLE_NAME, err);
        if (rc == E_OK && entry_exists(path))
            rc = open_file(w, dir, SINGLE_NAME, err);
        else if (rc == E_OK)
            rc = no_weights(dir, err);
    }
    if (rc != E_OK) {
        weights_close(w);
        return rc;
    }
    *out = w;
    return E_OK;
}

void weights_close(struct weights *w)
{
    if (!w)
        return;
    for (size_t i = 0; i < w->n_files; i++)
        safetensors_close(&w->files[i]);
    json_decref(w->index);
    mem_free(w);
}

size_t weights_n_files(const struct weights *w)
{
    return w->n_files;
}

const char *weights_file_name(const struct weights *w, size_t i)
{
    CHECK(i < w->n_files);
    return w->files[i].name;
}

uint64_t weights_header_bytes(const struct weights *w)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < w->n_files; i++)
        bytes += w->files[i].header_bytes;
    return bytes;
}

/* ---- tensors ---- */
static bool find(const struct weights *w, const char *name, struct weights_tensor *out)
{
    out->file = &w->files[0];
    if (w->index) {
        json_t *map = json_object_get(w->index, "weight_map");
        struct str file = json_str(json_object_get(map, name));
        out->file = file.ptr ? find_file(w, file.ptr) : NULL;
    }
    out->tensor = out->file ? safetensors_find(out->file, str_of(name)) : NULL;
    return out->tensor != NULL;
}

struct weights_tensor weights_tensor(const struct weights *w, const struct model_config *c,
                                     enum tensor_role role, int32_t layer)
{
    char name[TENSOR_NAME_MAX];
    struct weights_tensor t = {0};
    role_name(role, layer, name);
    CHECK(find(w, name, &t));
    t.n = dim_size(c, roles[role].n);
    t.k = dim_size(c, roles[role].k);
    return t;
}

static enum safetensors_dtype file_dtype(enum dtype d)
{
    return d == DTYPE_F32 ? ST_F32 : d == DTYPE_F16 ? ST_F16 : ST_BF16;
}

static int check_tensor(const struct weights *w, struct model_config *c, enum tensor_role role,
                        int32_t layer, int64_t *bytes, struct err *err)
{
    char name[TENSOR_NAME_MAX], want[SHAPE_TEXT], has[SHAPE_TEXT];
    struct weights_tensor t = {0};
    int64_t shape[2] = {dim_size(c, roles[role].n), dim_size(c, roles[role].k)};
    int32_t rank = roles[role].k == DIM_ONE ? 1 : 2;
    enum dtype dtype;
    role_name(role, layer, name);
    bool found = find(w, name, &t);
    bool is_float = found && safetensors_dtype_float(t.tensor->dtype, &dtype);
    if (role == TENSOR_EMBED && is_float)
        c->dtype = dtype; /* the matrices' dtype; torch_dtype is what it was trained or cast in */
    bool fits = is_float && t.tensor->rank == rank && (rank == 1 || dtype == c->dtype);
    for (int32_t i = 0; i < rank && fits; i++)
        fits = t.tensor->shape[i] == shape[i];
    if (fits) {
        *bytes += (int64_t)(t.tensor->end - t.tensor->begin);
        return E_OK;
    }
    enum safetensors_dtype wanted = file_dtype(c->dtype);
    if (rank == 1 && is_float)
        wanted = t.tensor->dtype;
    safetensors_describe(wanted, shape, rank, want, sizeof want);
    if (!found)
        return err_set(err, E_FATAL, "%s: want %s, no file has it%s", name, want,
                       role == TENSOR_HEAD ? " (tie_word_embeddings is false)" : "");
    safetensors_describe(t.tensor->dtype, t.tensor->shape, t.tensor->rank, has, sizeof has);
    return err_set(err, E_FATAL, "%s: want %s, file has %s (%s)", name, want, has, t.file->name);
}

/* Names that files carry and that nobody needs. */
static bool is_expected_extra(const struct model_config *c, const char *name)
{
    return has_suffix(name, ".rotary_emb.inv_freq") ||
           (c->tied && strcmp(name, roles[TENSOR_HEAD].name) == 0);
}

static int check_extras(const struct weights *w, const struct model_config *c, struct err *err)
{
    const char *first = NULL;
    int64_t count = 0, bytes = 0;
    for (size_t i = 0; i < w->n_files; i++) {
        for (size_t k = 0; k < w->files[i].n_tensors; k++) {
            const struct safetensors_tensor *t = &w->files[i].tensors[k];
            struct weights_tensor used;
            int32_t layer = 0;
            enum tensor_role role = role_of(t->name.ptr, &layer);
            bool ours = role < TENSOR_ROLES && layer < c->n_layers;
            if (is_expected_extra(c, t->name.ptr))
                continue;
            if (ours && weights_needs(c, role) && find(w, t->name.ptr, &used) && used.tensor == t)
                continue;
            if (ours && !weights_needs(c, role))
                return err_set(err, E_FATAL,
                               "%s: config.json of this %s says there is none, file has one (%s)",
                               t->name.ptr, c->family, w->files[i].name);
            first = first ? first : t->name.ptr;
            bytes += (int64_t)(t->end - t->begin);
            count++;
        }
    }
    if (count)
        LOG(LOG_WARN, "model_tensors_unused",
            LOG_STR("first", ((struct str){first, strnlen(first, 200)})), LOG_I("tensors", count),
            LOG_I("bytes", bytes));
    return E_OK;
}

int weights_check(const struct weights *w, struct model_config *c, int64_t *bytes, struct err *err)
{
    enum dtype said = c->dtype;
    int rc;
    *bytes = 0;
    for (int role = 0; role < TENSOR_ROLES; role++) {
        int32_t layers = role < TENSOR_ATTN_NORM ? 1 : c->n_layers;
        for (int32_t layer = 0; layer < layers; layer++)
            if (weights_needs(c, (enum tensor_role)role) &&
                (rc = check_tensor(w, c, (enum tensor_role)role, layer, bytes, err)) != E_OK)
                return rc;
    }
    if (said != c->dtype)
        LOG(LOG_WARN, "model_dtype_differs",
            LOG_S("config", safetensors_dtype_name(file_dtype(said))),
            LOG_S("files", safetensors_dtype_name(file_dtype(c->dtype))));
    return check_extras(w, c, err);
}
