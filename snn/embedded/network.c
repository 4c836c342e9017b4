/* @TITLE@
   Every sum is in the order in which the training code sums, so that each spike is the same; therefore compile it
   without -ffast-math and with -ffp-contract=off. */
#include "network.h"

#include "weights.h"

#include <float.h>
#include <stddef.h>

#if defined(__FAST_MATH__) || FLT_EVAL_METHOD != 0
#error "potentials must be rounded as float: no -ffast-math, and on 32-bit x86 -msse2 -mfpmath=sse"
#endif

@NEURON_STEPS@

#if ADDS_PRODUCTS
/* sum + count * weight, rounded once: by the instruction of processors that have one, otherwise by way of a double, whose
   last bit, if it had to be rounded, is made odd so that it cannot lie halfway between two floats by rounding. */
static float add_product(float sum, float count, float weight)
{
#if defined(__FP_FAST_FMAF) || defined(__ARM_FEATURE_FMA)
    return __builtin_fmaf(count, weight, sum);
#else
    const double product = (double)count * weight;
    union { double value; uint64_t bits; } total = {sum + product};
    const double added = total.value - sum, error = (sum - (total.value - added)) + (product - added);
    if (error != 0 && total.bits % 2 == 0)
        total.bits += (error > 0) == (total.value > 0) ? 1 : (uint64_t)-1;
    return (float)total.value;
#endif
}

#endif
#if SUMS_ROWS
enum { BLOCK = @BLOCK@ }; /* this many sums stay in registers; rows of weights are padded to whole blocks */

/* sum = counts * rows of weights, for the inputs `from`; without counts each of them counts once. */
static void sum_rows(@SUM@ *sum, unsigned width, const @WEIGHT@ *weights, const uint16_t *from, unsigned number,
                     const uint16_t *counts)
{
    for (unsigned first = 0; first < width; first += BLOCK) {
        @SUM@ part[BLOCK] = {0};
        for (unsigned e = 0; e < number; e++) {
            const @WEIGHT@ *row = weights + from[e] * width + first;
#if INT8
            const int32_t count = counts == NULL ? 1 : counts[from[e]];
            for (unsigned n = 0; n < BLOCK; n++)
                part[n] += count * row[n];
#else
            const unsigned count = counts == NULL ? 1 : counts[from[e]];
            if (count == 1) {
                for (unsigned n = 0; n < BLOCK; n++)
                    part[n] += row[n];
            } else {
                for (unsigned n = 0; n < BLOCK; n++)
                    part[n] = add_product(part[n], (float)count, row[n]);
            }
#endif
        }
        for (unsigned n = 0; n < BLOCK; n++)
            sum[first + n] = part[n];
    }
}

#endif
#if SUMS_NONZEROS
/* The same with rows that hold only the weights that are not 0: input c has weights[starts[c]] to
   weights[starts[c + 1] - 1]. `gaps` is the distance from the neuron of one weight to that of the next. */
static void sum_nonzeros(@SUM@ *restrict sum, unsigned width, const @WEIGHT@ *weights, const uint8_t *gaps,
                         const @START@ *starts, const uint16_t *from, unsigned number, const uint16_t *counts)
{
    for (unsigned n = 0; n < width; n++)
        sum[n] = 0;
    for (unsigned e = 0; e < number; e++) {
        const unsigned end = starts[from[e] + 1];
        unsigned k = starts[from[e]];
        @SUM@ *to = sum;
#if INT8
        const int32_t count = counts == NULL ? 1 : counts[from[e]];
        for (; k < end; k++) {
            to += gaps[k];
            *to += count * weights[k];
        }
#else
        const unsigned count = counts == NULL ? 1 : counts[from[e]];
        if (count == 1) {
            for (; k < end; k++) {
                to += gaps[k];
                *to += weights[k];
            }
        } else {
            for (; k < end; k++) {
                to += gaps[k];
                *to = add_product(*to, (float)count, weights[k]);
            }
        }
#endif
    }
}

#endif
#if TAKES_BITS
static void set_bit(uint8_t *bits, unsigned number)
{
    bits[number / 8] |= (uint8_t)(1u << number % 8);
}

/* Clear all bits, and write the numbers of those that were set, in rising order. Returns how many these are. */
static unsigned take_bits(uint16_t *numbers, uint8_t *bits, unsigned bytes)
{
    unsigned count = 0;
    for (unsigned byte = 0; byte < bytes; byte++) {
        unsigned number = 8 * byte;
        for (unsigned left = bits[byte]; left > 0; left /= 2, number++)
            if (left % 2 == 1)
                numbers[count++] = (uint16_t)number;
        bits[byte] = 0;
    }
    return count;
}

#endif
@LAYER_STEPS@

static void run_step(network *net)
{
    net->step++;
@CALLS@
    for (unsigned e = 0; e < net->num_channels; e++)
        net->counts[net->channels[e]] = 0;
    net->num_channels = 0;
    if (net->num_spikes[NETWORK_LAYERS - 1] > 0 && net->decided_step == 0) {
        net->decided_step = net->step;
        net->label = net->spikes[NETWORK_LAYERS - 1][0]; /* of those that fire at once, the lower class */
    }
}

static bool is_done(const network *net)
{
    return net->decided_step > 0 && !net->runs_on;
}

/* Run until this many steps are done. */
static network_answer run_to(network *net, uint32_t steps)
{
    while (net->step < steps && !is_done(net))
        run_step(net);
    return net->decided_step > 0 ? NETWORK_DECIDED : NETWORK_RUNNING;
}

static uint32_t lower(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

void network_reset(network *net)
{
    *net = (network){0};
}

network_answer network_push(network *net, uint32_t time_us, uint32_t channel)
{
    const uint32_t step = time_us / NETWORK_STEP_US;
    if (channel >= NETWORK_CHANNELS)
        return NETWORK_NO_SUCH_CHANNEL;
    if (time_us < net->last_us)
        return NETWORK_BACK_IN_TIME;
    if (step == net->step && net->counts[channel] == NETWORK_MOST_EVENTS)
        return NETWORK_TOO_MANY;
    net->last_us = time_us;
    const network_answer answer = run_to(net, lower(step, NETWORK_STEPS));
    if (is_done(net))
        return answer;
    if (step >= NETWORK_STEPS || step < net->step) /* network_finish may have run on */
        return answer == NETWORK_DECIDED ? answer : NETWORK_PAST_WINDOW;
    if (net->counts[channel]++ == 0)
        net->channels[net->num_channels++] = (uint16_t)channel;
    net->has_events = true;
    return answer;
}

network_answer network_advance(network *net, uint32_t time_us)
{
    if (time_us < net->last_us)
        return NETWORK_BACK_IN_TIME;
    net->last_us = time_us;
    const uint32_t all = NETWORK_STEPS + NETWORK_EMPTY_STEPS;
    const network_answer answer = run_to(net, lower(time_us / NETWORK_STEP_US, all));
    return answer == NETWORK_RUNNING && net->step == all ? NETWORK_PAST_WINDOW : answer;
}

network_answer network_finish(network *net)
{
    if (!net->has_events)
        return NETWORK_NO_EVENTS;
    if (run_to(net, NETWORK_STEPS + NETWORK_EMPTY_STEPS) == NETWORK_DECIDED)
        return NETWORK_DECIDED;
    for (uint16_t n = 1; n < NETWORK_CLASSES; n++)
        if (net->peaks[n] > net->peaks[net->label])
            net->label = n;
    return NETWORK_BY_POTENTIAL;
}
