/* safetensors: the header of one .safetensors file, checked as hostile input, and bounded reads of
 * its data. Format: u64 LE N, N bytes of JSON, then the data, tensors back to back.
 * It knows no tensor names and no models; weights.h joins the files of a folder.
 *
 * The data is read with pread, never mapped: a file that is cut or replaced under a running program
 * gives a short read, which is an error with a name, where a mapping gives SIGBUS. It also reads
 * cold files in blocks of megabytes instead of faulting 4 KiB pages. */
#ifndef TRANCHE_ENGINE_SAFETENSORS_H
#define TRANCHE_ENGINE_SAFETENSORS_H

#include "engine/base.h"
#include "kernels/kernels.h"

enum {
    SAFETENSORS_HEADER_MAX = 16 << 20, /* bytes of JSON; the reference reader allows 100 MB */
    SAFETENSORS_TENSORS_MAX = 100000,
};

enum safetensors_dtype {
    ST_BOOL,
    ST_U8,
    ST_I8,
    ST_F8_E5M2,
    ST_F8_E4M3,
    ST_F8_E8M0,
    ST_F8_E4M3FNUZ,
    ST_F8_E5M2FNUZ,
    ST_I16,
    ST_U16,
    ST_F16,
    ST_BF16,
    ST_I32,
    ST_U32,
    ST_F32,
    ST_I64,
    ST_U64,
    ST_F64,
    ST_C64,
    ST_F4,
    ST_F6_E2M3,
    ST_F6_E3M2,
    ST_DTYPES
};
/* "bf16", "f32", ...: as in messages. */
const char *safetensors_dtype_name(enum safetensors_dtype d);
/* true and *out when `d` is one of the three that the kernels compute with. */
bool safetensors_dtype_float(enum safetensors_dtype d, enum dtype *out);

struct safetensors_tensor {
    struct str name; /* NUL-terminated as well */
    const int64_t *shape;
    int32_t rank; /* 0: a scalar */
    enum safetensors_dtype dtype;
    uint64_t begin, end; /* bytes from the start of the file */
};
struct safetensors {
    char name[128]; /* of the file, without its folder: for messages */
    int fd;         /* -1: parsed from memory */
    uint64_t file_bytes, header_bytes;
    struct safetensors_tensor *tensors; /* by rising name */
    size_t n_tensors;
    struct arena arena; /* tensors, shapes and names */
};

/* Pure. `head` holds the file's first bytes, at least 8 + N of them; `file_bytes` is the whole
 * file's size. Refuses what the reference implementation refuses (offsets must tile the data with
 * no hole and no overlap, sizes must equal shape x dtype, the file must end with the last tensor),
 * and repeated names, a header above SAFETENSORS_HEADER_MAX and too many tensors.
 * On success the caller owns *out (safetensors_close). Errors: E_FATAL, with the tensor's name. */
int safetensors_parse(struct safetensors *out, struct str head, uint64_t file_bytes,
                      const char *name, struct err *err) TR_MUSTCHECK;

/* Opens the file read-only (symlinks followed) and parses its header. */
int safetensors_open(struct safetensors *out, const char *path, struct err *err) TR_MUSTCHECK;
void safetensors_close(struct safetensors *s); /* NULL and a zeroed struct are legal */

/* NULL when the file has no tensor of this name. */
const struct safetensors_tensor *safetensors_find(const struct safetensors *s, struct str name);

/* Copies `bytes` bytes from `offset` of the file. Thread-safe. E_FATAL on an I/O error or when the
 * file has become shorter since it was opened. */
int safetensors_read(const struct safetensors *s, uint64_t offset, void *into, size_t bytes,
                     struct err *err) TR_MUSTCHECK;

/* "bf16 [1536,8960]" into text; cut with "..." when there are too many dimensions. */
void safetensors_describe(enum safetensors_dtype dtype, const int64_t *shape, int32_t rank,
                          char *text, size_t cap);

#endif
