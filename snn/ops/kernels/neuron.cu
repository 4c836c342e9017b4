// The frame around the printed functions of a neuron: one thread carries one column m = b*N + n through the steps
// begin ... end of T, with its states in registers. snn/ops/cuda.py launches it.
//
// Compile it with -D REAL=float or double, -D THREADS of a block, and with --fmad=false, because a contracted product
// would round differently from the reference, and a spike could flip.
//
// Tensors are (T, M), states and marks (S, M), values (P, N). A load takes hundreds of cycles, a step of the neuron a
// few dozen, and few columns hide little of that from each other. So the inputs of several steps are loaded together.

// Eight blocks at once on a multiprocessor leave a thread 64 registers; in double precision, with half the threads,
// they leave it 128.
#define BLOCKS __launch_bounds__(THREADS, 8)

constexpr int AHEAD = 32 / sizeof(real), BACK_AHEAD = (R < 3 ? 16 : 8) / sizeof(real);  // steps; more cost registers

// h may be null, and so may marks, the states after each SEGMENT steps, (C, S, M). States are updated in place.
extern "C" __global__ void BLOCKS forward(
    const real* __restrict__ x, real* __restrict__ s, real* __restrict__ h, real* __restrict__ marks,
    real* __restrict__ states, const real* __restrict__ values_PN,
    long long T, long long begin, long long end, long long M, long long N)
{
    const long long m = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (m >= M) return;
    const Values values = load_values(values_PN, N, int(m % N));
    State state = load_state(states, M, m);

    real x_next[AHEAD];
#pragma unroll
    for (int j = 0; j < AHEAD; j++) x_next[j] = begin + j < end ? x[(begin + j) * M + m] : real(0);
    for (long long t = begin; t < end; t += AHEAD) {
        real x_now[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            const long long next = t + AHEAD + j;
            x_now[j] = x_next[j];
            x_next[j] = next < end ? x[next * M + m] : real(0);
        }
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            if (t + j >= end) break;
            const long long k = (t + j) * M + m, after = t + j + 1;
            real potential;
            s[k] = step(x_now[j], state, values, potential);
            if (h) h[k] = potential;
            if (marks && after % SEGMENT == 0 && after < T) store_state(marks + (after / SEGMENT - 1) * S * M, M, m, state);
        }
    }
    store_state(states, M, m, state);
}

// Go back through steps end - 1 ... begin. gh may be null. gstates are updated in place, from those after step `end` to
// those before `begin`. sums are (Q, M); unless end is T, this launch adds to them. kept is null, or (SEGMENT, R, M)
// for a recurrent layer, whose launches take one step each: the first launch of a segment computes what its steps read.
extern "C" __global__ void BLOCKS backward(
    const real* __restrict__ gs, const real* __restrict__ gh, const real* __restrict__ x, real* __restrict__ gx,
    const real* __restrict__ marks, const real* __restrict__ states, real* __restrict__ gstates,
    real* __restrict__ sums_QM, real* kept, const real* __restrict__ values_PN,
    long long T, long long begin, long long end, long long M, long long N)
{
    const long long m = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    __shared__ real shared[SEGMENT * (R > 0 ? R : 1) * THREADS];
    if (m >= M) return;
    const bool is_shared = !kept;
    const long long stride = is_shared ? THREADS : M;
    kept = is_shared ? shared + threadIdx.x : kept + m;
    const Values values = load_values(values_PN, N, int(m % N));
    State gstate = load_state(gstates, M, m);
    real sums[Q > 0 ? Q : 1];
    for (int q = 0; q < Q; q++) sums[q] = end < T ? sums_QM[q * M + m] : real(0);

    for (long long last = end; last > begin;) {
        const long long segment = (last - 1) / SEGMENT, first = segment * SEGMENT;
        State state = segment ? load_state(marks + (segment - 1) * S * M, M, m) : load_state(states, M, m);
        const bool is_first = is_shared || last == T || last == first + SEGMENT;
        for (long long t = is_first ? first : last; t < last; t += BACK_AHEAD) {
            real x_now[BACK_AHEAD];
#pragma unroll
            for (int j = 0; j < BACK_AHEAD; j++) x_now[j] = t + j < last ? x[(t + j) * M + m] : real(0);
#pragma unroll
            for (int j = 0; j < BACK_AHEAD; j++) {
                if (t + j >= last) break;
                real potential;
                remember(kept + (t + j - first) * R * stride, stride, state);
                step(x_now[j], state, values, potential);
            }
        }
        const long long low = first > begin ? first : begin;
        for (long long t = last - 1; t >= low; t -= BACK_AHEAD) {
            real x_now[BACK_AHEAD], gs_now[BACK_AHEAD];
#pragma unroll
            for (int j = 0; j < BACK_AHEAD; j++) {
                const bool is_there = t - j >= low;
                x_now[j] = is_there ? x[(t - j) * M + m] : real(0);
                gs_now[j] = is_there ? gs[(t - j) * M + m] : real(0);
            }
#pragma unroll
            for (int j = 0; j < BACK_AHEAD; j++) {
                if (t - j < low) break;
                const long long k = (t - j) * M + m;
                const real* const recalled = kept + (t - j - first) * R * stride;
                const real gh_now = gh ? gh[k] : real(0);
                gx[k] = backward_step(x_now[j], recalled, stride, values, gs_now[j], gh_now, gstate, sums);
            }
        }
        last = low;
    }

    store_state(gstates, M, m, gstate);
    for (int q = 0; q < Q; q++) sums_QM[q * M + m] = sums[q];
}
