// The neurons of snn/ops/reference.py for the GPU: one thread carries one column m = b*N + n through the steps
// begin ... end of T, with its states in registers. See that file for the equations, snn/ops/cuda.py for the launches.
//
// Compiled once per variant: -D REAL=float or double, -D CURRENT, ADAPTATION, SOFT, STRICT, LEARNED = 0 or 1, -D THREADS
// of a block; and with --fmad=false, because a contracted product would round differently from the reference, and a spike
// could flip.
//
// Pointers of what the variant does not have are never followed. Tensors are (T, M), states (M,), values (N,).
//
// A load takes hundreds of cycles, a step of the neuron a few dozen, and few columns hide little of it from each other.
// So what the next steps need is loaded together, forward even while the steps before are computed.

typedef REAL real;

// So many blocks at once on a multiprocessor, which bounds the registers of a thread: 10 leave it 48, 8 leave 64, 5 96.
#define BLOCKS(of_float, of_double) __launch_bounds__(THREADS, sizeof(real) == 4 ? of_float : of_double)

constexpr int AHEAD = 32 / sizeof(real), BACK_AHEAD = 16 / sizeof(real);  // steps; more would cost registers

__device__ inline bool has_fired(real u) { return STRICT ? u > real(0) : u >= real(0); }

__device__ inline real after_reset(real h, real u) { return has_fired(u) ? (SOFT ? u : real(0)) : h; }

// h may be null. States are updated in place.
extern "C" __global__ void BLOCKS(10, 8) forward(
    const real* __restrict__ x, real* __restrict__ y, real* __restrict__ h,
    real* __restrict__ v_M, real* __restrict__ i_M, real* __restrict__ w_M, real* __restrict__ z_M,
    const real* __restrict__ lam_m_N, const real* __restrict__ lam_s_N, const real* __restrict__ lam_w_N,
    const real* __restrict__ a_N, const real* __restrict__ b_N,
    double threshold, long long begin, long long end, long long M, long long N)
{
    const long long m = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (m >= M) return;
    const int n = int(m % N);
    const real theta = real(threshold);
    const real lam_m = lam_m_N[n], rest_m = real(1) - lam_m;
    const real lam_s = CURRENT ? lam_s_N[n] : real(0);
    const real lam_w = ADAPTATION ? lam_w_N[n] : real(0);
    const real a = ADAPTATION ? a_N[n] : real(0), b = ADAPTATION ? b_N[n] : real(0);
    real v = v_M[m];
    real i = CURRENT ? i_M[m] : real(0);
    real w = ADAPTATION ? w_M[m] : real(0), z = ADAPTATION ? z_M[m] : real(0);

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
            const long long k = (t + j) * M + m;
            real drive = CURRENT ? i : x_now[j];
            if (ADAPTATION) drive = drive - w;
            const real potential = lam_m * v + rest_m * drive;
            const real u = potential - theta;
            const real spike = has_fired(u) ? real(1) : real(0);
            v = after_reset(potential, u);
            y[k] = spike;
            if (h) h[k] = potential;
            if (CURRENT) i = lam_s * i + x_now[j];
            if (ADAPTATION) {
                w = lam_w * w + z;
                z = a * potential + b * spike;
            }
        }
    }

    v_M[m] = v;
    if (CURRENT) i_M[m] = i;
    if (ADAPTATION) { w_M[m] = w; z_M[m] = z; }
}

// gh may be null. The gradients of the states are updated in place, from those after step `end` to those before
// `begin`. sums: (5, M), the gradients of lam_m, lam_s, lam_w, a, b, complete when begin is 0.
//
// i and w are not stored, but linear in what is: a gradient sum_n g_n i_{n-1} is sum_k x_k P_k, with
// P_k = sum_{n>k} lam_s^{n-1-k} g_n kept up on the way back; Q likewise for the gradients of i, and both for w, where
// z_k takes the place of x_k and comes in one step later. carry: (5, M), g of the step after, P and Q, between launches;
// it is neither read when end is T nor written when begin is 0.
extern "C" __global__ void BLOCKS(8, 5) backward(
    const real* __restrict__ gy, const real* __restrict__ gh, const real* __restrict__ x, const real* __restrict__ h,
    real* __restrict__ gx, real* __restrict__ sums, real* __restrict__ carry,
    real* __restrict__ gv_M, real* __restrict__ gi_M, real* __restrict__ gw_M, real* __restrict__ gz_M,
    const real* __restrict__ v_M, const real* __restrict__ i_M,
    const real* __restrict__ w_M, const real* __restrict__ z_M,
    const real* __restrict__ lam_m_N, const real* __restrict__ lam_s_N, const real* __restrict__ lam_w_N,
    const real* __restrict__ a_N, const real* __restrict__ b_N,
    double threshold, long long T, long long begin, long long end, long long M, long long N)
{
    const long long m = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (m >= M) return;
    const int n = int(m % N);
    const real theta = real(threshold);
    const real lam_m = lam_m_N[n], rest_m = real(1) - lam_m;
    const real lam_s = CURRENT ? lam_s_N[n] : real(0);
    const real lam_w = ADAPTATION ? lam_w_N[n] : real(0);
    const real a = ADAPTATION ? a_N[n] : real(0), b = ADAPTATION ? b_N[n] : real(0);
    real gv = gv_M[m];
    real gi = CURRENT ? gi_M[m] : real(0);
    real gw = ADAPTATION ? gw_M[m] : real(0), gz = ADAPTATION ? gz_M[m] : real(0);
    real d_lam_m = 0, d_lam_s = 0, d_lam_w = 0, d_a = 0, d_b = 0;
    real g = 0, p_i = 0, q_i = 0, p_w = 0, q_w = 0;
    if (LEARNED && end < T) {
        d_lam_m = sums[m], d_lam_s = sums[M + m], d_lam_w = sums[2 * M + m], d_a = sums[3 * M + m];
        d_b = sums[4 * M + m];
        g = carry[m], p_i = carry[M + m], q_i = carry[2 * M + m], p_w = carry[3 * M + m], q_w = carry[4 * M + m];
    }

    for (long long t = end - 1; t >= begin; t -= BACK_AHEAD) {
        real h_now[BACK_AHEAD], gy_now[BACK_AHEAD], x_now[BACK_AHEAD];
#pragma unroll
        for (int j = 0; j < BACK_AHEAD; j++) {
            const bool is_there = t - j >= begin;
            const long long k = (t - j) * M + m;
            h_now[j] = is_there ? h[k] : real(0);
            gy_now[j] = is_there ? gy[k] : real(0);
            x_now[j] = LEARNED && is_there ? x[k] : real(0);
        }
#pragma unroll
        for (int j = 0; j < BACK_AHEAD; j++) {
            if (t - j < begin) break;
            const long long k = (t - j) * M + m;
            const real potential = h_now[j];
            const real u = potential - theta;
            const real spike = has_fired(u) ? real(1) : real(0);
            if (LEARNED) {
                d_lam_m += g * after_reset(potential, u);
                if (ADAPTATION) {
                    const real z = a * potential + b * spike;
                    d_lam_m += z * p_w;
                    d_lam_w += z * q_w;
                    p_w = g + lam_w * p_w;
                    // The gradient of the last z is not that of a later w.
                    q_w = k < (T - 1) * M ? gz + lam_w * q_w : real(0);
                    d_a += gz * potential;
                    d_b += gz * spike;
                }
            }
            const real width = real(1) + real(SURROGATE_SLOPE) * (u < real(0) ? -u : u);
            const real gs = ADAPTATION ? gy_now[j] + b * gz : gy_now[j];
            g = gs / (width * width) + (SOFT || !has_fired(u) ? gv : real(0));
            if (gh) g = g + gh[k];
            if (ADAPTATION) g = g + a * gz;
            const real g_drive = rest_m * g;
            if (LEARNED) {
                if (CURRENT) {
                    d_lam_m -= x_now[j] * p_i;
                    d_lam_s += x_now[j] * q_i;
                    p_i = g + lam_s * p_i;
                    q_i = gi + lam_s * q_i;
                } else {
                    d_lam_m -= g * x_now[j];
                }
            }
            gv = lam_m * g;
            if (ADAPTATION) {
                gz = gw;
                gw = lam_w * gw - g_drive;
            }
            gx[k] = CURRENT ? gi : g_drive;
            if (CURRENT) gi = lam_s * gi + g_drive;
        }
    }

    gv_M[m] = gv;
    if (CURRENT) gi_M[m] = gi;
    if (ADAPTATION) { gw_M[m] = gw; gz_M[m] = gz; }
    if (!LEARNED) return;
    if (begin == 0) {  // the initial state, as the stored steps in the loop
        d_lam_m += g * v_M[m];
        if (CURRENT) {
            d_lam_m -= i_M[m] * p_i;
            d_lam_s += i_M[m] * q_i;
        }
        if (ADAPTATION) {
            d_lam_m += z_M[m] * p_w + w_M[m] * (g + lam_w * p_w);
            d_lam_w += z_M[m] * q_w + w_M[m] * (gz + lam_w * q_w);
        }
    } else {
        carry[m] = g, carry[M + m] = p_i, carry[2 * M + m] = q_i, carry[3 * M + m] = p_w, carry[4 * M + m] = q_w;
    }
    sums[m] = d_lam_m, sums[M + m] = d_lam_s, sums[2 * M + m] = d_lam_w, sums[3 * M + m] = d_a;
    sums[4 * M + m] = d_b;
}
