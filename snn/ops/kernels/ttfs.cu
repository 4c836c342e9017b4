// The operations between the products of a layer of neurons that spike once, for the GPU. Each is one pass over memory,
// with one thread for each neuron. snn/ttfs/functional.py has the formulas, snn/ttfs/kernels.py the same for the CPU.
//
// Compile it with -D REAL=float or double and with --fmad=false, so that it equals plain torch in every bit. x and gx
// hold two halves of `size` values, [m; a] or [S; A].

typedef REAL real;

#define INF __int_as_float(0x7f800000)

#define FOR_EACH_NEURON                                                    \
    const long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x;  \
    if (k >= size) return;

extern "C" __global__ void split(
    real* __restrict__ x, const real* __restrict__ t, double window, long long size)
{
    FOR_EACH_NEURON
    const bool is_silent = t[k] == real(INF);
    x[k] = is_silent ? real(0) : real(1);
    x[size + k] = is_silent ? real(0) : real(window) - t[k];
}

extern "C" __global__ void fire(
    const real* __restrict__ x, real* __restrict__ t, real* __restrict__ r,
    double window, double zero_drive_fires, long long size)
{
    FOR_EACH_NEURON
    const real T = real(window), S = x[k], A = x[size + k];
    const bool is_early = A >= T;
    const bool has_drive = S != real(0) || A != real(0) || zero_drive_fires != 0;
    const bool is_silent = !is_early && (T * S + A < real(0) || !has_drive);
    const real slope = real(1) / (real(1) + S);
    const real time = (T - A) * slope;
    r[k] = is_early || is_silent ? real(0) : slope;
    t[k] = is_early ? real(0) : is_silent ? real(INF) : time > T ? T : time;
}

extern "C" __global__ void spread(
    const real* __restrict__ g, const real* __restrict__ t, const real* __restrict__ r, real* __restrict__ gx,
    double window, double clip, long long size)
{
    FOR_EACH_NEURON
    const real T = real(window), most = real(clip);
    const real time = r[k] == real(0) ? real(0) : t[k];  // inf and 0 must not meet
    if (clip == INF) {
        gx[k] = -(g[k] * (time * r[k]));
        gx[size + k] = -(g[k] * r[k]);
    } else {
        const real g_I = r[k] > most ? most : r[k], slope = (T + time) * r[k];
        gx[k] = g[k] * (T * g_I - (slope > most ? most : slope));
        gx[size + k] = -g[k] * g_I;
    }
}

extern "C" __global__ void by_time(real* __restrict__ g, const real* __restrict__ t, long long size)
{
    FOR_EACH_NEURON
    g[k] = t[k] == real(INF) ? real(0) : -g[k];
}
