# The loop over the steps of a stream. The first function is printed for each kind K of layer, with its neuron's steps.


@inlined
def run_layer_K(
    tally, channels, counts, number, scratch, rows, drive, fan_out_C, bias_N, VT_NN, whole_N, past_DN, fan_out_N,
    picked, spike_first, is_output,
):  # fmt: skip
    """Run one step of a `Layer`. Entries come in and spikes go out in `channels` and `counts`; return their number."""
    x, s, h = rows[X, 0], rows[S, 0], rows[H, 0]
    N = len(x)
    if fan_out_C is not None:  # events count when they come in, even if a delay makes them arrive later
        if len(fan_out_C) == 1:
            tally[SYNAPTIC] += number * fan_out_C[0]
        else:
            for e in range(number):
                tally[SYNAPTIC] += fan_out_C[channels[e]]
    drive_K(rows[X], tally[STEP], channels, counts, number, *drive)
    if bias_N is not None:
        for j in range(N):
            x[j] += bias_N[j]
    if VT_NN is not None:  # s still holds the spikes of the step before
        fed = rows[FED, 0]
        fed[:] = 0
        if len(fan_out_N) == 1:
            tally[SYNAPTIC] += fan_out_N[0] * np.count_nonzero(s)
        else:
            for j in range(N):
                tally[SYNAPTIC] += fan_out_N[j] if s[j] != 0 else 0
        if whole_N is None:
            add_rows(fed, s, VT_NN, picked)
        else:
            for n in range(N):
                h[n] = past_DN[(tally[STEP] - 1 - whole_N[n]) % len(past_DN), n]
            add_rows(fed, h, VT_NN, picked)
        for j in range(N):
            x[j] += fed[j]
    size_of_tile = len(scratch) // -(-N // TILE)
    for k in range(0, N, TILE):
        at, width = k // TILE * size_of_tile, min(TILE, N - k)
        steps_K(rows[X], None, rows[S], rows[H], None, None, scratch, at, k, width, 0, 1, False)
    if spike_first:
        s_due, peak_due = rows[DUE, 0], rows[PEAK_DUE, 0]
        for j in range(N):
            s[j], s_due[j] = s_due[j], s[j]
            h[j], peak_due[j] = peak_due[j], h[j]
    if whole_N is not None:
        past_DN[tally[STEP] % len(past_DN)] = s
    if is_output:
        peak = rows[PEAK, 0]
        for j in range(N):
            peak[j] = max(peak[j], h[j])
    number = 0
    for first in range(0, N, LANES):
        fired = unlike(load_part(s, first, N - first, LANES), 0)
        while fired:
            channels[number] = first + lowest(fired)
            counts[number] = s[channels[number]]
            number += 1
            fired &= fired - np.uint64(1)
    return number


# ALL LAYERS


@kernel
def advance(
    steps, event_channels, T, end, stops, layers, channels, counts, entry_of_channel, tally, spikes, output_counts
):  # fmt: skip
    """Take events, in time order, and run each step that is complete; then run all steps up to `end`.

    A step is complete once a later event comes. With `stops`, end with the step in which an output first fires.
    """
    if stops and tally[DECIDED] > 0:
        return
    for e in range(len(steps) + 1):  # one more than there are events: then come the steps up to `end`
        while tally[STEP] < (steps[e] if e < len(steps) else end):
            # This stands here, not in a function of its own, because numba would compile all layers once more for it.
            number = tally[ENTRIES]
            for k in range(number):
                entry_of_channel[channels[k]] = -1
            tally[ENTRIES] = 0
            tally[STEP] += 1
            # EACH LAYER
            for k in range(number):
                output_counts[channels[k]] += 1
            if number > 0 and tally[DECIDED] == 0:
                tally[DECIDED] = tally[STEP]
                tally[LABEL] = channels[0]  # channels ascend: of classes that fire in the same step, the lowest counts
            if stops and tally[DECIDED] > 0:
                return
        if e == len(steps) or steps[e] == T or steps[e] < tally[STEP]:  # past the window, or `finish` has run on
            continue
        c = event_channels[e]
        if entry_of_channel[c] < 0:
            entry_of_channel[c] = tally[ENTRIES]
            channels[tally[ENTRIES]] = c
            counts[tally[ENTRIES]] = 0
            tally[ENTRIES] += 1
        counts[entry_of_channel[c]] += 1
        tally[EVENTS] += 1
