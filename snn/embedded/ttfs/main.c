/* Decide on images: ./network FILE ...   A file holds images one after the other, a byte for each pixel, channel by
   channel and row by row. */
#include "network.h"

#include <stdio.h>

static network net;

/* Decide on all images of a file: 0, or 1 after a message. */
static int decide(const char *name)
{
    static const char *const classes[] = NETWORK_CLASS_NAMES;
    uint8_t pixels[NETWORK_INPUTS];
    unsigned long image = 0;
    size_t read;
    FILE *file = fopen(name, "rb");
    if (file == NULL) {
        fprintf(stderr, "%s: cannot be opened\n", name);
        return 1;
    }
    for (; (read = fread(pixels, 1, NETWORK_INPUTS, file)) == NETWORK_INPUTS; image++) {
        const uint16_t label = network_decide(&net, pixels);
        printf("%s, image %lu: %s, certain after %.4f windows\n", name, image, classes[label],
               NETWORK_LAYERS + (double)net.decided_time / NETWORK_T);
    }
    fclose(file);
    if (read > 0 || image == 0) {
        fprintf(stderr, "%s: its size is not a multiple of %d bytes, those of an image\n", name, NETWORK_INPUTS);
        return 1;
    }
    return 0;
}

int main(int count, char **names)
{
    int failed = count < 2;
    if (failed)
        fprintf(stderr, "give files of images: %s FILE ...; an image is %d bytes\n", names[0], NETWORK_INPUTS);
    for (int k = 1; k < count; k++)
        failed |= decide(names[k]);
    return failed ? 2 : 0;
}
