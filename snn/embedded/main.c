/* Decide on recordings: ./network FILE ...   A line of a file is an event: its time in microseconds, and its channel. */
#include "network.h"

#include <stdio.h>

static network net;

/* Push all events of a file, in the order of their times: 0, or 1 after a message. */
static int decide(const char *name)
{
    static const char *const classes[] = NETWORK_CLASS_NAMES;
    static const char *const why[] = {
        "not a time in microseconds and a channel",
        "its time is earlier than that of the previous event", /* NETWORK_BACK_IN_TIME */
        "no such channel",                             /* NETWORK_NO_SUCH_CHANNEL */
        "too many events of this channel in one step", /* NETWORK_TOO_MANY */
    };
    FILE *file = fopen(name, "r");
    if (file == NULL) {
        fprintf(stderr, "%s: cannot be opened\n", name);
        return 1;
    }
    network_answer answer = NETWORK_RUNNING;
    unsigned long time_us, channel, events = 0;
    int read = EOF;
    network_reset(&net);
    while (answer == NETWORK_RUNNING) {
        read = fscanf(file, "%lu %lu", &time_us, &channel);
        events++;
        if (read != 2 || time_us > UINT32_MAX || channel > UINT32_MAX)
            break;
        answer = network_push(&net, (uint32_t)time_us, (uint32_t)channel);
    }
    fclose(file);
    if (answer < 0 || (answer == NETWORK_RUNNING && read != EOF)) {
        fprintf(stderr, "%s, event %lu: %s\n", name, events, answer < 0 ? why[-answer] : why[0]);
        return 1;
    }
    answer = network_finish(&net);
    if (answer == NETWORK_NO_EVENTS)
        printf("%s: no event within the window, no decision\n", name);
    else if (answer == NETWORK_DECIDED)
        printf("%s: %s at step %lu\n", name, classes[net.label], (unsigned long)net.decided_step);
    else
        printf("%s: %s by potential\n", name, classes[net.label]);
    return 0;
}

int main(int count, char **names)
{
    int failed = count < 2;
    if (failed)
        fprintf(stderr, "give recordings: %s FILE ...; each line is an event: microseconds and channel\n", names[0]);
    for (int k = 1; k < count; k++)
        failed |= decide(names[k]);
    return failed ? 2 : 0;
}
