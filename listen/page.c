/* The calls of the page: pass sound to the cochlea and its events to the network, and record each step of the network. */

#include "cochlea.h"
#include "network.h"

#define ALL_STEPS (NETWORK_STEPS + NETWORK_EMPTY_STEPS)
#define EXPORT(name) __attribute__((export_name(#name)))

static struct cochlea ear;
static network net;
static float tables[EAR_TABLES], audio[2 * EAR_HOP], potentials[ALL_STEPS][NETWORK_CLASSES];
static uint64_t noise[EAR_PLACES];
static struct {
  uint16_t step, layer, neuron;
} spikes[ALL_STEPS * ALL_NEURONS];
static uint32_t num_spikes;

/* Of an event as Python's cochlea writes its time: in float32 seconds. */
static uint32_t time_us(int32_t step) { return (uint32_t)((double)(float)(step * (1.0 / EAR_RATE_HZ)) * 1e6); }

/* Run the network to a time, one step after the other, and note each. */
static void advance(uint32_t until_us) {
  while (net.step < ALL_STEPS && (net.step + 1) * NETWORK_STEP_US <= until_us) {
    network_advance(&net, (net.step + 1) * NETWORK_STEP_US);
    const uint32_t step = net.step - 1;
    for (uint32_t n = 0; n < NETWORK_CLASSES; n++)
      potentials[step][n] = net.potentials[n];
    for (uint16_t layer = 0; layer < NETWORK_LAYERS; layer++)
      for (uint32_t k = 0; k < net.num_spikes[layer]; k++, num_spikes++) {
        spikes[num_spikes].step = (uint16_t)step;
        spikes[num_spikes].layer = layer;
        spikes[num_spikes].neuron = net.spikes[layer][k];
      }
  }
}

EXPORT(begin) void begin(void) {
  cochlea_start(&ear, tables, noise);
  network_reset(&net);
  net.runs_on = true;
  num_spikes = 0;
}

/* Hear the first `count` of `audio`; events from `end` on, a step of the cochlea, are left out. Returns how many were taken:
   where a hop is complete, not more. */
EXPORT(hear) int32_t hear(int32_t count, float gain, int32_t end) {
  ear.gain = gain;
  const int32_t taken = cochlea_push(&ear, audio, count), given = ear.num_events;
  for (ear.num_events = 0; ear.num_events < given && ear.steps[ear.num_events] < end; ear.num_events++) {
    const uint32_t at_us = time_us(ear.steps[ear.num_events]);
    advance(at_us);
    network_push(&net, at_us, (uint32_t)ear.units[ear.num_events] / POOL); /* neighbours are one input */
  }
  advance(time_us(ear.steps_done < end ? ear.steps_done : end));
  return taken;
}

/* No more is heard: run to the end of the window. Returns the network's answer. */
EXPORT(finish) int32_t finish(void) {
  advance(ALL_STEPS * (uint32_t)NETWORK_STEP_US);
  return network_finish(&net);
}

EXPORT(tables_at) float *tables_at(void) { return tables; }
EXPORT(noise_at) uint64_t *noise_at(void) { return noise; }
EXPORT(audio_at) float *audio_at(void) { return audio; }
EXPORT(potentials_at) float *potentials_at(void) { return *potentials; }
EXPORT(spikes_at) void *spikes_at(void) { return spikes; }
EXPORT(num_spikes) uint32_t get_num_spikes(void) { return num_spikes; }
EXPORT(steps_at) int32_t *steps_at(void) { return ear.steps; }
EXPORT(units_at) uint16_t *units_at(void) { return ear.units; }
EXPORT(num_events) int32_t num_events(void) { return ear.num_events; }
EXPORT(steps_done) int32_t steps_done(void) { return ear.steps_done; }
EXPORT(network_steps) uint32_t network_steps(void) { return net.step; }
EXPORT(decided_step) uint32_t decided_step(void) { return net.decided_step; }
EXPORT(label) uint32_t label(void) { return net.label; }
