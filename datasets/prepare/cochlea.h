/* The artificial cochlea of datasets/prepare/cochlea.py, which has its equations and prints its constants.

   static struct cochlea ear;                       // 0.65 MB; fastest at an address that 64 divides
   cochlea_start(&ear, tables, random);
   while (count > 0) {                              // samples at 48 kHz as they come
     int taken = cochlea_push(&ear, samples, count);
     for (int e = 0; e < ear.num_events; e++)       // in the order of their steps of 1/24000 s
       use(ear.steps[e], ear.units[e]);
     samples += taken, count -= taken;
   }

   No allocation, no library; everything is in the one struct. The spikes are those of Python if it is compiled by GCC or
   Clang without contraction (-ffp-contract=off). */

#ifndef COCHLEA_H
#define COCHLEA_H

#include <stdint.h>

#include "cochlea_constants.h"

#define COCHLEA_BLOCKS (EAR_PLACES_PADDED / EAR_LANES)
#define COCHLEA_MOST_SPIKES (EAR_HOP / EAR_REFRACTORY_STEPS + 1) /* of a cell in a hop: then it is refractory */
#define COCHLEA_MOST_EVENTS (EAR_PLACES_PADDED * COCHLEA_MOST_SPIKES)

/* Hair cells, fibres and bushy cells of neighbouring places; `Ear` in cochlea.py says what each is. */
struct cochlea_cells {
  float free[EAR_LANES], cleft[EAR_LANES], reprocessed[EAR_LANES];
  uint32_t random_high[EAR_LANES], random_low[EAR_LANES];
  float ready[EAR_LANES], fired[EAR_REFRACTORY_STEPS][EAR_LANES]; /* the oldest first */
  float current[EAR_LANES], potential[EAR_LANES];
  int32_t rest[EAR_LANES]; /* refractory steps left of a bushy cell, negative */
};

struct cochlea {
  int32_t num_events; /* of the last push */
  int32_t steps_done; /* all events before this step have been given */
  float gain;         /* of the sound within the next hop; may be changed before each push */
  int32_t missing;    /* samples until the next hop */
  const float *tables;
  const float *soon; /* the tables of the next places, which are fetched into the cache meanwhile */
  char unused[32]; /* all that follows lies within cache lines if the struct does */
  int32_t steps[COCHLEA_MOST_EVENTS];
  uint16_t units[COCHLEA_MOST_EVENTS];
  uint16_t num_found[EAR_PLACES_PADDED], found[EAR_PLACES_PADDED][COCHLEA_MOST_SPIKES];
  struct cochlea_cells cells[COCHLEA_BLOCKS];
  float audio[EAR_WINDOW];
  float spectrum[2][EAR_MOST_BINS];
  float work[EAR_MOST_POINTS * EAR_LANES], answer[EAR_MOST_POINTS * EAR_LANES];
  float velocity[(EAR_REFRACTORY_STEPS + EAR_HOP) * EAR_LANES];
};

/* Begin in long silence. tables: as `cochlea.tables()` gives them; random: [EAR_PLACES] states of the noise, none of them 0. */
void cochlea_start(struct cochlea *ear, const float *tables, const uint64_t *random);

/* Take samples until a hop is complete, or all: returns how many were taken. The events of the hop are then in `steps` and
   `units`. They lie LOOKAHEAD steps and up to a hop behind the samples, as the membrane responds before its sound. */
int cochlea_push(struct cochlea *ear, const float *samples, int count);

#endif
