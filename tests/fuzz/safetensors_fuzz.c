/* Any bytes as a .safetensors file: parsed or refused; what is accepted must tile the file. */
#include "engine/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct safetensors s;
    struct err err = {0};
    struct str head = {(const char *)data, size};
    if (safetensors_parse(&s, head, size, "fuzz.safetensors", &err) != E_OK) {
        CHECK(err.code == E_FATAL && err.msg[0]);
        return 0;
    }
    uint64_t bytes = 8 + s.header_bytes;
    for (size_t i = 0; i < s.n_tensors; i++) {
        const struct safetensors_tensor *t = &s.tensors[i];
        CHECK(t->begin <= t->end && t->end <= size);
        CHECK(safetensors_find(&s, t->name) == t);
        bytes += t->end - t->begin;
        char text[64];
        safetensors_describe(t->dtype, t->shape, t->rank, text, sizeof text);
        CHECK(strlen(text) < sizeof text);
    }
    CHECK(bytes == size);
    safetensors_close(&s);
    return 0;
}
