    /* Layer @K@. */
    @NEURON@_state neurons_@K@[@N@];
#if SPIKE_FIRST
    bool due_@K@[@N@]; /* what comes out one step later */
#if OUTPUT
    float due_potentials[@N@];
#endif
#endif
#if AXONAL
#if INPUT
    uint16_t num_late_@K@[@D@]; /* channels on their way, by the step of their arrival: how many, which, and counts */
    @CHANNEL@ late_@K@[@D@][@SENT@];
    @COUNT@ late_counts_@K@[@D@][@SENT@];
#else
    uint8_t late_@K@[@D@][@INPUT_BYTES@]; /* inputs on their way, a bit for each, by the step of their arrival */
#endif
#endif
#if SYNAPTIC
    @SUM@ late_@K@[@D@][@N@]; /* sums on their way, by the step of their arrival */
#endif
#if RECURRENT
    @SUM@ fed_@K@[@ROW@];
#endif
#if RECURRENT_DELAYS
    uint8_t returning_@K@[@RETURN_D@][@BYTES@]; /* spikes on their way back, a bit for each, by the step of their arrival */
#endif
