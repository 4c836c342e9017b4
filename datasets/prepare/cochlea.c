/* See cochlea.h, and cochlea.py for the equations; each function does the same as the one of its name there. */

#include "cochlea.h"

struct group {
  int first_block, end_block, decimation, points, past;
};

static const struct group groups[] = EAR_GROUPS;
static const int bins_of_block[COCHLEA_BLOCKS] = EAR_BINS_OF_BLOCK;

/* One butterfly of the transform below, for `stride` series side by side: sums of the values at a, b, c and d, turned by
   u, v and w, to y, y + stride and so on. `restrict` lets the compiler use vectors. */
static void radix_2(int stride, const float *restrict ar, const float *restrict ai, const float *restrict br,
                    const float *restrict bi, const float *u, float *restrict y0r, float *restrict y0i,
                    float *restrict y1r, float *restrict y1i) {
  const float ur = u[0], ui = u[1];
  for (int q = 0; q < stride; q++) {
    const float dr = ar[q] - br[q], di = ai[q] - bi[q];
    y0r[q] = ar[q] + br[q];
    y0i[q] = ai[q] + bi[q];
    y1r[q] = dr * ur - di * ui;
    y1i[q] = dr * ui + di * ur;
  }
}

static void radix_3(int stride, const float *restrict ar, const float *restrict ai, const float *restrict br,
                    const float *restrict bi, const float *restrict cr, const float *restrict ci, const float *u,
                    const float *v, float *restrict y0r, float *restrict y0i, float *restrict y1r, float *restrict y1i,
                    float *restrict y2r, float *restrict y2i) {
  const float ur = u[0], ui = u[1], vr = v[0], vi = v[1];
  for (int q = 0; q < stride; q++) {
    const float sr = br[q] + cr[q], si = bi[q] + ci[q];
    const float mr = ar[q] - 0.5f * sr, mi = ai[q] - 0.5f * si;
    const float nr = EAR_SIN_60 * (br[q] - cr[q]), ni = EAR_SIN_60 * (bi[q] - ci[q]);
    const float fr = mr + ni, fi = mi - nr, gr = mr - ni, gi = mi + nr;
    y0r[q] = ar[q] + sr;
    y0i[q] = ai[q] + si;
    y1r[q] = fr * ur - fi * ui;
    y1i[q] = fr * ui + fi * ur;
    y2r[q] = gr * vr - gi * vi;
    y2i[q] = gr * vi + gi * vr;
  }
}

static void radix_4(int stride, const float *restrict ar, const float *restrict ai, const float *restrict br,
                    const float *restrict bi, const float *restrict cr, const float *restrict ci,
                    const float *restrict dr, const float *restrict di, const float *u, const float *v, const float *w,
                    float *restrict y0r, float *restrict y0i, float *restrict y1r, float *restrict y1i,
                    float *restrict y2r, float *restrict y2i, float *restrict y3r, float *restrict y3i) {
  const float ur = u[0], ui = u[1], vr = v[0], vi = v[1], wr = w[0], wi = w[1];
  for (int q = 0; q < stride; q++) {
    const float sr = ar[q] + cr[q], si = ai[q] + ci[q], tr = ar[q] - cr[q], ti = ai[q] - ci[q];
    const float er = br[q] + dr[q], ei = bi[q] + di[q], fr = br[q] - dr[q], fi = bi[q] - di[q];
    const float gr = tr + fi, gi = ti - fr, hr = sr - er, hi = si - ei, kr = tr - fi, ki = ti + fr;
    y0r[q] = sr + er;
    y0i[q] = si + ei;
    y1r[q] = gr * ur - gi * ui;
    y1i[q] = gr * ui + gi * ur;
    y2r[q] = hr * vr - hi * vi;
    y2i[q] = hr * vi + hi * vr;
    y3r[q] = kr * wr - ki * wi;
    y3i[q] = kr * wi + ki * wr;
  }
}

/* Fourier transform of `lanes` complex series of n = 2^a 3^b values each, value k of all of them at k * lanes (Stockham).
   Returns 0 if the result is in re and im, 1 if it is in re_out and im_out. */
static int fft(int n, int lanes, const float *roots, float *re, float *im, float *re_out, float *im_out) {
  int swapped = 0;
  for (int length = n, stride = lanes; length > 1;) {
    const int radix = length % 4 == 0 ? 4 : length % 3 == 0 ? 3 : 2, part = length / radix, far = stride * part;
    for (int p = 0; p < part; p++) {
      const float *ar = re + stride * p, *ai = im + stride * p, *u = roots + 2 * (EAR_ROOTS / length) * p;
      const float *v = roots + 4 * (EAR_ROOTS / length) * p, *w = roots + 6 * (EAR_ROOTS / length) * p;
      float *yr = re_out + stride * radix * p, *yi = im_out + stride * radix * p;
      if (radix == 4)
        radix_4(stride, ar, ai, ar + far, ai + far, ar + 2 * far, ai + 2 * far, ar + 3 * far, ai + 3 * far, u, v, w, yr,
                yi, yr + stride, yi + stride, yr + 2 * stride, yi + 2 * stride, yr + 3 * stride, yi + 3 * stride);
      else if (radix == 3)
        radix_3(stride, ar, ai, ar + far, ai + far, ar + 2 * far, ai + 2 * far, u, v, yr, yi, yr + stride, yi + stride,
                yr + 2 * stride, yi + 2 * stride);
      else
        radix_2(stride, ar, ai, ar + far, ai + far, u, yr, yi, yr + stride, yi + stride);
    }
    float *swap = re;
    re = re_out, re_out = swap;
    swap = im;
    im = im_out, im_out = swap;
    swapped = !swapped;
    length = part, stride *= radix;
  }
  return swapped;
}

/* Set `spectrum` to the first bins of the transform of a group's part of the audio. */
static void spectrum_of_audio(struct cochlea *ear, const struct group *group, int bins) {
  const int n = group->points * group->decimation;
  const float *audio = ear->audio + 2 * (EAR_PAST - group->past * group->decimation);
  for (int k = 0; k < n; k++) {
    ear->work[0][k] = ear->gain * audio[2 * k];
    ear->work[1][k] = ear->gain * audio[2 * k + 1];
  }
  const int at = 2 * fft(n, 1, ear->tables, ear->work[0], ear->work[1], ear->work[2], ear->work[3]);
  const float *re = ear->work[at], *im = ear->work[at + 1];
  for (int k = 0; k < bins; k++) {
    const int mirrored = k == 0 ? 0 : n - k;
    const float *root = ear->tables + 2 * (EAR_ROOTS / (2 * n)) * k;
    const float er = re[k] + re[mirrored], ei = im[k] - im[mirrored];
    const float or = im[k] + im[mirrored], oi = re[mirrored] - re[k];
    ear->spectrum[0][k] = 0.5f * (er + (root[0] * or - root[1] * oi));
    ear->spectrum[1][k] = 0.5f * (ei + (root[0] * oi + root[1] * or));
  }
}

/* Set `velocity` to that of the places of a block; transfer: [bins, 2, EAR_LANES]; taps: [decimation, EAR_TAPS]. */
static void membrane_velocity(struct cochlea *ear, const struct group *group, int bins, const float *transfer,
                              const float *taps) {
  const int n = group->points, half = n / 2;
  float *re = ear->work[0], *im = ear->work[1];
  for (int k = bins * EAR_PAIRS; k < (n - bins + 1) * EAR_PAIRS; k++)
    re[k] = im[k] = 0.0f;
  for (int k = 0; k < bins && k <= half; k++) {
    const int mirrored = k == 0 ? 0 : n - k;
    const float *restrict v = transfer + 2 * EAR_LANES * k, *restrict w = transfer + 2 * EAR_LANES * mirrored;
    const float xr = ear->spectrum[0][k], xi = ear->spectrum[1][k];
    float yr[EAR_LANES], yi[EAR_LANES];
    for (int j = 0; j < EAR_LANES; j++) {
      yr[j] = v[j] * xr - v[EAR_LANES + j] * xi;
      yi[j] = v[j] * xi + v[EAR_LANES + j] * xr;
    }
    if (mirrored < bins) { /* places that answer above half the rate */
      const float zr = ear->spectrum[0][mirrored], zi = ear->spectrum[1][mirrored];
      for (int j = 0; j < EAR_LANES; j++) {
        yr[j] = yr[j] + (w[j] * zr - w[EAR_LANES + j] * zi);
        yi[j] = yi[j] - (w[j] * zi + w[EAR_LANES + j] * zr);
      }
    }
    /* A real series in the real and another in the imaginary part: one transform serves two places. */
    for (int j = 0; j < EAR_PAIRS; j++) {
      re[k * EAR_PAIRS + j] = yr[j] - yi[EAR_PAIRS + j];
      im[k * EAR_PAIRS + j] = yi[j] + yr[EAR_PAIRS + j];
      re[mirrored * EAR_PAIRS + j] = yr[j] + yi[EAR_PAIRS + j];
      im[mirrored * EAR_PAIRS + j] = yr[EAR_PAIRS + j] - yi[j];
    }
  }
  /* With real and imaginary part swapped, the transform is the inverse one. */
  const int at = 2 * fft(n, EAR_PAIRS, ear->tables, im, re, ear->work[3], ear->work[2]);
  re = ear->work[at], im = ear->work[at + 1];
  if (group->decimation == 1) {
    for (int step = 0; step < EAR_HOP; step++)
      for (int j = 0; j < EAR_PAIRS; j++) {
        ear->velocity[step][j] = re[(group->past + step) * EAR_PAIRS + j];
        ear->velocity[step][EAR_PAIRS + j] = im[(group->past + step) * EAR_PAIRS + j];
      }
    return;
  }
  const int first = group->past - (EAR_TAPS / 2 - 1), slow = EAR_HOP / group->decimation + EAR_TAPS;
  for (int m = 0; m < slow; m++)
    for (int j = 0; j < EAR_PAIRS; j++) {
      ear->slow[m][j] = re[(first + m) * EAR_PAIRS + j];
      ear->slow[m][EAR_PAIRS + j] = im[(first + m) * EAR_PAIRS + j];
    }
  for (int step = 0; step < EAR_HOP; step++) {
    const float *tap = taps + EAR_TAPS * (step % group->decimation);
    float(*x)[EAR_LANES] = &ear->slow[step / group->decimation];
    float sum[EAR_LANES];
    for (int j = 0; j < EAR_LANES; j++)
      sum[j] = tap[0] * x[0][j];
    for (int i = 1; i < EAR_TAPS; i++)
      for (int j = 0; j < EAR_LANES; j++)
        sum[j] += tap[i] * x[i][j];
    for (int j = 0; j < EAR_LANES; j++)
      ear->velocity[step][j] = sum[j];
  }
}

static float larger(float a, float b) { return a > b ? a : b; }

static void hair_cell_step(struct cochlea_cells *c, const float *velocity, float *probability) {
  for (int j = 0; j < EAR_LANES; j++) {
    const float shifted = velocity[j] + EAR_A;
    const float k = shifted > 0.0f ? EAR_G * shifted / (shifted + EAR_B) : 0.0f;
    const float released = k * c->free[j];
    const float d_free = EAR_Y * larger(EAR_HAIR_M - c->free[j], 0.0f) - released + EAR_X * c->reprocessed[j];
    const float d_cleft = released - EAR_LOSS * c->cleft[j];
    const float d_reprocessed = EAR_R * c->cleft[j] - EAR_X * c->reprocessed[j];
    c->free[j] = larger(c->free[j] + EAR_DT * d_free, 0.0f);
    c->cleft[j] = larger(c->cleft[j] + EAR_DT * d_cleft, 0.0f);
    c->reprocessed[j] = larger(c->reprocessed[j] + EAR_DT * d_reprocessed, 0.0f);
    probability[j] = EAR_RELEASE * c->cleft[j];
  }
}

static float binomial(int n, float p, float u) {
  float mass = 1.0f, power = 1.0f - p;
  for (int bits = n; bits; bits >>= 1) {
    if (bits & 1)
      mass *= power;
    power *= power;
  }
  float tail = 1.0f - mass, odds = p / (1.0f - p);
  int k = 0;
  while (u < tail && k < n) {
    k++;
    mass *= (float)(n - k + 1) / (float)k * odds;
    tail -= mass;
  }
  return (float)k;
}

static void fibre_step(struct cochlea_cells *c, const float *probability, float *fired, float *counts) {
  float u[EAR_LANES];
  int32_t undecided[EAR_LANES], any = 0;
  for (int j = 0; j < EAR_LANES; j++) {
    uint64_t state = c->random[j];
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    c->random[j] = state;
    u[j] = (float)(int32_t)(state >> 40) * EAR_TO_UNIFORM;
  }
  for (int j = 0; j < EAR_LANES; j++) {
    c->ready[j] += fired[j];
    const float p = probability[j], mean = c->ready[j] * p, pairs = 0.5f * mean * (mean - p);
    const float triples = EAR_THIRD * pairs * (mean - 2.0f * p), one = mean - pairs, two = pairs - 2.0f * triples;
    counts[j] = (u[j] < one ? 1.0f : 0.0f) + (u[j] < two ? 1.0f : 0.0f);
    undecided[j] = (u[j] < triples) | ((u[j] >= two) & (u[j] < pairs)) | ((u[j] >= one) & (u[j] < one + triples));
    any |= undecided[j];
  }
  if (any)
    for (int j = 0; j < EAR_LANES; j++)
      if (undecided[j])
        counts[j] = binomial((int)c->ready[j], probability[j], u[j]);
  for (int j = 0; j < EAR_LANES; j++) {
    c->ready[j] -= counts[j];
    fired[j] = counts[j];
  }
}

static int bushy_cell_step(struct cochlea_cells *c, const float *counts, int32_t *spikes) {
  int32_t any = 0;
  for (int j = 0; j < EAR_LANES; j++) {
    c->current[j] = EAR_DECAY_SYN * c->current[j] + EAR_WEIGHT * counts[j];
    const float is_alive = c->dead_steps[j] == 0 ? 1.0f : 0.0f; /* as factors, or masked stores would stall the next step */
    const float integrated = is_alive * (EAR_DECAY_MEM * c->potential[j] + EAR_DT * c->current[j]);
    const int32_t spike = integrated >= EAR_THRESHOLD;
    spikes[j] = spike;
    any |= spike;
    c->potential[j] = (float)(1 - spike) * integrated;
    c->dead_steps[j] = spike * EAR_REFRACTORY_STEPS + (1 - spike) * (c->dead_steps[j] - (c->dead_steps[j] > 0));
  }
  return any;
}

static void transduce(struct cochlea *ear, int block) {
  struct cochlea_cells *cells = &ear->cells[block];
  for (int step = 0; step < EAR_HOP; step++) {
    float probability[EAR_LANES], counts[EAR_LANES];
    int32_t spikes[EAR_LANES];
    hair_cell_step(cells, ear->velocity[step], probability);
    fibre_step(cells, probability, cells->fired[(ear->steps_done + step) % EAR_REFRACTORY_STEPS], counts);
    if (bushy_cell_step(cells, counts, spikes))
      for (int j = 0; j < EAR_LANES; j++)
        if (spikes[j] && block * EAR_LANES + j < EAR_PLACES) {
          ear->found_steps[ear->num_found] = (uint16_t)step;
          ear->found_units[ear->num_found++] = (uint16_t)(block * EAR_LANES + j);
        }
  }
}

/* Bring the events of a hop from the order of their blocks into that of their steps. */
static void sort_events(struct cochlea *ear) {
  int32_t place[EAR_HOP + 1] = {0};
  for (int e = 0; e < ear->num_found; e++)
    place[ear->found_steps[e] + 1]++;
  for (int step = 0; step < EAR_HOP; step++)
    place[step + 1] += place[step];
  for (int e = 0; e < ear->num_found; e++) {
    const int at = place[ear->found_steps[e]]++;
    ear->steps[at] = ear->steps_done + ear->found_steps[e];
    ear->units[at] = ear->found_units[e];
  }
  ear->num_events = ear->num_found;
}

static void hear_hop(struct cochlea *ear) {
  const float *taps = ear->tables + 2 * EAR_ROOTS, *transfer = taps + EAR_TAPS * EAR_ALL_DECIMATIONS;
  ear->num_found = 0;
  for (unsigned g = 0; g < sizeof groups / sizeof *groups; g++) {
    const struct group *group = &groups[g];
    spectrum_of_audio(ear, group, bins_of_block[group->first_block]); /* the first block of a group has the most */
    for (int block = group->first_block; block < group->end_block; block++) {
      membrane_velocity(ear, group, bins_of_block[block], transfer, taps);
      transduce(ear, block);
      transfer += 2 * EAR_LANES * bins_of_block[block];
    }
    taps += EAR_TAPS * group->decimation;
  }
  sort_events(ear);
}

void cochlea_start(struct cochlea *ear, const float *tables, const uint64_t *random) {
  ear->tables = tables;
  ear->gain = 1.0f;
  ear->num_events = ear->steps_done = 0;
  ear->missing = EAR_WINDOW - 2 * EAR_PAST;
  for (int k = 0; k < EAR_WINDOW; k++)
    ear->audio[k] = 0.0f;
  for (int unit = 0; unit < EAR_PLACES_PADDED; unit++) {
    struct cochlea_cells *c = &ear->cells[unit / EAR_LANES];
    const int j = unit % EAR_LANES;
    c->free[j] = EAR_FREE_AT_REST;
    c->cleft[j] = EAR_CLEFT_AT_REST;
    c->reprocessed[j] = EAR_REPROCESSED_AT_REST;
    c->random[j] = unit < EAR_PLACES ? random[unit] : 1;
    c->ready[j] = EAR_FIBRES;
    for (int k = 0; k < EAR_REFRACTORY_STEPS; k++)
      c->fired[k][j] = 0.0f;
    c->current[j] = c->potential[j] = 0.0f;
    c->dead_steps[j] = 0;
  }
}

int cochlea_push(struct cochlea *ear, const float *samples, int count) {
  const int taken = count < ear->missing ? count : ear->missing;
  ear->num_events = 0;
  for (int k = 0; k < taken; k++)
    ear->audio[EAR_WINDOW - ear->missing + k] = samples[k];
  ear->missing -= taken;
  if (ear->missing > 0)
    return taken;
  hear_hop(ear);
  ear->steps_done += EAR_HOP;
  for (int k = 0; k < EAR_WINDOW - 2 * EAR_HOP; k++)
    ear->audio[k] = ear->audio[k + 2 * EAR_HOP];
  ear->missing = 2 * EAR_HOP;
  return taken;
}
