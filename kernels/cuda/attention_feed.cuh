/* attention_feed: how the portable kernels bring keys and values: chunk after chunk by cp.async,
 * over all runs of splits that a warp or a CTA walks. PTX ISA 7.0, sm_80 and later. */
#ifndef TRANCHE_KERNELS_CUDA_ATTENTION_FEED_CUH
#define TRANCHE_KERNELS_CUDA_ATTENTION_FEED_CUH

#include "attention_span.cuh"

DEVICE void copy_16(uint32_t dst, const void *src)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(dst), "l"(src) : "memory");
}
/* Ends a group of copies, which may be empty. */
DEVICE void copies_commit()
{
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}
/* Waits until at most PENDING of the thread's groups are under way. */
template <int PENDING> DEVICE void copies_wait()
{
    asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING) : "memory");
}

struct split_half {
    const bf16 *page[2]; /* where they begin in each of its pages */
    int chunks;
};

/* A cursor over the chunks of the runs begin .. end: of each split with visible keys its chunks of
 * keys, then those of values. READ(a, i) is run i, a span; `window` as in struct part. */
template <int DH, class READ> struct feed {
    const struct attention_cuda &a;
    READ read;
    int item, items, window;
    span s;
    int split, chunk, value;
    int page[2]; /* of the split: asked for with it, so they are there when its turn comes */

    METHOD feed(const struct attention_cuda &args, READ reader, int begin, int end, int window_of)
        : a(args), read(reader), item(begin - 1), items(end), window(window_of)
    {
        s.end = split = -1;
        split_next();
    }
    METHOD bool ended() const
    {
        return item >= items;
    }
    /* The chunk where the cursor stands; it goes on to the next one. */
    METHOD const bf16 *take()
    {
        const part p(s, split, window);
        const bf16 *src = a.kv +
                          ((int64_t)(chunk < 2 ? page[0] : page[1]) * a.n_kv_heads + s.head) *
                              (2 * PAGE_KEYS * DH) +
                          (value * PAGE_KEYS + (chunk & 1) * CHUNK_KEYS) * DH;
        if (chunk++ < p.last_chunk())
            return src;
        chunk = p.first_chunk();
        if (++value == 2)
            split_next();
        return src;
    }

    /* All of the keys or the values of the split where the cursor stands; on to the next. */
    METHOD split_half take_half()
    {
        const int64_t page_elements = (int64_t)a.n_kv_heads * (2 * PAGE_KEYS * DH);
        const bf16 *base = a.kv + (s.head * 2 + value) * (PAGE_KEYS * DH);
        const split_half half = {{base + page[0] * page_elements, base + page[1] * page_elements},
                                 part(s, split, window).last_chunk() + 1};
        if (++value == 2)
            split_next();
        return half;
    }

  private:
    METHOD void split_next()
    {
#pragma unroll 1
        do {
            if (++split >= s.end) {
                if (++item >= items)
                    return;
                s = read(a, item);
                split = s.split;
            }
        } while (part(s, split, window).empty());
        value = 0;
        chunk = part(s, split, window).first_chunk();
        const int32_t *pages = a.block_table + (int64_t)s.slot * a.block_table_stride;
        page[0] = __ldg(pages + 2 * split);
        page[1] = __ldg(pages + min(2 * split + 1, (s.keys - 1) / PAGE_KEYS));
    }
};

#endif
