    /* Layer @K@. */
    @NEURON@_state neurons_@K@[@N@];
#if SPIKE_FIRST
    bool due_@K@[@N@]; /* what comes out one step later */
#if OUTPUT
    float due_potentials[@N@];
#endif
#endif
#if AXONAL
    uint16_t num_late_@K@[@D@], late_@K@[@D@][@INPUTS@]; /* inputs on their way, by the step of their arrival */
#if INPUT
    uint16_t late_counts_@K@[@D@][@INPUTS@];
#endif
#endif
#if SYNAPTIC
    @SUM@ late_@K@[@D@][@N@]; /* sums on their way, by the step of their arrival */
#endif
#if RECURRENT
    @SUM@ fed_@K@[@ROW@];
#endif
#if RECURRENT_DELAYS
    uint16_t coming_@K@[@N@];
    bool past_@K@[@PAST@][@N@]; /* the last spikes, those of step t in row t mod @PAST@ */
#endif
