/* bench_roofline: the arithmetic of the benchmark: what a request costs at the ceilings of the
 * machine, and shares of it. Pure; seconds, bytes and operations as doubles.
 *
 * The sequential roofline of one request with prompt P, shared prefix S before it, G tokens out:
 *   T = F/C + A/C_att + (K + logits + weights)/W
 *   F = 2 N_t (P + G - 1) + 2 N_h G           products (N_t, N_h: weights of the layers, the head)
 *   A = pair (S P + P^2/2 + S (G - 1))        attention of prompts and of the shared prefix
 *   K = kv (sum over j = 1 .. G-1 of (P + j) + S (G - 1) / B)
 *   logits = 4 V G, weights = 2 (N_t + N_h) G / B
 * C and W (copy, bytes read and written) are measured in the same run; C_att is 450 TFLOP/s and B
 * 2048 rows by convention, so that shares of different machines and engines mean the same. */
#ifndef TRANCHE_WORKER_BENCH_BENCH_ROOFLINE_H
#define TRANCHE_WORKER_BENCH_BENCH_ROOFLINE_H

#include "engine/model.h"

struct roofline {
    double gemm_flops;         /* C, operations a second */
    double copy_Bps;           /* W */
    double attention_flops;    /* C_att */
    double rows;               /* B: rows that share one reading of weights and prefix */
    double body, head, vocab;  /* N_t, N_h, V */
    double kv_bytes, pair_ops; /* kv: bytes a token, all layers; pair: operations a (query, key) */
};
/* From a model and the two measured ceilings; the conventions filled in. */
void roofline_init(struct roofline *r, const struct model_config *c, double gemm_flops,
                   double copy_Bps);
/* T of one request of which `generated` tokens are out; 0 before the first. */
double roofline_seconds(const struct roofline *r, double shared, double own, double generated);
/* Seconds to read what one decode step reads of the weights: the floor of one sequence alone. */
double roofline_weights_seconds(const struct roofline *r);

/* A run as three moments: its start, the first step that is full, the last refill; its end. */
struct moment {
    double at;         /* seconds */
    double work;       /* roofline seconds of everything done so far */
    double tokens;     /* out so far */
    double busy, idle; /* device seconds so far */
};
struct run_moments {
    struct moment start, full, refilled, end;
};
struct run_shares {
    double out_tok_s, share_r_seq_whole, r_seq_tok_s;
    double out_tok_s_steady, share_r_seq, gpu_idle_share; /* between full and refilled */
    double steady_seconds, drain_seconds;
};
/* A run that never was full, or was full for no time, has no steady state: its figures are 0. */
void run_shares(struct run_shares *out, const struct run_moments *m);

/* Length of the i-th of lognormal answers with this mean of the distribution, sigma, and cap;
 * at least 1. A function of i alone. */
int32_t lognormal_length(uint32_t i, double mean, double sigma, int32_t cap);

#endif
