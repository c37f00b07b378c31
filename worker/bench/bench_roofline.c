/* bench_roofline: see bench_roofline.h. */
#include "worker/bench/bench_roofline.h"

#include <math.h>

static const double ATTENTION_FLOPS = 450e12, ROWS = 2048;

void roofline_init(struct roofline *r, const struct model_config *c, double gemm_flops,
                   double copy_Bps)
{
    const double d = c->hidden, layers = c->n_layers, vocab = (double)c->vocab_size;
    const double q = (double)c->n_heads * c->head_dim, kv = (double)c->n_kv_heads * c->head_dim;
    *r = (struct roofline){.gemm_flops = gemm_flops,
                           .copy_Bps = copy_Bps,
                           .attention_flops = ATTENTION_FLOPS,
                           .rows = ROWS,
                           .body = layers * (2 * d * q + 2 * d * kv + 3 * d * c->inner),
                           .head = d * vocab,
                           .vocab = vocab,
                           .kv_bytes = 4 * kv * layers,
                           .pair_ops = 4 * q * layers};
}

double roofline_seconds(const struct roofline *r, double shared, double own, double generated)
{
    const double g = generated, p = own, s = shared;
    if (g < 1)
        return 0;
    const double flop = 2 * r->body * (p + g - 1) + 2 * r->head * g;
    const double attention = r->pair_ops * (s * p + p * p / 2 + s * (g - 1));
    const double keys =
        r->kv_bytes * ((g - 1) * p + (g - 1) * g / 2) + r->kv_bytes * s * (g - 1) / r->rows;
    const double logits = 4 * r->vocab * g, weights = 2 * (r->body + r->head) * g / r->rows;
    return flop / r->gemm_flops + attention / r->attention_flops +
           (keys + logits + weights) / r->copy_Bps;
}

double roofline_weights_seconds(const struct roofline *r)
{
    return 2 * (r->body + r->head) / r->copy_Bps;
}

void run_shares(struct run_shares *out, const struct run_moments *m)
{
    const double whole = m->end.at - m->start.at, tokens = m->end.tokens - m->start.tokens;
    const double work = m->end.work - m->start.work;
    const double steady = m->refilled.at - m->full.at;
    *out = (struct run_shares){0};
    if (whole > 0 && work > 0) {
        out->out_tok_s = tokens / whole;
        out->share_r_seq_whole = work / whole;
        out->r_seq_tok_s = tokens / work;
        out->drain_seconds = m->refilled.at > 0 ? m->end.at - m->refilled.at : 0;
    }
    if (m->full.at <= 0 || m->refilled.at <= 0 || steady <= 0)
        return;
    const double busy = m->refilled.busy - m->full.busy, idle = m->refilled.idle - m->full.idle;
    out->steady_seconds = steady;
    out->out_tok_s_steady = (m->refilled.tokens - m->full.tokens) / steady;
    out->share_r_seq = (m->refilled.work - m->full.work) / steady;
    out->gpu_idle_share = busy + idle > 0 ? idle / (busy + idle) : 0;
}

int32_t lognormal_length(uint32_t i, double mean, double sigma, int32_t cap)
{
    const double u = ((double)(i * 2654435761u >> 8) + 0.5) / 16777216.0;
    const double v = ((double)(i * 2246822519u >> 8) + 0.5) / 16777216.0;
    const double z = sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
    const double n = exp(log(mean) - sigma * sigma / 2 + sigma * z);
    return (int32_t)fmin(cap, fmax(1, n));
}
