# The loop over the steps of a stream. In place of LAYERS, snn/ops/stream.py writes a line for each layer of a network.


@inlined
def run_step(layers, channels, counts, entry_of_channel, tally, spikes, output_counts):
    """Run the step whose entries are gathered, through all layers."""
    number = tally[ENTRIES]
    for k in range(number):
        entry_of_channel[channels[k]] = -1
    tally[ENTRIES] = 0
    tally[STEP] += 1
    # LAYERS
    for k in range(number):
        output_counts[channels[k]] += 1
    if number > 0 and tally[DECIDED] == 0:
        tally[DECIDED] = tally[STEP]
        tally[LABEL] = channels[0]  # in rising order: of those that fire at once, the lower class


@kernel
def advance(
    steps, event_channels, T, end, stops, layers, channels, counts, entry_of_channel, tally, spikes, output_counts
):  # fmt: skip
    """Take events, in time order, and run each step that is complete; then all steps up to `end`.

    A step is complete once an event comes after it. With `stops`, end with the step in which an output fires first.
    """
    if stops and tally[DECIDED] > 0:
        return
    for e in range(len(steps)):
        while tally[STEP] < steps[e]:
            run_step(layers, channels, counts, entry_of_channel, tally, spikes, output_counts)
            if stops and tally[DECIDED] > 0:
                return
        if steps[e] == T:
            continue
        c = event_channels[e]
        if entry_of_channel[c] < 0:
            entry_of_channel[c] = tally[ENTRIES]
            channels[tally[ENTRIES]] = c
            counts[tally[ENTRIES]] = 0
            tally[ENTRIES] += 1
        counts[entry_of_channel[c]] += 1
        tally[EVENTS] += 1
    while tally[STEP] < end:
        run_step(layers, channels, counts, entry_of_channel, tally, spikes, output_counts)
        if stops and tally[DECIDED] > 0:
            return
