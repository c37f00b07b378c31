/* attention_span: what one pair of warps of attention_decode walks. */
#ifndef TRANCHE_KERNELS_CUDA_ATTENTION_SPAN_CUH
#define TRANCHE_KERNELS_CUDA_ATTENTION_SPAN_CUH

#include "attention.cuh"
#include "kernels/kernels_cuda.h"

/* A run of splits of one row and kv head: see struct attention_cuda. */
struct span {
    int row, head, split, end, keys, slot, partial, prefix;

    METHOD bool first() const
    {
        return prefix >= -1;
    }
};

DEVICE span span_read(const struct attention_cuda &a, int i)
{
    const int4 place = __ldg(a.decode + 2 * i), keys = __ldg(a.decode + 2 * i + 1);
    return {place.x, place.y, place.z, place.w, keys.x, keys.y, keys.z, keys.w};
}

/* Visible keys of a split and the chunks that hold them; none: lo >= hi. */
struct part {
    int lo, hi;

    METHOD part(const span &s, int split, int window)
    {
        const int key0 = split * SPLIT_KEYS;
        lo = window > 0 ? max(s.keys - window, key0) : key0;
        hi = min(s.keys, key0 + SPLIT_KEYS);
    }
    METHOD bool empty() const
    {
        return lo >= hi;
    }
    METHOD int first_chunk() const
    {
        return lo % SPLIT_KEYS / CHUNK_KEYS;
    }
    METHOD int last_chunk() const
    {
        return (hi - 1) % SPLIT_KEYS / CHUNK_KEYS;
    }
};

#endif
