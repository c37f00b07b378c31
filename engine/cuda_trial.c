/* cuda_trial: what a way to make a product is judged by when a shape first comes: whether its bits
 * are those that the shape has, and its time. See backend_cuda_impl.h. */
#include "engine/backend_cuda_impl.h"

enum { FLUSH_BYTES = 160 << 20 };

cudaError_t cuda_trial_run(struct cuda_backend *b, const struct trial *t, void *out)
{
    struct product in_place = *t->on;
    cudaError_t e = cudaSuccess;
    if (t->on->residual) {
        e = cudaMemcpyAsync(out, t->on->residual, t->bytes, cudaMemcpyDeviceToDevice, b->stream);
        in_place.residual = out;
    }
    return e == cudaSuccess ? t->run(b, t, out, &in_place) : e;
}

cudaError_t cuda_trial_same(struct cuda_backend *b, const struct trial *t, void *want, bool makes,
                            void *out, bool *same)
{
    int32_t differ = 0;
    *same = false;
    cudaError_t e = cudaMemsetAsync(b->differ, 0, sizeof differ, b->stream);
    for (int turn = 0; turn < 2 && e == cudaSuccess; turn++) {
        void *into = makes && turn == 0 ? want : out;
        e = cuda_trial_run(b, t, into);
        if (e == cudaSuccess && into == out)
            e = (cudaError_t)differ_cuda(want, out, (int64_t)t->bytes / 16, b->differ, b->stream);
    }
    if (e == cudaSuccess)
        e = cudaMemcpyAsync(&differ, b->differ, sizeof differ, cudaMemcpyDeviceToHost, b->stream);
    if (e == cudaSuccess)
        e = cudaStreamSynchronize(b->stream);
    *same = e == cudaSuccess && differ == 0;
    return e;
}

/* In a step 3 GB pass between two uses of a weight: the adjusted logits' block is written over
 * before each run. */
cudaError_t cuda_trial_time(struct cuda_backend *b, const struct trial *t, void *out, int runs,
                            double *seconds)
{
    const size_t flush =
        TR_MIN((size_t)FLUSH_BYTES, (size_t)b->logits_stride * 4 * (size_t)b->opts.logits_cap);
    struct product in_place = *t->on;
    float ms[TRIAL_RUNS_MAX];
    cudaError_t e = cudaSuccess;
    CHECK(runs <= TRIAL_RUNS_MAX);
    in_place.residual = t->on->residual ? out : NULL;
    for (int i = 0; i < runs && e == cudaSuccess; i++) {
        e = cudaMemsetAsync(b->scratch, i, flush, b->stream);
        if (e == cudaSuccess)
            e = cudaEventRecord(b->tune[0], b->stream);
        if (e == cudaSuccess)
            e = t->run(b, t, out, &in_place);
        if (e == cudaSuccess)
            e = cudaEventRecord(b->tune[1], b->stream);
        if (e == cudaSuccess)
            e = cudaEventSynchronize(b->tune[1]);
        if (e == cudaSuccess)
            e = cudaEventElapsedTime(&ms[i], b->tune[0], b->tune[1]);
    }
    *seconds = e == cudaSuccess ? cuda_median(ms, runs) : 0;
    return e;
}
