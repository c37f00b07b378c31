/* rope: the table of cosines and sines. Su et al. 2021 (RoPE), Llama 3's frequency smoothing and
 * Peng et al. 2023 (YaRN), each in the order of Transformers' modeling_rope_utils.py, in fp32 as
 * there: at position 100,000 the last bit of a frequency is a visible angle. */
#include <math.h>

#include "engine/model.h"

static const double two_pi = 6.283185307179586;

/* theta^(2i/Dh): the reciprocal of the plain frequency. */
static float period(const struct model_config *c, int32_t i)
{
    float exponent = (float)(2 * i) / (float)c->head_dim;
    return (float)pow(c->rope.theta, (double)exponent);
}

static float llama3_frequency(const struct rope_config *r, float f)
{
    float original = (float)r->original_max_positions;
    float low = (float)r->low_freq_factor, high = (float)r->high_freq_factor;
    float factor = (float)r->factor;
    float wavelength = (float)two_pi / f;
    if (wavelength > original / low)
        return f / factor;
    if (wavelength < original / high)
        return f;
    float smooth = (original / wavelength - low) / (high - low);
    return (1.0f - smooth) * f / factor + smooth * f;
}

/* The dimension that turns `rotations` times over the original context. */
static double yarn_dimension(const struct model_config *c, double rotations)
{
    double turns = (double)c->rope.original_max_positions / (rotations * two_pi);
    return c->head_dim * log(turns) / (2.0 * log(c->rope.theta));
}

static float yarn_frequency(const struct model_config *c, int32_t i, float p)
{
    double low = fmax(floor(yarn_dimension(c, c->rope.beta_fast)), 0.0);
    double high = fmin(ceil(yarn_dimension(c, c->rope.beta_slow)), (double)c->head_dim - 1.0);
    if (low == high)
        high += 0.001; /* no division by zero; Transformers adds the same */
    float ramp = (float)((i - low) / (high - low));
    ramp = fminf(fmaxf(ramp, 0.0f), 1.0f);
    float interpolated = 1.0f / ((float)c->rope.factor * p), plain = 1.0f / p;
    return interpolated * ramp + plain * (1.0f - ramp);
}

void rope_table(const struct model_config *c, int32_t positions, float *cos_sin)
{
    int32_t half = c->head_dim / 2;
    float scale = (float)c->rope.attention_factor;
    for (int32_t i = 0; i < half; i++) {
        float p = period(c, i), f = 1.0f / p;
        if (c->rope.type == ROPE_LLAMA3)
            f = llama3_frequency(&c->rope, f);
        else if (c->rope.type == ROPE_YARN)
            f = yarn_frequency(c, i, p);
        for (int32_t t = 0; t < positions; t++) {
            float angle = (float)t * f;
            float *row = cos_sin + (int64_t)t * c->head_dim;
            row[i] = (float)cos((double)angle) * scale;
            row[half + i] = (float)sin((double)angle) * scale;
        }
    }
}
