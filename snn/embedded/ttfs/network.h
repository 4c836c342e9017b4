/* @TITLE@ */
#ifndef NETWORK_H
#define NETWORK_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define NETWORK_CHANNELS @CHANNELS@ /* of the input */
#define NETWORK_HEIGHT @HEIGHT@
#define NETWORK_WIDTH @WIDTH@
#define NETWORK_INPUTS @INPUTS@   /* (channel * NETWORK_HEIGHT + row) * NETWORK_WIDTH + column is the number of an input */
#define NETWORK_CLASSES @CLASSES@
#define NETWORK_CLASS_NAMES {@CLASS_NAMES@}
#define NETWORK_T @T@      /* length of the window: spike times lie in 0 to T */
#define NETWORK_LAYERS @LAYERS@    /* of neurons that fire */

/* Answers. A negative one refuses the input and leaves the network unchanged. */
typedef enum {
    NETWORK_OK = 0,
    NETWORK_NO_SUCH_INPUT = -1,
    NETWORK_NO_SUCH_TIME = -2,   /* outside 0 to NETWORK_T */
    NETWORK_FIRED_BEFORE = -3    /* an input fires at most once */
} network_answer;

/* The whole state. The caller owns it; network_reset prepares it. */
typedef struct {
    uint16_t label;      /* the class, after network_finish */
    float decided_time;  /* when it was certain, in 0 to NETWORK_T from the first possible spike of the last layer */
    uint32_t operations; /* additions of a weight: each spike makes one for each of its synapses */

    /* The rest is internal. */
    uint16_t order[@MOST_EVENTS@]; /* the inputs of a layer that fire, in the order of their times */
    float memory[@MEMORY@];   /* spike times of a layer's inputs at one end, its sums and then its times at the other */
} network;

/* Forget everything: no input has fired. */
void network_reset(network *net);

/* An input fires at this time. Inputs may come in any order; those that do not come are silent. */
network_answer network_push(network *net, float time, uint32_t input);

/* There are no more inputs: run the network and return the class. Call network_reset before the next image. */
uint16_t network_finish(network *net);

/* Reset, push the pixels of an image, 0 to 255, and finish: bright pixels fire first, and those that are 0 are silent. */
uint16_t network_decide(network *net, const uint8_t *pixels);

#ifdef __cplusplus
}
#endif

#endif
