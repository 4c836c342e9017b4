"""The artificial cochlea that made the Spiking Heidelberg Digits: sound in, spikes of 700 bushy cells out.

Four stages, each for 700 places from the base of the basilar membrane (unit 0, the highest frequency) to its apex:

    membrane_velocity   the travelling wave on the basilar membrane, a linear filter
    hair_cell_step      the transmitter of an inner hair cell
    fibre_step          40 auditory nerve fibres, stochastic, with a refractory period
    bushy_cell_step     a leaky integrate-and-fire cell; its spikes are the events

Sources: Cramer, Stradmann, Schemmel, Zenke, IEEE TNNLS 33 (2022), doi 10.1109/TNNLS.2020.3044364 (the chain and its
parameters); Sieroka, Dosch, Rupp, J. Acoust. Soc. Am. 120 (2006) 297 (membrane); Meddis, J. Acoust. Soc. Am. 79 (1986)
702 and 83 (1988) 1056 (hair cell). The membrane is in cgs units.

A `_step` function advances all places by one sample and overwrites its state; its loop over places is what the compiler
vectorises (`snn.compiling` leaves out Python's check for a division by zero, which would prevent it).
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

# The filter runs by overlap-save in blocks of one size, so one transfer function serves audio of every length: of each
# FFT the first PAST and the last FUTURE steps, which the wrap-around spoils, are dropped. The answer to an impulse lies
# mostly *before* it: the equations follow the sign convention e^(-iωt) but are applied to an FFT in the convention
# e^(+iωt). SHD was made this way, so this is kept. At the slowest place (unit 699) the answer falls to a thousandth of
# its peak 140 ms before and 20 ms after the impulse.
PAST, BLOCK, FUTURE = 480, 5760, 3360
FFT_STEPS = PAST + BLOCK + FUTURE

# Hair cell: the rates y, g, l, r, x in 1/s, A and B in units of the velocity, h in spikes/s, the transmitter M.
Y, G, L, R, X, A, B, HAIR_H, HAIR_M = 5.05, 2000.0, 2500.0, 6580.0, 66.3, 5.0, 300.0, 50_000.0, 1.0

N_FIBRES = 40
REFRACTORY_STEPS = RATE_HZ // 1000  # 1 ms, of a fibre and of a bushy cell

TAU_MEM_S, TAU_SYN_S, THRESHOLD, WEIGHT = 1e-3, 0.5e-3, 1.0, 13_000 / N_FIBRES
DECAY_MEM, DECAY_SYN = math.exp(-STEP_S / TAU_MEM_S), math.exp(-STEP_S / TAU_SYN_S)


def cochlea(audio: np.ndarray, sample_rate_hz: int, seed: int | Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Turn a recording into the spikes of 700 bushy cells.

    audio: [samples], any scale; seed: as for `numpy.random.SeedSequence`; the same seed gives the same spikes.
    Returns times_s, float32 [events] in ascending order, and units, uint16 [events], 0 (high pitch) to 699 (low pitch).
    Raises InputError if the audio is silent, not finite, not one-dimensional or shorter than its two 30 ms ramps.
    """
    ear = Ear.at_rest(seed)
    events = [
        transduce(velocity, block * BLOCK, ear)
        for block, velocity in enumerate(membrane_velocity(condition(audio, sample_rate_hz)))
    ]
    steps, units = (np.concatenate(parts) for parts in zip(*events, strict=True))
    return (steps * STEP_S).astype(np.float32), units


def check_audio(audio: np.ndarray, sample_rate_hz: int) -> None:
    """InputError if the audio [samples] is not one that `cochlea` hears."""
    if audio.ndim != 1:
        raise InputError(f"audio has shape {audio.shape}: give one channel, shape [samples]")
    if len(audio) < 2 * RAMP_S * sample_rate_hz:
        raise InputError(f"audio lasts {1000 * len(audio) / sample_rate_hz:.0f} ms: its two ramps alone need 60 ms")
    if not np.isfinite(audio).all() or not audio.any():
        raise InputError("audio is silent or not finite: leave this recording out")


def condition(audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Resample audio [samples] to 48 kHz, scale it to an RMS of .3 and ramp both ends (30 ms Hann): float32 [samples].

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
    """ξ and g of the membrane at frequencies [F] and places [P], complex128 [F, P] each."""
    omega = 2 * np.pi * frequency_hz[:, None]
    stiffness = C0 * np.exp(-ALPHA * places_cm) - MEMBRANE_A
    damping = DELTA * math.sqrt(C0 * MASS) * np.exp(-ALPHA * places_cm / 2)
    xi = stiffness - MASS * omega**2 - 1j * omega * damping
    return xi, omega * np.sqrt(RHO / (HEIGHT * xi))


def pressure_ratio(frequency_hz: np.ndarray, places_cm: np.ndarray) -> np.ndarray:
    """p(ω, c) / p(ω, 0), p = sqrt(G/g) H0(G), G(ω, c) = 2 g(ω, 0)/α + ∫_0^c g(ω, x) dx: complex128 [F, P].

    frequency_hz: [F]; places_cm: [P], ascending from 0, spaced finely enough to integrate g over them.
    """
    _, g = membrane_impedance(frequency_hz, places_cm)
    _, g_between = membrane_impedance(frequency_hz, (places_cm[:-1] + places_cm[1:]) / 2)
    integral = np.zeros_like(g)
    simpson = (g[:, :-1] + 4 * g_between + g[:, 1:]) / 6 * np.diff(places_cm)
    np.cumsum(simpson, axis=1, out=integral[:, 1:])
    big_g = 2 * g[:, :1] / ALPHA + integral
    # Beyond the place of its resonance a wave decays; e^-16 = 1e-7 is lost in the rounding of the tables to float32.
    felt = (big_g - big_g[:, :1]).imag < 16
    p = np.zeros_like(g)
    p[felt] = np.sqrt(big_g[felt] / g[felt]) * hankel1(0, big_g[felt])
    return p / p[:, :1]


def velocity_transfer(frequency_hz: np.ndarray) -> np.ndarray:
    """V(ω, c) = (2ω/ξ) (p(ω, c)/p(ω, 0)) Z(ω), the membrane velocity at 700 places per sound: complex128 [F, 700]."""
    omega = 2 * np.pi * frequency_hz[:, None]
    xi, _ = membrane_impedance(frequency_hz, PLACES_CM)
    q = 2 * omega / ALPHA * math.sqrt(2 / (HEIGHT * C0))
    z = math.sqrt(2 * C0 / HEIGHT) * (1j * j0(q) + y0(q)) / (j1(q) - 1j * y1(q))
    return 2 * omega / xi * pressure_ratio(frequency_hz, PLACES_CM) * z


@cache
def _filter_tables() -> tuple[np.ndarray, np.ndarray]:
    """V over the bins of one block, folded for a real inverse FFT: Re IFFT(Y) = IRFFT((Y[k] + conj Y[-k]) / 2).

    Returns V[c, k]/2 for k = 0 ... FFT_STEPS/2 and conj V[c, -k]/2 for those places, the first few, where it is not 0.
    """
    frequency_hz = np.linspace(1, RATE_HZ, FFT_STEPS + 1)[:-1]  # 1 Hz where 0 is meant: V is singular at 0
    transfer = np.empty((N_PLACES, FFT_STEPS), np.complex64)
    for part in np.array_split(np.arange(FFT_STEPS), 32):  # in parts, or the intermediate arrays would need gigabytes
        transfer[:, part] = velocity_transfer(frequency_hz[part]).T / 2
    bins = np.arange(FFT_STEPS // 2 + 1)
    n_mirrored = 1 + np.flatnonzero(transfer[:, bins.size :].any(axis=1))[-1]
    # Indexing leaves the places along the fast axis; the FFTs run along the bins.
    return np.ascontiguousarray(transfer[:, bins]), np.ascontiguousarray(transfer[:n_mirrored, -bins].conj())


def membrane_velocity(audio: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the velocity of the basilar membrane in blocks, float32 [up to BLOCK, 700], at 24 kHz.

    audio: float32 [samples] at 48 kHz as from `condition`. The blocks together end PADDING_S after the audio.
    """
    transfer, mirrored = _filter_tables()
    n_steps = math.ceil((len(audio) / AUDIO_RATE_HZ + PADDING_S) * RATE_HZ)
    n_blocks = math.ceil(n_steps / BLOCK)
    padded = np.zeros(2 * (PAST + n_blocks * BLOCK + FUTURE), np.float32)
    padded[2 * PAST : 2 * PAST + len(audio)] = audio
    bins = np.arange(transfer.shape[1])
    places = [slice(j, j + 50) for j in range(0, N_PLACES, 50)]  # as many at a time as the processor's cache holds
    for first in range(0, n_steps, BLOCK):
        spectrum = rfft(padded[2 * first : 2 * (first + FFT_STEPS)])[:FFT_STEPS]
        spectrum_mirrored = spectrum[-bins].conj()
        velocity = np.empty((min(BLOCK, n_steps - first), N_PLACES), np.float32)
        for group in places:
            response = transfer[group] * spectrum[bins]
            response[: len(mirrored[group])] += mirrored[group] * spectrum_mirrored
            velocity[:, group] = irfft(response, n=FFT_STEPS, axis=1)[:, PAST : PAST + len(velocity)].T
        yield velocity


class Ear(NamedTuple):
    """The state of hair cells, fibres and bushy cells, [700] each unless said otherwise; overwritten at each step."""

    free: np.ndarray  # q: transmitter ready for release
    cleft: np.ndarray  # c: transmitter in the synaptic cleft
    reprocessed: np.ndarray  # w: transmitter taken back
    random: np.ndarray  # uint64, state of a generator per place
    ready: np.ndarray  # number of fibres that are not refractory
    fired: np.ndarray  # [REFRACTORY_STEPS, 700] number of fibres that fired in each of the last steps, a ring buffer
    current: np.ndarray  # bushy cell: synaptic current, threshold/s
    potential: np.ndarray  # bushy cell: membrane potential
    dead_steps: np.ndarray  # bushy cell: refractory steps left

    @staticmethod
    def at_rest(seed: int | Sequence[int]) -> Ear:
        """The state after long silence (Meddis 1988); the fibres and bushy cells have not fired yet."""
        k = G * A / (A + B)
        cleft = HAIR_M * Y * k / (L * k + Y * (L + R))
        random = np.random.SeedSequence(seed).generate_state(N_PLACES, np.uint64)
        return Ear(
            free=np.full(N_PLACES, cleft * (L + R) / k),
            cleft=np.full(N_PLACES, cleft),
            reprocessed=np.full(N_PLACES, cleft * R / X),
            random=np.maximum(random, 1),  # 0 is the one state that xorshift never leaves
            ready=np.full(N_PLACES, float(N_FIBRES)),
            fired=np.zeros((REFRACTORY_STEPS, N_PLACES)),
            current=np.zeros(N_PLACES),
            potential=np.zeros(N_PLACES),
            dead_steps=np.zeros(N_PLACES, np.int64),
        )


@inlined
def hair_cell_step(velocity, free, cleft, reprocessed, probability):
    """Meddis 1988, Euler: set `probability` [700] of a fibre to fire in this step from the membrane `velocity` [700].

    The probability stays below HAIR_H STEP_S G / (L + R) = .46.
    """
    for j in range(velocity.size):
        shifted = velocity[j] + A
        k = G * shifted / (shifted + B) if shifted > 0 else 0.0
        released = k * free[j]
        d_free = Y * max(HAIR_M - free[j], 0.0) - released + X * reprocessed[j]
        d_cleft = released - (L + R) * cleft[j]
        d_reprocessed = R * cleft[j] - X * reprocessed[j]
        free[j] = max(free[j] + STEP_S * d_free, 0.0)
        cleft[j] = max(cleft[j] + STEP_S * d_cleft, 0.0)
        reprocessed[j] = max(reprocessed[j] + STEP_S * d_reprocessed, 0.0)
        probability[j] = HAIR_H * cleft[j] * STEP_S


@inlined
def _uniform(state):
    """A number in [0, 1) from the upper 53 bits of a uint64."""
    return np.float64(state >> np.uint64(11)) * 2.0**-53


@inlined
def _binomial(n, p, u):
    """The number of successes in `n` trials of probability `p` < 1, by inversion: the largest k with u < P(K >= k)."""
    mass = (1 - p) ** n
    tail = 1 - mass
    k = 0
    while u < tail and k < n:
        k += 1
        mass *= (n - k + 1) / k * p / (1 - p)
        tail -= mass
    return k


@inlined
def fibre_step(probability, random, ready, fired, counts):
    """Set `counts` [700] to the number of fibres that fire, each ready one with `probability` [700].

    The fibres of a place are exchangeable, so one binomial draw replaces 40 Bernoulli draws. `fired` [700] holds the
    counts of REFRACTORY_STEPS ago, whose fibres become ready now, and is replaced by `counts`.
    """
    undecided = np.empty(probability.size, np.bool_)
    for j in range(probability.size):
        state = random[j]
        state ^= state << np.uint64(13)  # xorshift64 (Marsaglia 2003)
        state ^= state >> np.uint64(7)
        state ^= state << np.uint64(17)
        random[j] = state
        ready[j] += fired[j]
        # Bonferroni: P(K >= 1) lies between mean - pairs and mean, and P(K >= 2) below pairs. This decides nearly all
        # draws without a power.
        u = _uniform(state)
        mean = ready[j] * probability[j]
        pairs = mean * (mean - probability[j]) / 2
        counts[j] = 1.0 if u < mean - pairs else 0.0
        undecided[j] = (u < pairs) | ((u >= mean - pairs) & (u < mean))
    for j in range(probability.size):
        if undecided[j]:
            counts[j] = _binomial(int(ready[j]), probability[j], _uniform(random[j]))
    for j in range(probability.size):
        ready[j] -= counts[j]
        fired[j] = counts[j]


@inlined
def bushy_cell_step(counts, current, potential, dead_steps, spikes):
    """Set `spikes` [700] where a leaky integrate-and-fire cell driven by `counts` [700] fibre spikes fires."""
    for j in range(counts.size):
        current[j] = DECAY_SYN * current[j] + WEIGHT * counts[j]
        integrated = DECAY_MEM * potential[j] + STEP_S * current[j] if dead_steps[j] == 0 else 0.0
        spikes[j] = integrated >= THRESHOLD
        potential[j] = 0.0 if spikes[j] else integrated
        dead_steps[j] = REFRACTORY_STEPS if spikes[j] else max(dead_steps[j] - 1, 0)


@kernel
def transduce(velocity, first_step, ear):
    """Run hair cells, fibres and bushy cells over a block of velocity [T, 700] that begins at `first_step`.

    ear: `Ear`, overwritten. Returns the step, int64 [events], and unit, uint16 [events], of each event in order.
    """
    n_steps, n_places = velocity.shape
    probability, counts = np.empty(n_places), np.empty(n_places)
    spikes = np.empty(n_places, np.bool_)
    # A cell that fires is then refractory, so this is as many events as there can be.
    most = n_places * (n_steps // REFRACTORY_STEPS + 1)
    steps, units = np.empty(most, np.int64), np.empty(most, np.uint16)
    n_events = 0
    for step in range(first_step, first_step + n_steps):
        hair_cell_step(velocity[step - first_step], ear.free, ear.cleft, ear.reprocessed, probability)
        fibre_step(probability, ear.random, ear.ready, ear.fired[step % REFRACTORY_STEPS], counts)
        bushy_cell_step(counts, ear.current, ear.potential, ear.dead_steps, spikes)
        for unit in range(n_places):
            if spikes[unit]:
                steps[n_events], units[n_events] = step, unit
                n_events += 1
    return steps[:n_events], units[:n_events]
