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
        net->late_counts_@K@[due][from[e]] = net->counts[from[e]];
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
            const unsigned due = (now + synapse_delays_@K@[c * @N@ + n]) % @D@;
#if INPUT
            const @SUM@ product = (@SUM@)net->counts[c] * weights_@K@[c * @ROW@ + n];
            net->late_@K@[due][n] += product;
#else
            net->late_@K@[due][n] += weights_@K@[c * @ROW@ + n];
#endif
        }
    }
    for (unsigned n = 0; n < @N@; n++) {
        net->sum[n] = net->late_@K@[now][n];
        net->late_@K@[now][n] = 0;
    }
#else
#if INPUT
#if AXONAL
    sum_rows(net->sum, weights_@K@, @ROW@, from, number, net->late_counts_@K@[now]);
#else
    sum_rows(net->sum, weights_@K@, @ROW@, from, number, net->counts);
#endif
#else
    sum_rows(net->sum, weights_@K@, @ROW@, from, number, NULL);
#endif
#endif
#if RECURRENT
#if RECURRENT_DELAYS
    const unsigned row = net->step % @PAST@;
    number = 0;
    for (unsigned n = 0; n < @N@; n++)
        if (net->past_@K@[(row + @PAST@ - 1 - recurrent_delays_@K@[n]) % @PAST@][n])
            net->coming_@K@[number++] = (uint16_t)n;
    sum_rows(net->fed_@K@, recurrent_weights_@K@, @ROW@, net->coming_@K@, number, NULL);
#else
    /* These are still the spikes of the step before. */
    sum_rows(net->fed_@K@, recurrent_weights_@K@, @ROW@, net->spikes[@INDEX@], net->num_spikes[@INDEX@], NULL);
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
