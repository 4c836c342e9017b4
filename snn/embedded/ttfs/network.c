/* @TITLE@
   Every sum is in the order of `snn.ttfs.events`, so that each spike time is the same; therefore compile it without
   -ffast-math and with -ffp-contract=off. */
#include "network.h"

#include <float.h>
#include <math.h>
#include <stddef.h>

#if defined(__FAST_MATH__) || FLT_EVAL_METHOD != 0
#error "potentials must be rounded as float: no -ffast-math, and on 32-bit x86 -msse2 -mfpmath=sse"
#endif

/* A layer of neurons, or a pool, which has no weights. Inputs and outputs are (height, width, channels), so that the
   targets of a spike are neighbours. A fully connected layer is a convolution over a single place. */
typedef struct {
    const @WEIGHT@ *weights; /* (channels, kernel, kernel, out_channels) */
#if INT8
    const float *scales; /* of the weights, for each out_channel */
#endif
    const float *biases; /* of each out_channel, added to S; NULL for none */
    uint32_t channels, height, width, out_channels, out_height, out_width;
    uint8_t kernel, stride, padding;
    bool averages; /* a pool: it passes on the mean lead, otherwise the earliest spike */
} layer;

#include "weights.h"

enum { STAGES = sizeof layers / sizeof layers[0], MEMORY = @MEMORY@ };
static const float T = NETWORK_T, silent = INFINITY;

static bool is_earlier(const float *t, uint16_t a, uint16_t b)
{
    return t[a] < t[b] || (t[a] == t[b] && a < b);
}

/* Let an input sink in a heap whose top is the latest one. */
static void sink(uint16_t *heap, uint32_t number, uint32_t at, const float *t)
{
    const uint16_t sinking = heap[at];
    for (uint32_t child; (child = 2 * at + 1) < number; at = child) {
        if (child + 1 < number && is_earlier(t, heap[child], heap[child + 1]))
            child++;
        if (!is_earlier(t, sinking, heap[child]))
            break;
        heap[at] = heap[child];
    }
    heap[at] = sinking;
}

/* Write the inputs that fire in the order of their times, of equal ones the lower number first; return how many. */
static uint32_t sort(uint16_t *order, const float *t, uint32_t inputs)
{
    uint32_t number = 0;
    for (uint32_t i = 0; i < inputs; i++)
        if (t[i] != silent)
            order[number++] = (uint16_t)i;
    for (uint32_t at = number / 2; at-- > 0;)
        sink(order, number, at, t);
    for (uint32_t left = number; left > 1;) {
        const uint16_t latest = order[0];
        order[0] = order[--left];
        order[left] = latest;
        sink(order, left, 0, t);
    }
    return number;
}

/* Add each event's weights to S, and the weights times its lead to A. */
static uint32_t receive(const layer *l, const uint16_t *order, uint32_t events, const float *t, float *S, float *A)
{
    uint32_t targets = 0;
    for (uint32_t e = 0; e < events; e++) {
        const uint32_t i = order[e], c = i % l->channels;
        const uint32_t right = i / l->channels % l->width + l->padding, down = i / l->channels / l->width + l->padding;
        const float lead = T - t[i];
        for (uint32_t ky = 0; ky < l->kernel && ky <= down; ky++) {
            const uint32_t row = (down - ky) / l->stride;
            if (row * l->stride + ky != down || row >= l->out_height)
                continue;
            for (uint32_t kx = 0; kx < l->kernel && kx <= right; kx++) {
                const uint32_t column = (right - kx) / l->stride;
                if (column * l->stride + kx != right || column >= l->out_width)
                    continue;
                const @WEIGHT@ *w = l->weights + ((c * l->kernel + ky) * l->kernel + kx) * l->out_channels;
                float *restrict s = S + (row * l->out_width + column) * l->out_channels, *restrict a = A + (s - S);
                for (uint32_t n = 0; n < l->out_channels; n++) {
                    s[n] += (float)w[n];
                    a[n] += (float)w[n] * lead;
                }
                targets++;
            }
        }
    }
    return targets * l->out_channels;
}

/* The time at which a neuron fires. */
static float fire(float S, float A)
{
    if (A >= T)
        return 0;
    if (T * S + A < 0@SILENT_WITHOUT_DRIVE@)
        return silent;
    const float time = (T - A) * (1 / (1 + S));
    return time > T ? T : time;
}

static void pool(const layer *l, float *t)
{
    float *to = t; /* the same place: no value is overwritten before it is read */
    for (uint32_t row = 0; row < l->out_height; row++)
        for (uint32_t column = 0; column < l->out_width; column++)
            for (uint32_t c = 0; c < l->channels; c++) {
                float earliest = silent, lead = 0;
                for (uint32_t k = 0; k < (uint32_t)l->kernel * l->kernel; k++) {
                    const uint32_t y = row * l->kernel + k / l->kernel, x = column * l->kernel + k % l->kernel;
                    const float time = t[(y * l->width + x) * l->channels + c];
                    earliest = time < earliest ? time : earliest;
                    lead += time == silent ? 0 : T - time;
                }
                *to++ = l->averages && earliest != silent ? T - lead / (float)(l->kernel * l->kernel) : earliest;
            }
}

/* Run a layer on the spike times of its inputs, and return where its own are. */
static float *run_layer(network *net, const layer *l, float *t)
{
    if (l->weights == NULL) {
        pool(l, t);
        return t;
    }
    const uint32_t neurons = l->out_height * l->out_width * l->out_channels;
    float *A = t == net->memory ? net->memory + MEMORY - neurons : net->memory;
    float *S = t == net->memory ? A - neurons : A + neurons;
    for (uint32_t n = 0; n < neurons; n++)
        S[n] = A[n] = 0;
    const uint32_t events = sort(net->order, t, l->height * l->width * l->channels);
    net->operations += receive(l, net->order, events, t, S, A);
    for (uint32_t n = 0; n < neurons; n++) {
        const uint32_t c = n % l->out_channels;
        const float bias = l->biases == NULL ? 0 : l->biases[c];
#if INT8
        A[n] = fire(S[n] * l->scales[c] + bias, A[n] * l->scales[c]);
#else
        A[n] = fire(S[n] + bias, A[n]);
#endif
    }
    return A;
}

static float weight(const layer *l, uint32_t input, uint32_t n)
{
#if INT8
    return (float)l->weights[input * NETWORK_CLASSES + n] * l->scales[n];
#else
    return l->weights[input * NETWORK_CLASSES + n];
#endif
}

/* How much more an input may add to a class than to the leader, for each unit of its lead. */
static float gain(const layer *l, uint32_t input, uint32_t n, uint32_t leader)
{
    const float difference = weight(l, input, n) - weight(l, input, leader);
    return difference > 0 ? difference : 0;
}

/* Add up the potentials V(2T), event by event, until no class can overtake the leader any more. An input that fires at
   t adds w (2T - t), of which w T is certain beforehand. */
static void read_out(network *net, const layer *l, const float *t)
{
    const uint32_t events = sort(net->order, t, l->channels);
    uint32_t leader = NETWORK_CLASSES, e;
    float V[NETWORK_CLASSES] = {0}, reach[NETWORK_CLASSES] = {0}, now = 0, certain;
    for (e = 0; e < events; e++)
        for (uint32_t n = 0; n < NETWORK_CLASSES; n++)
            V[n] += weight(l, net->order[e], n) * T;
    for (e = 0;; e++) {
        uint32_t best = 0;
        for (uint32_t n = 1; n < NETWORK_CLASSES; n++)
            best = V[n] > V[best] ? n : best;
        for (uint32_t n = 0; n < NETWORK_CLASSES; n++) {
            if (best == leader) {
                reach[n] -= gain(l, net->order[e - 1], n, leader);
                continue;
            }
            reach[n] = 0;
            for (uint32_t k = e; k < events; k++)
                reach[n] += gain(l, net->order[k], n, best);
        }
        leader = best;
        certain = now; /* the time from which on the leader is safe, unless an event comes before */
        for (uint32_t n = 0; n < NETWORK_CLASSES; n++) {
            const float lead = V[leader] - V[n] - ROUNDING;
            if (n != leader && lead <= 0)
                certain = T;
            else if (n != leader && reach[n] > 0 && T - lead / reach[n] > certain)
                certain = T - lead / reach[n];
        }
        const float until = e < events ? t[net->order[e]] : T;
        if (certain <= until || e == events)
            break;
        for (uint32_t n = 0; n < NETWORK_CLASSES; n++)
            V[n] += weight(l, net->order[e], n) * (T - until);
        now = until;
    }
    net->label = (uint16_t)leader;
    net->decided_time = certain < T ? certain : T;
    net->operations += (events + e) * NETWORK_CLASSES;
}

void network_reset(network *net)
{
    net->operations = 0;
    for (uint32_t i = 0; i < NETWORK_INPUTS; i++)
        net->memory[i] = silent;
}

network_answer network_push(network *net, float time, uint32_t input)
{
    enum { PLACES = NETWORK_HEIGHT * NETWORK_WIDTH };
    if (input >= NETWORK_INPUTS)
        return NETWORK_NO_SUCH_INPUT;
    if (!(time >= 0 && time <= T)) /* also if it is not a number */
        return NETWORK_NO_SUCH_TIME;
    float *t = net->memory + input % PLACES * NETWORK_CHANNELS + input / PLACES;
    if (*t != silent)
        return NETWORK_FIRED_BEFORE;
    *t = time;
    return NETWORK_OK;
}

uint16_t network_finish(network *net)
{
    float *t = net->memory;
    for (uint32_t k = 0; k < STAGES - 1; k++)
        t = run_layer(net, &layers[k], t);
    read_out(net, &layers[STAGES - 1], t);
    return net->label;
}

uint16_t network_decide(network *net, const uint8_t *pixels)
{
    network_reset(net);
    for (uint32_t i = 0; i < NETWORK_INPUTS; i++)
        if (pixels[i] > 0)
            network_push(net, (1 - (float)pixels[i] / 255) * T, i);
    return network_finish(net);
}
