"""The artificial cochlea that made the Spiking Heidelberg Digits: sound in, spikes of 700 bushy cells out.

Four stages, each for 700 places from the base of the basilar membrane (unit 0, the highest frequency) to its apex:

    membrane_velocity   the travelling wave on the basilar membrane, a linear filter
    hair_cell_step      the transmitter of an inner hair cell
    fibre_step          40 auditory nerve fibres, stochastic, with a refractory period
    bushy_cell_step     a leaky integrate-and-fire cell; its spikes are the events

Sources: Cramer, Stradmann, Schemmel, Zenke, IEEE TNNLS 33 (2022), doi 10.1109/TNNLS.2020.3044364 (the chain and its
parameters); Sieroka, Dosch, Rupp, J. Acoust. Soc. Am. 120 (2006) 297 (membrane); Meddis, J. Acoust. Soc. Am. 79 (1986)
702 and 83 (1988) 1056 (hair cell). The membrane is in cgs units.

A `_step` function advances all places by one sample and overwrites its state. The compiler vectorises its loop over
places (`snn.compiling` leaves out Python's check for a division by zero, which would prevent this).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.fft import irfft, rfft
from scipy.signal import resample_poly
from scipy.special import hankel1, j0, j1, y0, y1

from snn.compiling import inlined, kernel
from snn.errors import InputError

AUDIO_RATE_HZ = 48_000
RATE_HZ = AUDIO_RATE_HZ // 2  # of the velocity and of all that follows: only the positive half of the FFT is kept
STEP_S = 1 / RATE_HZ
AUDIO_RMS = 0.3
RAMP_S = 0.030
PADDING_S = 0.0125  # silence after the audio in which the cells still answer

N_PLACES = 700
PLACES_CM = np.linspace(0.0, 3.5, N_PLACES)

# Basilar membrane: stiffness S(c) = C0 e^(-αc) - a, damping R(c) = δ sqrt(C0 m) e^(-αc/2), mass m, density ρ, height h.
MEMBRANE_A, ALPHA, RHO, C0, DELTA, HEIGHT, MASS = 3500.0, 3.0, 1.0, 1e9, 0.15, 0.1, 0.05

# The filter runs by overlap-save. The answer to an impulse lies mostly *before* it: the equations follow the sign
# convention e^(-iωt) but are applied to an FFT in the convention e^(+iωt). SHD was made this way, so this is kept. At
# the slowest place (unit 699) the answer falls to a thousandth of its peak 140 ms before and 20 ms after the impulse.
HOP = 640  # steps between two transforms
LOOKAHEAD = 3584  # 149 ms: the velocity of a hop needs the sound that follows it for so long
PAST = 1920  # steps of the sound before a hop
WINDOW = 2 * (PAST + HOP + LOOKAHEAD)  # samples
LANES = 32  # neighbouring places that are computed together, as vectors do
BLOCKS = math.ceil(N_PLACES / LANES)


class Group(NamedTuple):
    """Blocks of places whose velocity is computed in one way: slower places need fewer values."""

    first_block: int
    end_block: int
    decimation: int  # steps between two values of the inverse FFT
    points: int  # of the inverse FFT
    past: int  # values before the hop's first: the answer after an impulse


GROUPS = (
    Group(0, 4, 1, 768, 56),
    Group(4, 9, 1, 1024, 128),
    Group(9, 13, 2, 768, 120),
    Group(13, 16, 4, 512, 112),
    Group(16, 19, 8, 512, 128),
    Group(19, 22, 16, 384, PAST // 16),
)
TAPS = 8  # values from which a value between them is interpolated
BAND = 0.235  # cycles per value up to which this interpolation is nearly exact
FELT = 1e-5  # of a place's largest |V|: smaller values are left out

# What follows the membrane computes in float32, as twice as many fit into a vector: its constants are of that type.
# Hair cell: the rates y, g, l, r, x in 1/s, A and B in units of the velocity, h in spikes/s, the transmitter M.
Y, G, L, R, X, A, B, HAIR_H, HAIR_M = map(np.float32, (5.05, 2000.0, 2500.0, 6580.0, 66.3, 5.0, 300.0, 50_000.0, 1.0))

N_FIBRES = 40
REFRACTORY_STEPS = RATE_HZ // 1000  # 1 ms, of a fibre and of a bushy cell

TAU_MEM_S, TAU_SYN_S, THRESHOLD, WEIGHT = 1e-3, 0.5e-3, np.float32(1.0), np.float32(13_000 / N_FIBRES)
DECAY_MEM, DECAY_SYN = (np.float32(math.exp(-STEP_S / tau_s)) for tau_s in (TAU_MEM_S, TAU_SYN_S))

DT, LOSS, RELEASE = np.float32(STEP_S), np.float32(L + R), np.float32(HAIR_H * STEP_S)
ZERO, THIRD, HALF, ONE, TWO, TO_UNIFORM = map(np.float32, (0.0, 1 / 3, 0.5, 1.0, 2.0, 2.0**-24))


def cochlea(audio: np.ndarray, sample_rate_hz: int, seed: int | Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Turn a recording into the spikes of 700 bushy cells.

    audio: [samples], any scale; seed: as for `numpy.random.SeedSequence`; the same seed gives the same spikes.
    Returns times_s, float32 [events] in ascending order, and units, uint16 [events], 0 (high pitch) to 699 (low pitch).
    Raises InputError if the audio is silent, not finite, not one-dimensional or shorter than its two 30 ms ramps.
    """
    ear = Ear.at_rest(seed)
    events = [
        transduce(velocity, hop * HOP, ear)
        for hop, velocity in enumerate(membrane_velocity(condition(audio, sample_rate_hz)))
    ]
    steps, units = (np.concatenate(parts) for parts in zip(*events, strict=True))
    return (steps * STEP_S).astype(np.float32), units


def check_audio(audio: np.ndarray, sample_rate_hz: int) -> None:
    """Raise InputError if `cochlea` cannot hear this audio [samples]."""
    if audio.ndim != 1:
        raise InputError(f"audio has shape {audio.shape}: give one channel, shape [samples]")
    if len(audio) < 2 * RAMP_S * sample_rate_hz:
        raise InputError(
            f"audio lasts {1000 * len(audio) / sample_rate_hz:.0f} ms: it must be longer than its two ramps, 60 ms"
        )
    if not np.isfinite(audio).all() or not audio.any():
        raise InputError("audio is silent or not finite: leave this recording out")


def condition(audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Resample audio [samples] to 48 kHz, scale it to an RMS of 0.3 and ramp both ends (30 ms Hann): float32 [samples].

    Raises InputError as `cochlea` does.
    """
    check_audio(audio, sample_rate_hz)
    common = math.gcd(AUDIO_RATE_HZ, sample_rate_hz)
    audio = resample_poly(audio.astype(np.float64), AUDIO_RATE_HZ // common, sample_rate_hz // common)
    audio *= AUDIO_RMS / np.sqrt(np.mean(audio**2))
    n_ramp = round(RAMP_S * AUDIO_RATE_HZ)
    ramp = np.sin(np.pi / 2 * np.arange(n_ramp) / n_ramp) ** 2
    audio[:n_ramp] *= ramp
    audio[-n_ramp:] *= ramp[::-1]
    return audio.astype(np.float32)


def membrane_impedance(frequency_hz: np.ndarray, places_cm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ξ and g of the membrane at frequencies [F] and places [P], complex128 [F, P] each."""
    omega = 2 * np.pi * frequency_hz[:, None]
    stiffness = C0 * np.exp(-ALPHA * places_cm) - MEMBRANE_A
    damping = DELTA * math.sqrt(C0 * MASS) * np.exp(-ALPHA * places_cm / 2)
    xi = stiffness - MASS * omega**2 - 1j * omega * damping
    return xi, omega * np.sqrt(RHO / (HEIGHT * xi))


def pressure_ratio(frequency_hz: np.ndarray, places_cm: np.ndarray) -> np.ndarray:
    """Return p(ω, c) / p(ω, 0), p = sqrt(G/g) H0(G), G(ω, c) = 2 g(ω, 0)/α + ∫_0^c g(ω, x) dx: complex128 [F, P].

    frequency_hz: [F]; places_cm: [P], ascending from 0, spaced finely enough to integrate g over them.
    """
    _, g = membrane_impedance(frequency_hz, places_cm)
    _, g_between = membrane_impedance(frequency_hz, (places_cm[:-1] + places_cm[1:]) / 2)
    integral = np.zeros_like(g)
    simpson = (g[:, :-1] + 4 * g_between + g[:, 1:]) / 6 * np.diff(places_cm)
    np.cumsum(simpson, axis=1, out=integral[:, 1:])
    big_g = 2 * g[:, :1] / ALPHA + integral
    # Beyond its place of resonance a wave decays; e^-16 = 1e-7 is lost when the tables are rounded to float32.
    felt = (big_g - big_g[:, :1]).imag < 16
    p = np.zeros_like(g)
    p[felt] = np.sqrt(big_g[felt] / g[felt]) * hankel1(0, big_g[felt])
    return p / p[:, :1]


def velocity_transfer(frequency_hz: np.ndarray) -> np.ndarray:
    """Return the membrane velocity per sound, V(ω, c) = (2ω/ξ) (p(ω, c)/p(ω, 0)) Z(ω): complex128 [F, 700]."""
    omega = 2 * np.pi * frequency_hz[:, None]
    xi, _ = membrane_impedance(frequency_hz, PLACES_CM)
    q = 2 * omega / ALPHA * math.sqrt(2 / (HEIGHT * C0))
    z = math.sqrt(2 * C0 / HEIGHT) * (1j * j0(q) + y0(q)) / (j1(q) - 1j * y1(q))
    return 2 * omega / xi * pressure_ratio(frequency_hz, PLACES_CM) * z


class Filter(NamedTuple):
    """The filter that computes the velocity of one group of places."""

    group: Group
    transfer: tuple[np.ndarray, ...]  # of each block, complex64 [bins, LANES]: V / (2 points decimation)
    taps: np.ndarray  # float32 [decimation, TAPS]: the values between two of the inverse FFT


@cache
def filters() -> tuple[Filter, ...]:
    """Return the filter of each group; places beyond the last of 700 are silent."""
    made = []
    for group in GROUPS:
        frequency_hz = np.linspace(1, RATE_HZ, group.points * group.decimation + 1)[:-1]  # 1 Hz for 0: V is singular
        frequency_hz = frequency_hz[: group.points // (1 if group.decimation == 1 else 2)]
        first, end = group.first_block * LANES, group.end_block * LANES
        transfer = np.zeros((len(frequency_hz), end - first), np.complex128)
        for part in np.array_split(np.arange(len(frequency_hz)), 8):  # all at once would take much memory
            transfer[part, : min(end, N_PLACES) - first] = velocity_transfer(frequency_hz[part])[:, first:end]
        is_felt = np.abs(transfer) > FELT * np.abs(transfer).max(axis=0)
        transfer[0] = 0  # a constant pressure moves nothing
        transfer /= 2 * group.points * group.decimation
        blocks = [
            transfer[: 1 + np.flatnonzero(is_felt[:, k : k + LANES].any(axis=1))[-1], k : k + LANES].astype(
                np.complex64
            )
            for k in range(0, end - first, LANES)
        ]
        made.append(Filter(group, tuple(blocks), _taps(group.decimation)))
    return tuple(made)


def _taps(decimation: int) -> np.ndarray:
    """Return weights, float32 [decimation, TAPS], of values between two others: least squares over tones up to BAND."""
    tones = 2j * np.pi * np.linspace(-BAND, BAND, 1000)[:, None]
    wanted = np.exp(tones * (np.arange(decimation) / decimation))
    taps, *_ = np.linalg.lstsq(np.exp(tones * (np.arange(TAPS) - (TAPS // 2 - 1))), wanted, rcond=None)
    return np.ascontiguousarray(taps.real.T, dtype=np.float32)


def steps_of(n_samples: int) -> int:
    """Return how many steps are computed for n_samples of conditioned audio."""
    return math.ceil((n_samples / AUDIO_RATE_HZ + PADDING_S) * RATE_HZ)


def membrane_velocity(audio: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the velocity of the basilar membrane hop by hop, float32 [up to HOP, 700], at 24 kHz.

    audio: float32 [samples] at 48 kHz as from `condition`. The next hop overwrites the last one. All hops together end
    PADDING_S after the audio.
    """
    n_steps = steps_of(len(audio))
    padded = np.zeros(2 * HOP * math.ceil(n_steps / HOP) + WINDOW, np.float32)
    padded[2 * PAST : 2 * PAST + len(audio)] = audio
    velocity = np.empty((HOP, N_PLACES), np.float32)
    for first in range(0, n_steps, HOP):
        for group, transfers, taps in filters():
            begin = 2 * (first + PAST - group.past * group.decimation)
            spectrum = rfft(padded[begin : begin + 2 * group.points * group.decimation])[:, None]
            middle, place = group.points // 2, group.first_block * LANES
            slow = np.empty((group.points, LANES * len(transfers)), np.float32)
            for block, transfer in enumerate(transfers):
                n_bins = len(transfer)
                response = transfer * spectrum[:n_bins]
                if n_bins > middle + 1:  # these places answer above half the rate
                    response[group.points - n_bins + 1 : middle + 1] += response[middle:][::-1].conj()
                answer = irfft(response[: middle + 1], n=group.points, axis=0, norm="forward")
                slow[:, block * LANES : (block + 1) * LANES] = answer
            slow = slow[:, : N_PLACES - place]
            if group.decimation == 1:
                velocity[:, place : place + slow.shape[1]] = slow[group.past : group.past + HOP]
            else:
                _fill_in(np.ascontiguousarray(slow[group.past - (TAPS // 2 - 1) :]), taps, velocity, place)
        yield velocity[: n_steps - first]


@kernel
def _fill_in(slow, taps, velocity, place):
    """Interpolate `velocity` [HOP, 700] from `place` on; `slow` [steps, places] has every len(taps)-th step."""
    total = np.empty(slow.shape[1], np.float32)
    for step in range(len(velocity)):
        first, tap = step // len(taps), taps[step % len(taps)]
        total[:] = ZERO
        for i in range(TAPS):
            _add(tap[i], slow[first + i], total)
        velocity[step, place : place + len(total)] = total


@inlined
def _add(factor, values, total):
    """Add factor * values to total."""
    for j in range(values.size):
        total[j] += factor * values[j]


class Ear(NamedTuple):
    """The state of hair cells, fibres and bushy cells, [700] float32 unless said otherwise; each step overwrites it."""

    free: np.ndarray  # q: transmitter ready for release
    cleft: np.ndarray  # c: transmitter in the synaptic cleft
    reprocessed: np.ndarray  # w: transmitter taken back
    random: np.ndarray  # uint64, state of a generator per place
    ready: np.ndarray  # number of fibres that are not refractory
    fired: np.ndarray  # [REFRACTORY_STEPS, 700] number of fibres that fired in each of the last steps, a ring buffer
    current: np.ndarray  # bushy cell: synaptic current, threshold/s
    potential: np.ndarray  # bushy cell: membrane potential
    dead_steps: np.ndarray  # int32, bushy cell: refractory steps left

    @staticmethod
    def at_rest(seed: int | Sequence[int]) -> Ear:
        """Return the state after long silence; the fibres and bushy cells have not fired yet."""
        free, cleft, reprocessed = (np.full(N_PLACES, value, np.float32) for value in resting_transmitter())
        return Ear(
            free=free,
            cleft=cleft,
            reprocessed=reprocessed,
            random=noise_states(seed),
            ready=np.full(N_PLACES, N_FIBRES, np.float32),
            fired=np.zeros((REFRACTORY_STEPS, N_PLACES), np.float32),
            current=np.zeros(N_PLACES, np.float32),
            potential=np.zeros(N_PLACES, np.float32),
            dead_steps=np.zeros(N_PLACES, np.int32),
        )


def resting_transmitter() -> tuple[float, float, float]:
    """Return q, c and w of a hair cell after long silence (Meddis 1988)."""
    y, g, l, r, x, a, b, m = map(float, (Y, G, L, R, X, A, B, HAIR_M))
    k = g * a / (a + b)
    cleft = m * y * k / (l * k + y * (l + r))
    return cleft * (l + r) / k, cleft, cleft * r / x


def noise_states(seed: int | Sequence[int]) -> np.ndarray:
    """Return the initial states of the noise generators, uint64 [700]."""
    states = np.random.SeedSequence(seed).generate_state(N_PLACES, np.uint64)
    return np.maximum(states, 1)  # 0 is the one state that xorshift never leaves


@inlined
def hair_cell_step(velocity, free, cleft, reprocessed, probability):
    """Set the `probability` [700] that a fibre fires in this step, from the `velocity` [700] (Meddis 1988, Euler).

    The probability stays below HAIR_H STEP_S G / (L + R) = 0.46.
    """
    for j in range(velocity.size):
        shifted = velocity[j] + A
        k = G * shifted / (shifted + B) if shifted > ZERO else ZERO
        released = k * free[j]
        d_free = Y * max(HAIR_M - free[j], ZERO) - released + X * reprocessed[j]
        d_cleft = released - LOSS * cleft[j]
        d_reprocessed = R * cleft[j] - X * reprocessed[j]
        free[j] = max(free[j] + DT * d_free, ZERO)
        cleft[j] = max(cleft[j] + DT * d_cleft, ZERO)
        reprocessed[j] = max(reprocessed[j] + DT * d_reprocessed, ZERO)
        probability[j] = RELEASE * cleft[j]


@inlined
def _binomial(n, p, u):
    """Return the successes in `n` trials of probability `p` < 1, by inversion: the largest k with u < P(K >= k)."""
    mass, power = ONE, ONE - p
    bits = n
    while bits:  # (1 - p) ** n by squaring, which is the same on every machine
        if bits & 1:
            mass *= power
        power *= power
        bits >>= 1
    tail, odds = ONE - mass, p / (ONE - p)
    k = 0
    while u < tail and k < n:
        k += 1
        mass *= np.float32(n - k + 1) / np.float32(k) * odds
        tail -= mass
    return np.float32(k)


@inlined
def fibre_step(probability, random, ready, fired, counts):
    """Set `counts` [700] to the number of fibres that fire, each ready one with `probability` [700].

    The fibres of a place are exchangeable, so one binomial draw replaces 40 Bernoulli draws. `fired` [700] holds the
    counts of REFRACTORY_STEPS ago, whose fibres become ready now, and is replaced by `counts`.
    """
    uniform = np.empty(probability.size, np.float32)
    undecided = np.empty(probability.size, np.bool_)
    for j in range(probability.size):
        state = random[j]
        state ^= state << np.uint64(13)  # xorshift64 (Marsaglia 2003)
        state ^= state >> np.uint64(7)
        state ^= state << np.uint64(17)
        random[j] = state
        uniform[j] = np.float32(np.int32(state >> np.uint64(40))) * TO_UNIFORM  # the upper 24 bits: in [0, 1)
    for j in range(probability.size):
        ready[j] += fired[j]
        # Bonferroni: P(K >= 1) lies between `one` and triples above it, P(K >= 2) between `two` and pairs, and
        # P(K >= 3) below triples. This decides nearly all draws without a power.
        u, p, mean = uniform[j], probability[j], ready[j] * probability[j]
        pairs = HALF * mean * (mean - p)
        triples = THIRD * pairs * (mean - TWO * p)
        one, two = mean - pairs, pairs - TWO * triples
        counts[j] = (ONE if u < one else ZERO) + (ONE if u < two else ZERO)
        undecided[j] = (u < triples) | ((u >= two) & (u < pairs)) | ((u >= one) & (u < one + triples))
    for j in range(probability.size):
        if undecided[j]:
            counts[j] = _binomial(int(ready[j]), probability[j], uniform[j])
    for j in range(probability.size):
        ready[j] -= counts[j]
        fired[j] = counts[j]


@inlined
def bushy_cell_step(counts, current, potential, dead_steps, spikes):
    """Set `spikes` [700] where a leaky integrate-and-fire cell driven by `counts` [700] fires; return how many do."""
    n_spikes = 0
    for j in range(counts.size):
        current[j] = DECAY_SYN * current[j] + WEIGHT * counts[j]
        is_alive = ONE if dead_steps[j] == 0 else ZERO
        integrated = is_alive * (DECAY_MEM * potential[j] + DT * current[j])
        spikes[j] = integrated >= THRESHOLD
        n_spikes += spikes[j]
        potential[j] = (ZERO if spikes[j] else ONE) * integrated
        dead_steps[j] = REFRACTORY_STEPS if spikes[j] else max(dead_steps[j] - 1, 0)
    return n_spikes


@kernel
def transduce(velocity, first_step, ear):
    """Run hair cells, fibres and bushy cells over a hop of velocity [T, 700] that begins at `first_step`.

    ear: `Ear`, overwritten. Returns the step, int64 [events], and unit, uint16 [events], of each event in order.
    """
    n_steps, n_places = velocity.shape
    probability, counts = np.empty(n_places, np.float32), np.empty(n_places, np.float32)
    spikes = np.empty(n_places, np.bool_)
    # A cell that fires is then refractory, so there cannot be more events than this.
    most = n_places * (n_steps // REFRACTORY_STEPS + 1)
    steps, units = np.empty(most, np.int64), np.empty(most, np.uint16)
    n_events = 0
    for step in range(first_step, first_step + n_steps):
        hair_cell_step(velocity[step - first_step], ear.free, ear.cleft, ear.reprocessed, probability)
        fibre_step(probability, ear.random, ear.ready, ear.fired[step % REFRACTORY_STEPS], counts)
        if bushy_cell_step(counts, ear.current, ear.potential, ear.dead_steps, spikes) == 0:
            continue
        for unit in range(n_places):
            if spikes[unit]:
                steps[n_events], units[n_events] = step, unit
                n_events += 1
    return steps[:n_events], units[:n_events]
