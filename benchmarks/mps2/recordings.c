/* Decide on the recordings of the file recordings.txt: a line is an event, "end" ends a recording.

   Prints a line a recording: label, step of the decision (0: by potential), and with -DTIMED the instructions to the
   decision and to the end of the window. With -DSPIKES the spikes of all layers before it, step by step. */
#include "instructions.h"
#include "network.h"

#include <stdio.h>
#include <stdlib.h>

enum { MOST = 1 << 18 };
static uint32_t times_us[MOST], channels[MOST];
static network net;

static int failed(const char *why)
{
    puts(why);
    return 1;
}

#ifdef SPIKES
static void print_spikes(void)
{
    for (unsigned layer = 0; layer < NETWORK_LAYERS; layer++)
        for (unsigned k = 0; k < net.num_spikes[layer]; k++)
            printf("spike %lu %u %u\n", (unsigned long)net.step, layer, (unsigned)net.spikes[layer][k]);
}

/* As a clock would: step by step, so that each step's spikes can be seen. */
static void advance_to(uint32_t time_us)
{
    for (uint32_t next = (net.step + 1) * NETWORK_STEP_US; next <= time_us; next += NETWORK_STEP_US) {
        if (network_advance(&net, next) < 0 || next > (NETWORK_STEPS + NETWORK_EMPTY_STEPS) * NETWORK_STEP_US)
            return;
        print_spikes();
    }
}
#endif

/* The answer to a recording of `number` events. */
static network_answer decide(unsigned number, bool runs_on)
{
    network_reset(&net);
    net.runs_on = runs_on;
    for (unsigned k = 0; k < number; k++) {
#ifdef SPIKES
        advance_to(times_us[k]);
#endif
        const network_answer answer = network_push(&net, times_us[k], channels[k]);
        if (answer < 0 || answer == NETWORK_PAST_WINDOW || (answer == NETWORK_DECIDED && !runs_on))
            break;
    }
#ifdef SPIKES
    advance_to((NETWORK_STEPS + NETWORK_EMPTY_STEPS) * NETWORK_STEP_US);
#endif
    return network_finish(&net);
}

int main(void)
{
    FILE *file = fopen("recordings.txt", "r");
    char line[64];
    unsigned number = 0;
    if (file == NULL)
        return failed("no recordings.txt");
    printf("size %lu\n", (unsigned long)sizeof(network));
    while (fgets(line, sizeof line, file) != NULL) {
        if (line[0] != 'e') {
            char *rest;
            if (number == MOST)
                return failed("too many events");
            times_us[number] = (uint32_t)strtoul(line, &rest, 10);
            channels[number++] = (uint32_t)strtoul(rest, NULL, 10);
            continue;
        }
#ifdef SPIKES
        const network_answer answer = decide(number, true);
#else
#ifdef TIMED
        count_instructions();
#endif
        const network_answer answer = decide(number, false);
#endif
        printf("decision %d %u %lu", (int)answer, (unsigned)net.label, (unsigned long)net.decided_step);
#ifdef TIMED
        const unsigned long to_decision = instructions();
        count_instructions();
        decide(number, true);
        printf(" %lu %lu", to_decision, instructions());
#endif
        printf("\n");
        number = 0;
    }
    fclose(file);
    return 0;
}
