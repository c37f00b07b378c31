/* attention_tile: what one turn of a tile kernel walks. */
#ifndef TRANCHE_KERNELS_CUDA_ATTENTION_TILE_CUH
#define TRANCHE_KERNELS_CUDA_ATTENTION_TILE_CUH

#include "attention.cuh"

/* One tile: see struct attention_cuda. */
struct tile {
    int at, packed, rows, split, head, keys, slot, partial, blocks;

    METHOD bool shared() const
    {
        return partial >= 0;
    }
    METHOD int split_end() const
    {
        return (keys + SPLIT_KEYS - 1) / SPLIT_KEYS;
    }
};

/* First key that a row sees. */
DEVICE int window_begin(int window, int position)
{
    return window > 0 ? max(0, position - window + 1) : 0;
}

DEVICE tile tile_read(const struct attention_cuda &a, int i)
{
    const int4 w = __ldg(a.tiles + 2 * i), v = __ldg(a.tiles + 2 * i + 1);
    tile t = {w.x, w.y, w.z & 0xff, w.z >> 8, w.w, v.x, v.y, v.z, v.w};
    if (a.window > 0 && !t.shared())
        t.split =
            max(t.split,
                window_begin(a.window, a.position[t.at + t.packed * a.n_kv_heads / a.n_heads]) /
                    SPLIT_KEYS);
    return t;
}

DEVICE int packed_row(const struct attention_cuda &a, const tile &t, int packed, int group)
{
    const int token = (t.packed + packed) / group;
    return t.shared() ? __ldg(a.tile_rows + t.at + token) : t.at + token;
}

#endif
