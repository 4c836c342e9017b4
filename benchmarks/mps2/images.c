/* Decide on the images of the file images.bin, NETWORK_INPUTS bytes each, with a network whose neurons fire once.

   Prints a line an image: label, time of the decision as the bits of a float, operations; with -DTIMED the instructions.
   With -DSPIKES the times of each layer come before it, as bits, in the order in which the network keeps them. */
#include "instructions.h"
#include "network.c"

#include <stdio.h>
#include <string.h>

static network net;
static uint8_t pixels[NETWORK_INPUTS];

static unsigned long bits(float value)
{
    uint32_t number;
    memcpy(&number, &value, sizeof number);
    return number;
}

#ifdef SPIKES
static void print_spikes(void)
{
    float *t = net.memory;
    network_reset(&net);
    for (uint32_t i = 0; i < NETWORK_INPUTS; i++)
        if (pixels[i] > 0)
            network_push(&net, (1 - (float)pixels[i] / 255) * T, i);
    for (uint32_t k = 0; k < STAGES - 1; k++) {
        const layer *l = &layers[k];
        t = run_layer(&net, l, t);
        printf("layer");
        for (uint32_t n = 0; n < l->out_height * l->out_width * l->out_channels; n++)
            printf(" %lx", bits(t[n]));
        printf("\n");
    }
}
#endif

int main(void)
{
    FILE *file = fopen("images.bin", "rb");
    if (file == NULL) {
        puts("no images.bin");
        return 1;
    }
    printf("size %lu\n", (unsigned long)sizeof(network));
    while (fread(pixels, 1, NETWORK_INPUTS, file) == NETWORK_INPUTS) {
#ifdef SPIKES
        print_spikes();
#endif
#ifdef TIMED
        count_instructions();
#endif
        network_decide(&net, pixels);
#ifdef TIMED
        const unsigned long counted = instructions();
#endif
        printf("decision %u %lx %lu", (unsigned)net.label, bits(net.decided_time), (unsigned long)net.operations);
#ifdef TIMED
        printf(" %lu", counted);
#endif
        printf("\n");
    }
    fclose(file);
    return 0;
}
