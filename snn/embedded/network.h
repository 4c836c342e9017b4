/* @TITLE@ */
#ifndef NETWORK_H
#define NETWORK_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define NETWORK_CHANNELS @CHANNELS@    /* of the input: events have the channels 0 to NETWORK_CHANNELS - 1 */
#define NETWORK_CLASSES @CLASSES@
#define NETWORK_CLASS_NAMES {@CLASS_NAMES@}
#define NETWORK_STEP_US @STEP_US@    /* length of a step in microseconds */
#define NETWORK_STEPS @STEPS@       /* that take events; an event after them is past the window */
#define NETWORK_EMPTY_STEPS @EMPTY_STEPS@ /* after those, in which the network runs on */
#define NETWORK_LAYERS @LAYERS@      /* the output is the last */
#define NETWORK_NEURONS {@NEURONS@}
#define NETWORK_WIDEST @WIDEST@    /* the most neurons of a layer */
#define NETWORK_MOST_EVENTS @MOST_EVENTS@ /* of one channel in one step */

/* Answers. A negative one refuses the input and leaves the network unchanged. */
typedef enum {
    NETWORK_RUNNING = 0,      /* no output neuron has fired yet */
    NETWORK_DECIDED = 1,      /* `label` holds the class */
    NETWORK_PAST_WINDOW = 2,  /* the window is over, and an event after it was left out: now call network_finish */
    NETWORK_BY_POTENTIAL = 3, /* no output neuron fired in the window: `label` holds the class of the highest potential */
    NETWORK_BACK_IN_TIME = -1,
    NETWORK_NO_SUCH_CHANNEL = -2,
    NETWORK_TOO_MANY = -3,    /* events of one channel in one step */
    NETWORK_NO_EVENTS = -4    /* nothing to decide on */
} network_answer;

@STATES@
/* The whole state. The caller owns it; network_reset prepares it. */
typedef struct {
    uint32_t step;          /* steps run so far */
    uint32_t decided_step;  /* the step, from 1, in which an output neuron fired first; 0: none has */
    uint16_t label;         /* the class, with the answers NETWORK_DECIDED and NETWORK_BY_POTENTIAL */
    bool runs_on;           /* set it after network_reset to continue after the decision, up to the end of the window */

    uint16_t num_spikes[NETWORK_LAYERS]; /* of each layer in the last step, and which neurons fired, in rising order */
    uint16_t spikes[NETWORK_LAYERS][NETWORK_WIDEST];
    float potentials[NETWORK_CLASSES];   /* of the output neurons in the last step, before their reset */
    float peaks[NETWORK_CLASSES];        /* the highest of them so far */

    /* The rest is internal. */
    uint32_t last_us;
    bool has_events;
    uint16_t num_channels;  /* with events in the step that is being gathered, in the order of their first events */
    uint16_t channels[@ARRIVING@], counts[@ARRIVING@];
    @SUM@ sum[@WIDEST_ROW@];
#if TAKES_BITS
    uint16_t arrived[@MOST_ARRIVING@];
#endif
@MEMORY@
} network;

/* Forget everything: the next event begins a new recording. */
void network_reset(network *net);

/* Take an event, `time_us` microseconds after the recording began; times may not fall. All steps that ended before it
   are run first. After the decision nothing more is done, unless `runs_on`. */
network_answer network_push(network *net, uint32_t time_us, uint32_t channel);

/* Run all steps that end at or before `time_us`: there are no more events before that time. Without such calls, time
   passes only when the next event arrives. */
network_answer network_advance(network *net, uint32_t time_us);

/* There are no more events: run to the decision or the end of the window. */
network_answer network_finish(network *net);

#ifdef __cplusplus
}
#endif

#endif
