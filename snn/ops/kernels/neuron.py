# The frame around the printed functions of a neuron: tiles of columns walk through the steps.
#
# Layout: samples and neurons are one axis of M = B·N columns, m = b·N + n. A tile of columns walks through all steps
# while its values and states lie in scratch, a row each, in the caches next to the core. A line of columns at a time is
# held in registers for a few steps. Only x, the spikes and gradients stream through memory. Arguments that a call does
# not have are None, and numba compiles a variant without them. Rows of a tile are too short for the processor to
# foresee the next ones, so each loop asks for those that are read a little later.
#
# Forward leaves a mark every SEGMENT steps: the states that the next segment begins with. Backward recomputes a segment
# from its mark, keeps in scratch what the derivative reads, and walks back.

# Rows of a tile: values, states, from G on the gradients of states and values, from KEPT on what each step keeps.
G, GRADIENTS = P + S, S + Q
KEPT = G + GRADIENTS
FORWARD_ROWS, BACKWARD_ROWS = P + S, KEPT + SEGMENT * R


@inlined
def forward_steps(x_TM, fed, s_TM, h_TM, near_TW, marks_CSM, r, at, m, width, begin, end, past):
    """Run steps begin ... end of the tile m ... m + width, whose rows lie in r from `at`.

    fed: the input of one step of a recurrent layer, which replaces x. near_TW: a bit for each column, or None; a tile
    begins a word of bits. past: write past the caches.
    """
    T, M = s_TM.shape
    for j in range(0, width, LINE):
        left = width - j
        values, state = load_values(r, at + j), load_rows(r, at + P * STRIDE + j, STRIDE, S)
        for t in range(begin, end):
            k = t * M + m + j
            x = load_part(x_TM, k, left, LINE) if fed is None else load_part(fed, m % len(fed) + j, left, LINE)
            if fed is None:
                prefetch(x_TM, k + STEPS * M, LINE)
            spike, potential, near, state = step(r, x, state, values)
            if near_TW is not None:
                near_TW[t, (m + j) // LINE] = word(near)
            if past:
                store_past(s_TM, k, spike)
            else:
                store_part(s_TM, k, left, spike)
            if h_TM is not None:
                if past:
                    store_past(h_TM, k, potential)
                else:
                    store_part(h_TM, k, left, potential)
        store_rows(r, at + P * STRIDE + j, STRIDE, LINE, state)
        if marks_CSM is not None and end % SEGMENT == 0 and end < T:
            store_rows(marks_CSM, (end // SEGMENT - 1) * S * M + m + j, M, left, state)


@inlined
def recompute_steps(x_TM, gs_TM, r, at, m, width, first, begin, end):
    """Repeat steps begin ... end of a segment that starts at `first`, and keep what their derivatives read.

    gs_TM is only brought to the caches, for `backward_steps`, which in turn brings the x_TM of the segment before.
    """
    M = x_TM.shape[1]
    for j in range(0, width, LINE):
        left = width - j
        values, state = load_values(r, at + j), load_rows(r, at + P * STRIDE + j, STRIDE, S)
        for t in range(begin, end):
            x = load_part(x_TM, t * M + m + j, left, LINE)
            prefetch(gs_TM, t * M + m + j, LINE)
            store_rows(r, at + (KEPT + (t - first) * R) * STRIDE + j, STRIDE, LINE, kept(x, state))
            _, _, _, state = step(r, x, state, values)
        store_rows(r, at + P * STRIDE + j, STRIDE, LINE, state)


@inlined
def backward_steps(x_TM, gs_TM, fed, gh_TM, gx_TM, r, at, m, width, first, begin, end, past):
    """Go back from step end - 1 to begin, using what `recompute_steps` kept; arguments as in `forward_steps`.

    fed: the gradient of the output of one step of a recurrent layer, which replaces gs.
    """
    M = gx_TM.shape[1]
    for j in range(0, width, LINE):
        left = width - j
        values, gradients = load_values(r, at + j), load_rows(r, at + G * STRIDE + j, STRIDE, GRADIENTS)
        for t in range(end - 1, begin - 1, -1):
            k = t * M + m + j
            prefetch(x_TM, k - SEGMENT * M, LINE)
            recalled = load_rows(r, at + (KEPT + (t - first) * R) * STRIDE + j, STRIDE, R)
            gs = load_part(gs_TM, k, left, LINE) if fed is None else load_part(fed, m % len(fed) + j, left, LINE)
            gh = zeros(r, LINE) if gh_TM is None else load_part(gh_TM, k, left, LINE)
            gx, gradients = backward_step(r, recalled, values, gs, gh, gradients)
            if past:
                store_past(gx_TM, k, gx)
            else:
                store_part(gx_TM, k, left, gx)
        store_rows(r, at + G * STRIDE + j, STRIDE, LINE, gradients)


@kernel
def forward_columns(
    x_TM, s_TM, h_TM, near_TW, total_TM, marks_CSM, state_SM, past_DM, VT_NN, whole_N, share_N, lag, values_PN,
    past, group, begin, end,
):  # fmt: skip
    """Run groups begin ... end of `group` columns; a recurrent layer's group is a sample. Update states in place."""
    T, M = x_TM.shape
    N = values_PN.shape[1]
    size_of_tile = FORWARD_ROWS * STRIDE
    r = np.zeros(-(-group // TILE) * size_of_tile, x_TM.dtype)
    fed, c = np.empty(group if VT_NN is not None else 1, x_TM.dtype), np.empty(N, x_TM.dtype)
    picked = np.empty(N, np.int64)
    steps = STEPS if VT_NN is None else 1
    for m in range(begin * group, min(end * group, M), group):
        size = min(group, M - m)
        for k in range(0, size, TILE):
            spread(r, k // TILE * size_of_tile, values_PN, N, m + k, min(TILE, size - k))
            spread(r, k // TILE * size_of_tile + P * STRIDE, state_SM, M, m + k, min(TILE, size - k))
        for t in range(0, T, steps):
            if VT_NN is not None:
                for j in range(size):
                    fed[j] = 0
                if whole_N is not None:
                    delayed(c, s_TM, past_DM, m, t, lag, whole_N, share_N)
                    add_rows(fed, c, VT_NN, picked)
                else:
                    add_rows(fed, s_TM[t - lag, m : m + size] if t >= lag else past_DM[t, m : m + size], VT_NN, picked)
                for j in range(size):
                    fed[j] = x_TM[t, m + j] + fed[j]
                    if total_TM is not None:
                        total_TM[t, m + j] = fed[j]
            for k in range(0, size, TILE):
                at, width = k // TILE * size_of_tile, min(TILE, size - k)
                last = min(t + steps, T)
                if VT_NN is None:  # two calls, as numba must know the type of an argument before it runs
                    forward_steps(x_TM, None, s_TM, h_TM, near_TW, marks_CSM, r, at, m + k, width, t, last, past)
                else:
                    forward_steps(x_TM, fed, s_TM, h_TM, near_TW, marks_CSM, r, at, m + k, width, t, last, past)
        for k in range(0, size, TILE):
            at, width = k // TILE * size_of_tile, min(TILE, size - k)
            for s in range(S):
                copy(state_SM, s * M + m + k, r, at + (P + s) * STRIDE, width)
    fence()


@kernel
def backward_columns(
    gs_TM, gh_TM, x_TM, gx_TM, marks_CSM, state_SM, gstate_SM, gvalues_QM, V_NN, whole_N, share_N, lag, longest,
    values_PN, past, group, begin, end,
):  # fmt: skip
    """Go back through what `forward_columns` did. Update state gradients in place, and write those of the values."""
    T, M = x_TM.shape
    N = values_PN.shape[1]
    size_of_tile = BACKWARD_ROWS * STRIDE
    r = np.zeros(-(-group // TILE) * size_of_tile, x_TM.dtype)
    row = np.empty(group if V_NN is not None else 1, x_TM.dtype)
    steps = STEPS if V_NN is None else 1
    picked = np.empty(N, np.int64)
    # Gradients that come back to outputs from later steps; those of step t are in row t mod (longest + 2).
    back = np.empty((longest + 2 if whole_N is not None else 1, N), x_TM.dtype)
    for m in range(begin * group, min(end * group, M), group):
        size = min(group, M - m)
        back[:] = 0
        for k in range(0, size, TILE):
            at, width = k // TILE * size_of_tile, min(TILE, size - k)
            spread(r, at, values_PN, N, m + k, width)
            spread(r, at + G * STRIDE, gstate_SM, M, m + k, width)
            r[at + (G + S) * STRIDE : at + KEPT * STRIDE] = 0
        for segment in range((T - 1) // SEGMENT, -1, -1):
            first, last = segment * SEGMENT, min(segment * SEGMENT + SEGMENT, T)
            for k in range(0, size, TILE):
                at, width = k // TILE * size_of_tile, min(TILE, size - k)
                spread(r, at + P * STRIDE, state_SM if segment == 0 else marks_CSM[segment - 1], M, m + k, width)
                for t in range(first, last, STEPS):
                    recompute_steps(x_TM, gs_TM, r, at, m + k, width, first, t, min(t + STEPS, last))
            for t in range(last, first, -steps):
                if V_NN is not None:
                    for j in range(size):
                        row[j] = gs_TM[t - 1, m + j]
                    if whole_N is None:
                        if t - 1 + lag < T:
                            add_rows(row, gx_TM[t - 1 + lag, m : m + size], V_NN, picked)
                    else:
                        come = t - 1 + lag
                        back[come % len(back)] = 0
                        if come < T:
                            add_rows(back[come % len(back)], gx_TM[come, m : m + size], V_NN, picked)
                        for n in range(size):
                            near, share = come + whole_N[n], share_N[n]
                            row[n] += (1 - share) * back[near % len(back), n] + share * back[(near + 1) % len(back), n]
                for k in range(0, size, TILE):
                    at, width = k // TILE * size_of_tile, min(TILE, size - k)
                    low = max(t - steps, first)
                    if V_NN is None:
                        backward_steps(x_TM, gs_TM, None, gh_TM, gx_TM, r, at, m + k, width, first, low, t, past)
                    else:
                        backward_steps(x_TM, gs_TM, row, gh_TM, gx_TM, r, at, m + k, width, first, low, t, past)
        for k in range(0, size, TILE):
            at, width = k // TILE * size_of_tile, min(TILE, size - k)
            for s in range(S):
                copy(gstate_SM, s * M + m + k, r, at + (G + s) * STRIDE, width)
            for q in range(Q):
                copy(gvalues_QM, q * M + m + k, r, at + (G + S + q) * STRIDE, width)
    fence()
