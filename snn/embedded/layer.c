/* Layer @K@: @SENT@ inputs, @N@ neurons @NEURON@. */
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
#if INPUT
#if TWICE
    const unsigned before = net->num_late_@K@[now]; /* these were sent in earlier steps */
#endif
    for (unsigned e = 0; e < number; e++) {
        const unsigned c = from[e], due = (now + input_delays_@K@[@FIRST_LATE@ + c]) % @D@, place = net->num_late_@K@[due]++;
        net->late_@K@[due][place] = (@CHANNEL@)c;
        net->late_counts_@K@[due][place] = (@COUNT@)net->counts[c];
#if TWICE
#else
        net->counts[c] = 0;
#endif
    }
#if TWICE
    /* Those that arrive at once are summed between late ones of earlier steps and of this step. */
    for (unsigned e = number; e-- > 0;)
        net->channels[before + e] = net->channels[e];
    for (unsigned e = 0; e < net->num_late_@K@[now]; e++) {
        const unsigned c = @FIRST_LATE@ + net->late_@K@[now][e];
        net->channels[e < before ? e : number + e] = (uint16_t)c;
        net->counts[c] = net->late_counts_@K@[now][e];
    }
    number = net->num_channels = (uint16_t)(number + net->num_late_@K@[now]);
    net->num_late_@K@[now] = 0;
#else
    number = net->num_channels = net->num_late_@K@[now];
    net->num_late_@K@[now] = 0;
    for (unsigned e = 0; e < number; e++) {
        net->channels[e] = net->late_@K@[now][e];
        net->counts[net->channels[e]] = net->late_counts_@K@[now][e];
    }
#endif
#else
    for (unsigned e = 0; e < number; e++)
        for (unsigned c = from[e]; c < @INPUTS@; c += @SENT@)
            set_bit(net->late_@K@[(now + input_delays_@K@[c]) % @D@], c);
    number = take_bits(net->arrived, net->late_@K@[now], @INPUT_BYTES@);
    /* They are summed in the order in which they were sent: those with longer delays first. */
    for (unsigned e = 1; e < number; e++) {
        const uint16_t c = net->arrived[e];
        unsigned place = e;
        for (; place > 0 && input_delays_@K@[net->arrived[place - 1]] < input_delays_@K@[c]; place--)
            net->arrived[place] = net->arrived[place - 1];
        net->arrived[place] = c;
    }
    from = net->arrived;
#endif
#endif
#if SYNAPTIC
    /* What an input adds to a neuron waits in the row of the step in which it arrives. */
    const unsigned now = net->step % @D@;
    for (unsigned e = 0; e < number; e++) {
        const unsigned c = from[e];
#if SPARSE
        for (unsigned k = starts_@K@[c], n = 0; k < starts_@K@[c + 1]; k++) {
            n += gaps_@K@[k];
            const unsigned due = (now + synapse_delays_@K@[k]) % @D@;
#else
        for (unsigned n = 0; n < @N@; n++) {
            const unsigned k = c * @N@ + n, due = (now + synapse_delays_@K@[k]) % @D@;
#endif
#if INPUT
            const @SUM@ product = (@SUM@)net->counts[c] * weights_@K@[k];
            net->late_@K@[due][n] += product;
#else
            net->late_@K@[due][n] += weights_@K@[k];
#endif
        }
    }
    for (unsigned n = 0; n < @N@; n++) {
        net->sum[n] = net->late_@K@[now][n];
        net->late_@K@[now][n] = 0;
    }
#else
#if SPARSE
    sum_nonzeros(net->sum, @N@, weights_@K@, gaps_@K@, starts_@K@, from, number, @COUNTS@);
#else
    sum_rows(net->sum, @ROW@, weights_@K@, from, number, @COUNTS@);
#endif
#endif
#if RECURRENT
#if RECURRENT_DELAYS
    from = net->arrived;
    number = take_bits(net->arrived, net->returning_@K@[net->step % @RETURN_D@], @BYTES@);
#else
    from = net->spikes[@INDEX@]; /* these are still the spikes of the step before */
    number = net->num_spikes[@INDEX@];
#endif
#if RECURRENT_SPARSE
    sum_nonzeros(net->fed_@K@, @N@, recurrent_weights_@K@, recurrent_gaps_@K@, recurrent_starts_@K@, from, number, NULL);
#else
    sum_rows(net->fed_@K@, @ROW@, recurrent_weights_@K@, from, number, NULL);
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
        if (spike)
            set_bit(net->returning_@K@[(net->step + 1 + recurrent_delays_@K@[n]) % @RETURN_D@], n);
#endif
        if (spike)
            net->spikes[@INDEX@][fired++] = (uint16_t)n;
    }
    net->num_spikes[@INDEX@] = (uint16_t)fired;
}
