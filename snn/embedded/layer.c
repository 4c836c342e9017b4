/* Layer @K@: @INPUTS@ inputs, @N@ neurons @NEURON@. */
static void run_layer_@K@(network *net)
{
#if INPUT
    const uint16_t *from = net->channels;
    unsigned number = net->num_channels;
#else
    const uint16_t *from = net->spikes[@BEFORE@];
    unsigned number = net->num_spikes[@BEFORE@];
#endif
#if AXONAL
    /* Each input waits in the row of the step in which it arrives. */
    const unsigned now = net->step % @D@;
    for (unsigned e = 0; e < number; e++) {
        const unsigned due = (now + input_delays_@K@[from[e]]) % @D@, place = net->num_late_@K@[due]++;
        net->late_@K@[due][place] = from[e];
#if INPUT
        net->late_counts_@K@[due][place] = net->counts[from[e]];
#endif
    }
    from = net->late_@K@[now];
    number = net->num_late_@K@[now];
    net->num_late_@K@[now] = 0;
#endif
#if SYNAPTIC
    /* What an input adds to a neuron waits in the row of the step in which it arrives. */
    const unsigned now = net->step % @D@;
    for (unsigned e = 0; e < number; e++) {
        const unsigned c = from[e];
        for (unsigned n = 0; n < @N@; n++) {
            const unsigned due = (now + synapse_delays_@K@[c][n]) % @D@;
#if INPUT
            const @SUM@ product = (@SUM@)net->counts[c] * weights_@K@[c][n];
            net->late_@K@[due][n] += product;
#else
            net->late_@K@[due][n] += weights_@K@[c][n];
#endif
        }
    }
    for (unsigned n = 0; n < @N@; n++) {
        net->sum[n] = net->late_@K@[now][n];
        net->late_@K@[now][n] = 0;
    }
#else
    for (unsigned n = 0; n < @N@; n++)
        net->sum[n] = 0;
    for (unsigned e = 0; e < number; e++)
#if INPUT
#if AXONAL
        add_row(net->sum, weights_@K@[from[e]], net->late_counts_@K@[now][e], @N@);
#else
        add_row(net->sum, weights_@K@[from[e]], net->counts[from[e]], @N@);
#endif
#else
        add_row(net->sum, weights_@K@[from[e]], 1, @N@);
#endif
#endif
#if RECURRENT
    for (unsigned n = 0; n < @N@; n++)
        net->fed_@K@[n] = 0;
#if RECURRENT_DELAYS
    const unsigned row = net->step % @PAST@;
    for (unsigned m = 0; m < @N@; m++)
        if (net->past_@K@[(row + @PAST@ - 1 - recurrent_delays_@K@[m]) % @PAST@][m])
            add_row(net->fed_@K@, recurrent_weights_@K@[m], 1, @N@);
#else
    for (unsigned e = 0; e < net->num_spikes[@INDEX@]; e++) /* those of the step before */
        add_row(net->fed_@K@, recurrent_weights_@K@[net->spikes[@INDEX@][e]], 1, @N@);
#endif
#endif
    unsigned fired = 0;
    for (unsigned n = 0; n < @N@; n++) {
#if INT8
        float x = (float)net->sum[n] * scales_@K@[n];
#else
        float x = net->sum[n];
#endif
#if BIAS
        x += biases_@K@[n];
#endif
#if RECURRENT
#if INT8
        x += (float)net->fed_@K@[n] * recurrent_scales_@K@[n];
#else
        x += net->fed_@K@[n];
#endif
#endif
        float h;
        bool spike = step_@NEURON@(&net->neurons_@K@[n], x, &h@VALUES@);
#if SPIKE_FIRST
        const bool due = net->due_@K@[n];
        net->due_@K@[n] = spike;
        spike = due;
#if OUTPUT
        const float due_h = net->due_potentials[n];
        net->due_potentials[n] = h;
        h = due_h;
#endif
#endif
#if OUTPUT
        net->potentials[n] = h;
        if (net->step == 1 || h > net->peaks[n])
            net->peaks[n] = h;
#endif
#if RECURRENT_DELAYS
        net->past_@K@[row][n] = spike;
#endif
        if (spike)
            net->spikes[@INDEX@][fired++] = (uint16_t)n;
    }
    net->num_spikes[@INDEX@] = (uint16_t)fired;
}
