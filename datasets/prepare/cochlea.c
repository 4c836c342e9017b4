/* See cochlea.h, and cochlea.py for the equations; each function does the same as the one of its name there.

   What happens alike at several places is written with vectors of GCC and Clang, which stay in registers; loops over
   places, left to the compiler, take half as long again. */

#include "cochlea.h"

/* How many places: as many as a register of the machine holds. */
#if defined __AVX512F__
#define AT_ONCE 16
#elif defined __AVX__
#define AT_ONCE 8
#else
#define AT_ONCE 4
#endif
#define VECTOR __attribute__((vector_size(4 * AT_ONCE), aligned(4), may_alias)) /* anywhere in an array */

typedef float lanes VECTOR;
typedef int32_t integers VECTOR; /* as conditions: all bits set where something is so, none elsewhere */
typedef uint32_t words VECTOR;

/* Complex values, or velocities: the real ones of some places, the imaginary ones of those EAR_PAIRS further on. */
struct wave {
  lanes re, im;
};

struct group {
  int first_block, end_block, decimation, points, past;
};

static const struct group groups[] = EAR_GROUPS;
static const int bins_of_block[COCHLEA_BLOCKS] = EAR_BINS_OF_BLOCK;

static lanes load(const float *from) { return *(const lanes *)from; }

static void store(lanes x, float *to) { *(lanes *)to = x; }

static struct wave plus(struct wave a, struct wave b) { return (struct wave){a.re + b.re, a.im + b.im}; }

static struct wave minus(struct wave a, struct wave b) { return (struct wave){a.re - b.re, a.im - b.im}; }

static struct wave times(struct wave a, float re, float im) {
  return (struct wave){a.re * re - a.im * im, a.re * im + a.im * re};
}

static struct wave turned(struct wave a, const float *root) { return times(a, root[0], root[1]); }

static struct wave turned_back(struct wave a) { return (struct wave){a.im, -a.re}; } /* by a quarter */

/* Fourier transform of x to y[0], y[stride] and so on; n: 2^a 3^b, a multiple of 4 above 4. Overwrites x. Each part is
   finished before the next: it then still lies in the cache. */
static void fft(int n, struct wave *x, const float *roots, struct wave *y, int stride) {
  const int radix = n % 3 == 0 ? 3 : n & 0x5555 ? 4 : 2; /* powers of four by four */
  const int part = n / radix, step = 2 * (EAR_ROOTS / n);
  const float *u = roots, *v = roots, *w = roots;
  if (radix == 4)
    for (int p = 0; p < part; p++, u += step, v += 2 * step, w += 3 * step) {
      const struct wave a = x[p], b = x[p + part], c = x[p + 2 * part], d = x[p + 3 * part];
      const struct wave s = plus(a, c), t = minus(a, c), e = plus(b, d), f = turned_back(minus(b, d));
      x[p] = plus(s, e);
      x[p + part] = turned(plus(t, f), u);
      x[p + 2 * part] = turned(minus(s, e), v);
      x[p + 3 * part] = turned(minus(t, f), w);
    }
  else if (radix == 3)
    for (int p = 0; p < part; p++, u += step, v += 2 * step) {
      const struct wave a = x[p], b = x[p + part], c = x[p + 2 * part], s = plus(b, c), d = turned_back(minus(b, c));
      const struct wave m = {a.re - 0.5f * s.re, a.im - 0.5f * s.im}, f = {EAR_SIN_60 * d.re, EAR_SIN_60 * d.im};
      x[p] = plus(a, s);
      x[p + part] = turned(plus(m, f), u);
      x[p + 2 * part] = turned(minus(m, f), v);
    }
  else
    for (int p = 0; p < part; p++, u += step) {
      const struct wave a = x[p], b = x[p + part];
      x[p] = plus(a, b);
      x[p + part] = turned(minus(a, b), u);
    }
  const int far = stride * radix;
  for (int k = 0; k < radix; k++, x += part, y += stride)
    if (part > 4)
      fft(part, x, roots, y, far);
    else {
      const struct wave s = plus(x[0], x[2]), t = minus(x[0], x[2]);
      const struct wave e = plus(x[1], x[3]), f = turned_back(minus(x[1], x[3]));
      y[0] = plus(s, e);
      y[far] = plus(t, f);
      y[2 * far] = minus(s, e);
      y[3 * far] = minus(t, f);
    }
}

/* Set `spectrum` to the first bins of the transform of a group's part of the audio. */
static void spectrum_of_audio(struct cochlea *ear, const struct group *group, int bins) {
  enum { SERIES = 16 }; /* of every 16th value, transformed side by side */
  const int n = group->points * group->decimation, part = n / SERIES;
  const float *audio = ear->audio + 2 * (EAR_PAST - group->past * group->decimation);
  float *x = ear->work, *y = ear->answer;
  for (int first = 0; first < SERIES; first += AT_ONCE, y += 2 * AT_ONCE * part) {
    for (int k = 0; k < part; k++)
      for (int j = 0; j < AT_ONCE; j++) {
        x[2 * AT_ONCE * k + j] = ear->gain * audio[2 * (SERIES * k + first + j)];
        x[2 * AT_ONCE * k + AT_ONCE + j] = ear->gain * audio[2 * (SERIES * k + first + j) + 1];
      }
    fft(part, (struct wave *)x, ear->tables, (struct wave *)y, 1);
  }
  /* One value of each of them gives SERIES values of the whole; this for AT_ONCE values, side by side. */
  float *re = ear->work, *im = ear->work + n;
  for (int first = 0; first < part; first += AT_ONCE) {
    struct wave values[SERIES], sums[SERIES];
    for (int i = 0; i < AT_ONCE; i++)
      for (int j = 0; j < SERIES; j++) {
        const float *a = ear->answer + 2 * AT_ONCE * (j / AT_ONCE * part + first + i) + j % AT_ONCE;
        const float *root = ear->tables + 2 * (EAR_ROOTS / n) * (first + i) * j;
        float *value = (float *)&values[j] + i;
        value[0] = a[0] * root[0] - a[AT_ONCE] * root[1];
        value[AT_ONCE] = a[0] * root[1] + a[AT_ONCE] * root[0];
      }
    fft(SERIES, values, ear->tables, sums, 1);
    for (int j = 0; j < SERIES; j++) {
      store(sums[j].re, re + part * j + first);
      store(sums[j].im, im + part * j + first);
    }
  }
  for (int k = 0; k < bins; k++) { /* two real values were one complex one */
    const int mirrored = k == 0 ? 0 : n - k;
    const float *root = ear->tables + 2 * (EAR_ROOTS / (2 * n)) * k;
    const float er = re[k] + re[mirrored], ei = im[k] - im[mirrored];
    const float or = im[k] + im[mirrored], oi = re[mirrored] - re[k];
    ear->spectrum[0][k] = 0.5f * (er + (root[0] * or - root[1] * oi));
    ear->spectrum[1][k] = 0.5f * (ei + (root[0] * oi + root[1] * or));
  }
}

/* Returns what a frequency of the sound adds at AT_ONCE places; transfer: of the first of them. */
static struct wave response(const struct cochlea *ear, int bin, const float *transfer) {
  const float *of_bin = transfer + 2 * EAR_LANES * bin;
  const struct wave v = {load(of_bin), load(of_bin + EAR_LANES)};
  return times(v, ear->spectrum[0][bin], ear->spectrum[1][bin]);
}

/* Returns the velocity at AT_ONCE places and as many EAR_PAIRS further on, [EAR_HOP]; before it lies room for
   EAR_REFRACTORY_STEPS more. transfer: [bins, 2, EAR_LANES], from the first place on; taps: [decimation, EAR_TAPS]. */
static struct wave *membrane_velocity(struct cochlea *ear, const struct group *group, int bins, const float *transfer,
                                      const float *taps) {
  const int n = group->points, half = n / 2;
  struct wave *x = (struct wave *)ear->work, *y = (struct wave *)ear->answer;
  for (int k = 0; k < bins && k <= half; k++) {
    const int mirrored = k == 0 ? 0 : n - k;
    struct wave a = response(ear, k, transfer), b = response(ear, k, transfer + EAR_PAIRS);
    if (mirrored < bins) { /* places that answer above half the rate */
      const struct wave c = response(ear, mirrored, transfer), d = response(ear, mirrored, transfer + EAR_PAIRS);
      a.re += c.re, a.im -= c.im, b.re += d.re, b.im -= d.im;
    }
    /* One transform serves two places: of b + ia. With real and imaginary part swapped, it is the inverse one. */
    x[k] = (struct wave){a.re + b.im, b.re - a.im};
    x[mirrored] = (struct wave){a.re - b.im, b.re + a.im};
  }
  const struct wave nothing = {{0}, {0}};
  for (int k = bins; k <= n - bins; k++)
    x[k] = nothing;
  fft(n, x, ear->tables, y, 1);
  if (group->decimation == 1)
    return y + group->past;
  const struct wave *slow = y + group->past - (EAR_TAPS / 2 - 1);
  struct wave *velocity = (struct wave *)ear->velocity + EAR_REFRACTORY_STEPS;
  for (int step = 0; step < EAR_HOP; step++) {
    const float *tap = taps + EAR_TAPS * (step % group->decimation);
    const struct wave *v = slow + step / group->decimation;
    struct wave sum = {tap[0] * v[0].re, tap[0] * v[0].im};
    for (int i = 1; i < EAR_TAPS; i++)
      sum.re += tap[i] * v[i].re, sum.im += tap[i] * v[i].im;
    velocity[step] = sum;
  }
  return velocity;
}

/* Cells of AT_ONCE neighbouring places; `rest` of a bushy cell: below 0 while it is refractory. */
struct cells {
  lanes free, cleft, reprocessed, ready, current, potential;
  words random_high, random_low;
  integers rest;
};

/* Where x < 0, from its sign: a comparison costs more, as its result lies in registers of another kind. */
static integers negative(lanes x) { return (integers)x >> 31; }

static lanes where(integers is_so, lanes x) { return (lanes)(is_so & (integers)x); } /* x, or 0 */

static lanes positive(lanes x) { return where(~negative(x), x); } /* max(x, 0) */

static int any(integers is_so) {
  typedef uint64_t pair __attribute__((vector_size(16)));
  const union {
    integers all;
    pair parts[AT_ONCE / 4];
  } u = {is_so};
  pair found = u.parts[0];
  for (int k = 1; k < AT_ONCE / 4; k++)
    found |= u.parts[k];
  return (found[0] | found[1]) != 0;
}

/* Returns the probability of a fibre to fire. */
static lanes hair_cell_step(struct cells *c, lanes velocity) {
  const lanes shifted = velocity + EAR_A;
  const lanes k = where(~negative(shifted), EAR_G * shifted / (shifted + EAR_B));
  const lanes released = k * c->free;
  const lanes d_free = EAR_Y * positive(EAR_HAIR_M - c->free) - released + EAR_X * c->reprocessed;
  const lanes d_cleft = released - EAR_LOSS * c->cleft;
  const lanes d_reprocessed = EAR_R * c->cleft - EAR_X * c->reprocessed;
  c->free = positive(c->free + EAR_DT * d_free);
  c->cleft = positive(c->cleft + EAR_DT * d_cleft);
  c->reprocessed = positive(c->reprocessed + EAR_DT * d_reprocessed);
  return EAR_RELEASE * c->cleft;
}

/* Returns the successes in n trials where wanted, else `counts`. Seldom called, and apart it takes no registers. */
__attribute__((noinline)) static lanes binomial(lanes n, lanes p, lanes u, integers wanted, lanes counts) {
  const lanes one = (lanes){0} + 1.0f, odds = p / (1.0f - p);
  lanes mass = one, power = 1.0f - p;
  integers left = __builtin_convertvector(n, integers);
  for (int bit = 1; bit <= EAR_FIBRES; bit *= 2, left >>= 1) {
    const integers is_set = -(left & 1);
    mass *= where(is_set, power) + where(~is_set, one);
    power *= power;
  }
  lanes tail = 1.0f - mass;
  counts = where(~wanted, counts);
  wanted &= negative(u - tail);
  for (int k = 1; any(wanted); k++) {
    counts += where(wanted, one);
    mass *= (n - (float)(k - 1)) / (float)k * odds;
    tail -= mass;
    wanted &= negative(u - tail) & negative((float)k - n);
  }
  return counts;
}

/* Returns how many fibres fire; fired: how many did EAR_REFRACTORY_STEPS ago. */
static lanes fibre_step(struct cells *c, lanes p, lanes fired) {
  c->random_high ^= c->random_high << 13 | c->random_low >> 19; /* one state of 64 bits in two words */
  c->random_low ^= c->random_low << 13;
  c->random_low ^= c->random_low >> 7 | c->random_high << 25;
  c->random_high ^= c->random_high >> 7;
  c->random_high ^= c->random_high << 17 | c->random_low >> 15;
  c->random_low ^= c->random_low << 17;
  const lanes u = __builtin_convertvector((integers)(c->random_high >> 8), lanes) * EAR_TO_UNIFORM;
  c->ready += fired;
  const lanes mean = c->ready * p, pairs = 0.5f * mean * (mean - p);
  const lanes triples = EAR_THIRD * pairs * (mean - 2.0f * p), one = mean - pairs, two = pairs - 2.0f * triples;
  const integers is_one = negative(u - one), is_two = negative(u - two);
  const integers undecided =
      negative(u - triples) | (~is_two & negative(u - pairs)) | (~is_one & negative(u - (one + triples)));
  lanes counts = -__builtin_convertvector(is_one + is_two, lanes);
  if (any(undecided))
    counts = binomial(c->ready, p, u, undecided, counts);
  c->ready -= counts;
  return counts;
}

static void bushy_cell_step(struct cells *c, lanes counts) {
  c->current = EAR_DECAY_SYN * c->current + EAR_WEIGHT * counts;
  const integers is_dead = c->rest >> 31;
  const lanes integrated = where(~is_dead, EAR_DECAY_MEM * c->potential + EAR_DT * c->current);
  const integers is_silent = negative(integrated - EAR_THRESHOLD);
  c->potential = where(is_silent, integrated);
  c->rest = (is_silent & (c->rest - is_dead)) | (~is_silent & -EAR_REFRACTORY_STEPS);
}

/* Run the cells of AT_ONCE places over a hop; velocity: of the first of them. */
static void transduce(struct cochlea *ear, int first_place, float *velocity) {
  enum { NEXT = 2 * AT_ONCE }; /* to the next step of the same places */
  enum { LINE = 16, LINES = 1 + EAR_MOST_BINS * 2 * AT_ONCE / (LINE * EAR_HOP) }; /* of the cache; so many a step */
  struct cochlea_cells *kept = &ear->cells[first_place / EAR_LANES];
  const int at = first_place % EAR_LANES;
  struct cells c;
#define EACH(DO) \
  DO(free) DO(cleft) DO(reprocessed) DO(random_high) DO(random_low) DO(ready) DO(current) DO(potential) DO(rest)
#define TAKE(NAME) c.NAME = *(__typeof__(c.NAME) *)&kept->NAME[at];
#define KEEP(NAME) *(__typeof__(c.NAME) *)&kept->NAME[at] = c.NAME;
  EACH(TAKE)
  const float *soon = ear->soon;
  for (int j = 0; j < AT_ONCE; j++)
    ear->num_found[first_place + j] = 0;
  float *counts = velocity - NEXT * EAR_REFRACTORY_STEPS; /* they replace the velocity, which is read once */
  for (int step = 0; step < EAR_REFRACTORY_STEPS; step++)
    store(load(&kept->fired[step][at]), counts + NEXT * step);
  for (int first = 0, end; first < EAR_HOP; first = end) {
    end = first + EAR_REFRACTORY_STEPS < EAR_HOP ? first + EAR_REFRACTORY_STEPS : EAR_HOP;
    for (int step = first; step < end; step++) {
      for (int k = 0; k < LINES; k++, soon += LINE)
        __builtin_prefetch(soon);
      const lanes fired = fibre_step(&c, hair_cell_step(&c, load(velocity + NEXT * step)), load(counts + NEXT * step));
      store(fired, velocity + NEXT * step);
      bushy_cell_step(&c, fired);
    }
    int32_t rest[AT_ONCE];
    *(integers *)rest = c.rest;
    for (int j = 0; j < AT_ONCE; j++) { /* a cell spikes at most once in REFRACTORY_STEPS, and `rest` tells when */
      const int step = end - 1 - EAR_REFRACTORY_STEPS - rest[j];
      if (rest[j] < 0 && step >= first)
        ear->found[first_place + j][ear->num_found[first_place + j]++] = (uint16_t)step;
    }
  }
  for (int step = 0; step < EAR_REFRACTORY_STEPS; step++)
    store(load(counts + NEXT * (EAR_HOP + step)), &kept->fired[step][at]);
  EACH(KEEP)
  ear->soon = soon;
}

/* Bring the events of a hop from the order of their places into that of their steps. */
static void sort_events(struct cochlea *ear) {
  int32_t place[EAR_HOP + 1] = {0};
  for (int unit = 0; unit < EAR_PLACES; unit++)
    for (int e = 0; e < ear->num_found[unit]; e++)
      place[ear->found[unit][e] + 1]++;
  for (int step = 0; step < EAR_HOP; step++)
    place[step + 1] += place[step];
  ear->num_events = place[EAR_HOP];
  for (int unit = 0; unit < EAR_PLACES; unit++)
    for (int e = 0; e < ear->num_found[unit]; e++) {
      const int step = ear->found[unit][e], at = place[step]++;
      ear->steps[at] = ear->steps_done + step;
      ear->units[at] = (uint16_t)unit;
    }
}

static void hear_hop(struct cochlea *ear) {
  const float *taps = ear->tables + 2 * EAR_ROOTS, *transfer = taps + EAR_TAPS * EAR_ALL_DECIMATIONS;
  for (unsigned g = 0; g < sizeof groups / sizeof *groups; g++) {
    const struct group *group = &groups[g];
    spectrum_of_audio(ear, group, bins_of_block[group->first_block]); /* the first block of a group has the most */
    for (int block = group->first_block; block < group->end_block; block++) {
      const int bins = bins_of_block[block];
      ear->soon = transfer + 2 * EAR_LANES * bins;
      for (int j = 0; j < EAR_PAIRS; j += AT_ONCE) {
        float *velocity = (float *)membrane_velocity(ear, group, bins, transfer + j, taps);
        transduce(ear, block * EAR_LANES + j, velocity);
        transduce(ear, block * EAR_LANES + EAR_PAIRS + j, velocity + AT_ONCE);
      }
      transfer += 2 * EAR_LANES * bins;
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
    const uint64_t state = unit < EAR_PLACES ? random[unit] : 1;
    c->random_high[j] = (uint32_t)(state >> 32);
    c->random_low[j] = (uint32_t)state;
    c->ready[j] = EAR_FIBRES;
    for (int k = 0; k < EAR_REFRACTORY_STEPS; k++)
      c->fired[k][j] = 0.0f;
    c->current[j] = c->potential[j] = 0.0f;
    c->rest[j] = 0;
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
