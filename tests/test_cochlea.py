"""The artificial cochlea, stage by stage: against the source equations, slow simulations and `lauscher`."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.fft import ifft, rfft
from scipy.signal import resample

from datasets.prepare import cochlea as c
from datasets.prepare import cochlea_c
from snn.errors import InputError

FSDD = Path(__file__).parents[2] / "shared" / "data" / "fsdd_train.npz"


def tone(frequency_hz, duration_s=0.4, rate_hz=48_000):
    return np.sin(2 * np.pi * frequency_hz * np.arange(round(duration_s * rate_hz)) / rate_hz)


def vowel(duration_s=0.4, rate_hz=48_000):
    """Make a harmonic sound with three formants and the loudness and spectrum of speech."""
    harmonics = np.arange(120, 8000, 120)
    gain = sum(1 / (1 + ((harmonics - formant) / 120) ** 2) for formant in (500, 1500, 2500))
    return gain @ np.array([tone(h, duration_s, rate_hz) for h in harmonics])


def test_pressure_ratio_has_the_published_values():
    places_cm = np.linspace(0, 3.5, 701)
    ratio = c.pressure_ratio(np.array([500.0]), places_cm)[0]
    expected = {0.5: 0.72002 + 0.22644j, 1.0: 0.35512 + 0.41490j, 1.8: -0.29021 - 0.00375j, 2.3: 0.07796 + 0.11348j}
    for place_cm, value in expected.items():
        assert abs(np.interp(place_cm, places_cm, ratio) - value) < 3e-5


def test_velocity_peaks_at_the_place_of_each_frequency():
    """A place resonates where S = m ω²; damping and the wave's decay move the peak a little towards the base."""
    places_cm = np.array([0.5, 1.0, 1.5, 2.0, 2.5])
    frequency_hz = np.sqrt((c.C0 * np.exp(-c.ALPHA * places_cm) - c.MEMBRANE_A) / c.MASS) / (2 * np.pi)
    peaks_cm = c.PLACES_CM[np.abs(c.velocity_transfer(frequency_hz)).argmax(axis=1)]
    assert np.all(np.abs(peaks_cm - places_cm) < 0.1)


def test_overlap_save_equals_one_long_transform():
    """Compare all groups of places with a single FFT; only the wrap-around and the interpolation differ."""
    audio = c.condition(np.random.default_rng(0).standard_normal(14_400), 48_000)
    hops = [hop.copy() for hop in c.membrane_velocity(audio)]
    assert {len(hop) for hop in hops[:-1]} == {c.HOP}
    velocity = np.concatenate(hops)
    assert len(velocity) == round((0.3 + c.PADDING_S) * c.RATE_HZ)
    n = 12_000  # half a second: the sound, then silence
    transfer = np.concatenate([c.velocity_transfer(f) for f in np.split(np.linspace(1, c.RATE_HZ, n + 1)[:-1], 10)])
    spectrum = rfft(audio, n=2 * n)[:n, None]
    # Place 0 answers at 22 kHz, cut off by the 24 kHz of the spectrum, so its answer to an impulse never quite ends.
    for place, tolerance in {0: 0.05, 50: 1e-3, 150: 1e-4, 287: 1e-4, 288: 3e-4, 500: 3e-4, 699: 1e-3}.items():
        expected = ifft(transfer[:, place : place + 1] * spectrum, axis=0).real[: len(velocity), 0]
        assert np.abs(velocity[:, place] - expected).max() < tolerance * np.abs(expected).max()


def test_resting_state_is_a_fixed_point():
    """At two places, the first and the last."""
    ear = c.Ear.at_rest(0)
    rest = [part[[0, -1]] for part in (ear.free, ear.cleft, ear.reprocessed)]
    free, cleft, reprocessed, probability = (*(part.copy() for part in rest), np.empty(2, np.float32))
    for _ in range(24_000):
        c.hair_cell_step(np.zeros(2, np.float32), free, cleft, reprocessed, probability)
    for part, at_rest in zip((free, cleft, reprocessed), rest, strict=True):
        np.testing.assert_allclose(part, at_rest, rtol=1e-4)
    np.testing.assert_allclose(probability, c.HAIR_H * rest[1] * c.STEP_S, rtol=1e-4)
    assert 60 < probability[0] / c.STEP_S < 70  # spontaneous rate of a fibre, Hz


def test_hair_cell_follows_the_equations():
    """One place, scalar arithmetic in the symbols of the paper."""
    y, g, l, r, x, a, b, h, m, dt = 5.05, 2000.0, 2500.0, 6580.0, 66.3, 5.0, 300.0, 50000.0, 1.0, 1 / 24000
    ear = c.Ear.at_rest(0)
    state = [ear.free[:1].copy(), ear.cleft[:1].copy(), ear.reprocessed[:1].copy()]
    q, cl, w = (float(part[0]) for part in state)
    probability = np.empty(1, np.float32)
    for u in np.random.default_rng(1).normal(0, 200, 2000):
        k = g * (u + a) / (u + a + b) if u + a > 0 else 0
        dq, dc, dw = y * max(m - q, 0) - k * q + x * w, k * q - (l + r) * cl, r * cl - x * w
        q, cl, w = max(q + dt * dq, 0), max(cl + dt * dc, 0), max(w + dt * dw, 0)
        c.hair_cell_step(np.array([u], np.float32), *state, probability)
        assert probability[0] == pytest.approx(h * cl * dt, rel=2e-5)
        assert probability[0] < 0.46


def fibre_counts(probability, n_steps, seed):
    """`fibre_step` at constant probabilities: counts [n_steps, places] and the ready fibres before each draw."""
    probability, n = probability.astype(np.float32), len(probability)
    random = np.random.SeedSequence(seed).generate_state(n, np.uint64)
    ready, fired = np.full(n, c.N_FIBRES, np.float32), np.zeros((c.REFRACTORY_STEPS, n), np.float32)
    counts, before = np.empty((2, n_steps, n), np.float32)
    for step in range(n_steps):
        slot = fired[step % c.REFRACTORY_STEPS]
        before[step] = ready + slot
        c.fibre_step(probability, random, ready, slot, counts[step])
    return counts, before


def simulated_fibres(probability, n_steps, seed):
    """40 separate fibres per place: counts [n_steps, places]."""
    rng = np.random.default_rng(seed)
    last_spike = np.full((len(probability), c.N_FIBRES), -1_000_000)
    counts = np.empty((n_steps, len(probability)))
    for step in range(n_steps):
        ready = step - last_spike >= c.REFRACTORY_STEPS
        fires = ready & (rng.random(ready.shape) < probability[:, None])
        last_spike[fires] = step
        counts[step] = fires.sum(axis=1)
    return counts


@pytest.mark.parametrize("probability", [1e-4, 2.7e-3, 0.02, 0.15, 0.45])
def test_fibres_have_the_distribution_of_separate_fibres(probability):
    """Means within five standard errors over 300 independent places, histograms by total variation."""
    probabilities = np.full(300, probability)
    counts, _ = fibre_counts(probabilities, 600, seed=2)
    slow = simulated_fibres(probabilities, 600, seed=3)
    for statistic in (np.mean, np.var, lambda x, axis: (x[24:] * x[:-24]).mean(axis=axis)):
        ours, theirs = statistic(counts, axis=0), statistic(slow, axis=0)
        error = np.hypot(ours.std(), theirs.std()) / np.sqrt(300)
        assert abs(ours.mean() - theirs.mean()) < 5 * error
    ours, theirs = (np.bincount(x.astype(int).ravel(), minlength=41) / x.size for x in (counts, slow))
    assert 0.5 * np.abs(ours - theirs).sum() < 0.01


def test_binomial_draw_is_exact():
    """The draw given the ready fibres, over the shortcut by Bonferroni and the inversion: chi-square against theory."""
    from scipy.stats import binom, chisquare

    for probability in (2e-3, 0.01, 0.1, 0.4):
        counts, before = fibre_counts(np.full(700, probability), 1, seed=4)
        for seed in range(5, 60):
            more, _ = fibre_counts(np.full(700, probability), 1, seed)
            counts = np.concatenate([counts, more])
        assert np.all(before == c.N_FIBRES)
        observed = np.bincount(counts.astype(int).ravel(), minlength=41)
        expected = binom.pmf(np.arange(41), c.N_FIBRES, probability) * counts.size
        common = expected > 10
        observed = np.append(observed[common], observed[~common].sum())
        expected = np.append(expected[common], expected[~common].sum())
        assert chisquare(observed, expected).pvalue > 1e-4


def test_fibres_rest_for_a_millisecond():
    counts, _ = fibre_counts(np.full(100, 0.3), 500, seed=6)
    windows = np.lib.stride_tricks.sliding_window_view(counts, c.REFRACTORY_STEPS, axis=0).sum(axis=-1)
    assert windows.max() == c.N_FIBRES  # no fibre fires twice in 24 steps, and all of them do fire


def test_silent_fibres_never_fire():
    counts, _ = fibre_counts(np.zeros(700), 300, seed=7)
    assert not counts.any()


def test_bushy_cell_trace():
    """One cell by hand: below threshold, a spike, 1 ms of silence, recovery."""
    current, potential = np.zeros((2, 1), np.float32)
    dead, spikes = np.zeros(1, np.int32), np.zeros(1, np.bool_)
    i, v, rest, reference, fired = 0.0, 0.0, 0, [], []
    for step in range(400):
        count = float(step % 5)
        i = i * np.exp(-1 / 12) + 325 * count
        v = v * np.exp(-1 / 24) + i / 24_000 if rest == 0 else 0.0
        rest = max(rest - 1, 0)
        reference.append(v >= 1)
        if v >= 1:
            v, rest = 0.0, 24
        c.bushy_cell_step(np.array([count], np.float32), current, potential, dead, spikes)
        fired.append(bool(spikes[0]))
    assert fired == reference
    assert np.diff(np.flatnonzero(fired)).min() > c.REFRACTORY_STEPS


def test_low_tones_excite_the_apex_and_high_tones_the_base():
    medians = [np.median(c.cochlea(tone(f), 48_000, 0)[1]) for f in (4000, 1000, 250)]
    assert medians[0] < 350 < medians[1] < medians[2]


def test_events_of_a_speech_like_sound():
    """A 0.44 s digit at 48 kHz gives 5,500 to 6,700 events; a sustained vowel is denser than a word."""
    times_s, units = c.cochlea(vowel(0.44), 48_000, 0)
    assert 4_000 < len(units) < 14_000
    assert times_s.dtype == np.float32
    assert units.dtype == np.uint16
    assert np.all(np.diff(times_s) >= 0)
    assert times_s[0] >= 0
    assert times_s[-1] <= 0.44 + c.PADDING_S
    assert units.max() < c.N_PLACES
    for unit in (500, 600, 690):
        assert np.diff(times_s[units == unit]).min() > 1e-3 - 1e-6  # refractory


def test_same_seed_same_events():
    sound = vowel(0.2)
    first, again, other = (c.cochlea(sound, 48_000, seed) for seed in ((5, 1), (5, 1), (5, 2)))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert len(first[0]) != len(other[0]) or np.any(first[1] != other[1])


def test_loudness_and_sample_rate_hardly_matter():
    """The audio is normalised and resampled, so only the rounding of both can move an event."""
    n_events = len(c.cochlea(vowel(0.3), 48_000, 0)[0])
    assert len(c.cochlea(1e-3 * vowel(0.3), 48_000, 0)[0]) == pytest.approx(n_events, rel=0.02)
    assert len(c.cochlea(vowel(0.3, 22_050), 22_050, 0)[0]) == pytest.approx(n_events, rel=0.05)


@pytest.mark.parametrize("audio", [np.zeros(10_000), np.full(10_000, np.nan), np.ones(1000), np.ones((9000, 2))])
def test_useless_audio_is_refused(audio):
    with pytest.raises(InputError, match="audio"):
        c.cochlea(audio, 48_000, 0)


def test_conditioned_audio():
    audio = c.condition(tone(440, 0.5, 16_000), 16_000)
    assert len(audio) == 24_000
    assert np.sqrt(np.mean(audio[3000:-3000] ** 2)) == pytest.approx(c.AUDIO_RMS, rel=0.01)
    assert audio[0] == 0
    assert np.abs(audio[-1]) < 1e-3
    assert np.abs(audio[:720]).max() < 0.5 * np.abs(audio[3000:-3000]).max() * 1.05  # half-way up the ramp


def test_against_lauscher():
    """The authors' program at four of the 700 places: three stages by value, the last two by rates."""
    pytest.importorskip("lauscher")
    from lauscher.audiowaves import MonoAudioWave
    from lauscher.firing_probability import FiringProbability
    from lauscher.transformations.basilar_membrane import BasilarMembrane
    from lauscher.transformations.bushy_cell import BushyCell
    from lauscher.transformations.hair_cell import HairCell

    places = [0, 233, 466, 699]  # linspace(0, 3.5, 4) among linspace(0, 3.5, 700)
    sound = c.condition(np.random.default_rng(8).standard_normal(24_000), 48_000)
    audio = np.concatenate([np.zeros(9600), sound, np.zeros(9600)]).astype(np.float32)  # theirs wraps around
    membrane = MonoAudioWave(audio, 48_000).transform(BasilarMembrane(channels=4))
    theirs = np.asarray(membrane.channels)
    # Their inverse FFT spreads the same time over one sample more. Place 0 answers above 12 kHz, where samples alias
    # and cannot be moved to our times: only its power is compared.
    n_steps = len(audio) // 2
    ours = np.concatenate([hop.copy() for hop in c.membrane_velocity(audio)])[:n_steps, places].T
    theirs = resample(theirs, n_steps, axis=1)
    difference = np.sqrt(np.mean((ours - theirs) ** 2, axis=1) / np.mean(theirs**2, axis=1))
    assert np.all(difference[1:] < 0.01)
    assert np.mean(ours[0] ** 2) == pytest.approx(np.mean(theirs[0] ** 2), rel=0.02)

    probabilities = np.asarray(membrane.transform(HairCell()).channels)
    ear = c.Ear.at_rest(0)
    state = [part[:4].copy() for part in (ear.free, ear.cleft, ear.reprocessed)]
    probability = np.empty(4, np.float32)
    for step in range(5000):
        c.hair_cell_step(np.asarray(membrane.channels, np.float32)[:, step].copy(), *state, probability)
        np.testing.assert_allclose(probability, probabilities[:, step], rtol=1e-4)

    constant = np.array([0.004, 0.006, 0.01, 0.02, 0.05, 0.1, 0.3])
    n_steps = 48_000
    np.random.seed(0)  # noqa: NPY002  theirs draws from the global generator
    trains = FiringProbability(np.repeat(constant[:, None], n_steps, 1), c.RATE_HZ).transform(BushyCell())
    theirs = np.bincount(np.asarray(trains._data)[1].astype(int), minlength=len(constant))
    counts, _ = fibre_counts(constant, n_steps, seed=9)
    (current, potential), dead = np.zeros((2, 7), np.float32), np.zeros(7, np.int32)
    spikes, ours = np.zeros(7, np.bool_), np.zeros(7, int)
    for count in counts:
        c.bushy_cell_step(count, current, potential, dead, spikes)
        ours += spikes
    assert np.all(np.abs(ours - theirs) <= 5 * np.sqrt(theirs) + 0.01 * theirs)


@pytest.mark.skipif(not FSDD.exists(), reason="needs ../shared/data")
def test_statistics_of_ready_made_cochleagrams():
    """Events per second and their spread over the units, against real speech through a cochlea of this kind."""
    from datasets.prepare.speech import synthesise

    packed = np.load(FSDD)
    n_recordings = len(packed["labels"])
    per_recording = len(packed["units"]) / n_recordings
    theirs = np.histogram(packed["units"], bins=14, range=(0, 700))[0] / len(packed["units"])
    recordings = [
        c.cochlea(*synthesise(word, "en", voice, 50, 150), seed)
        for seed, (word, voice) in enumerate((w, v) for w in ("zero", "three", "seven", "nine") for v in ("m1", "f2"))
    ]
    units = np.concatenate([units for _, units in recordings])
    ours = np.histogram(units, bins=14, range=(0, 700))[0] / len(units)
    assert 0.6 * per_recording < len(units) / len(recordings) < 1.4 * per_recording
    assert 0.5 * np.abs(ours - theirs).sum() < 0.2


COMPILERS = {"gcc": ("gcc",), "zig": (sys.executable, "-m", "ziglang", "cc")}


@pytest.mark.parametrize("name", COMPILERS)
def test_c_hears_what_python_hears(name):
    """The transforms of C and of scipy round differently, which moves an event now and then: at most 1 in 1,000."""
    if name == "gcc" and shutil.which("gcc") is None:
        pytest.skip("needs gcc: apt install gcc")
    if name == "zig":
        pytest.importorskip("ziglang", reason="needs a C compiler: pip install ziglang")
    compiled = cochlea_c.Compiled(COMPILERS[name], (*cochlea_c.FLAGS, "-Wall", "-Wextra", "-pedantic", "-Werror"))
    theirs, ours = (hear(vowel(0.4), 48_000, (3, 4)) for hear in (c.cochlea, compiled.cochlea))
    theirs, ours = (set(zip(times_s.tolist(), units.tolist(), strict=True)) for times_s, units in (theirs, ours))
    assert len(theirs ^ ours) <= len(theirs) / 1000
    whole = compiled.cochlea(vowel(0.2), 48_000, 5)
    assert np.all(np.diff(whole[0]) >= 0)
    for at_once in (1, 128, 1279, 5000):
        for part, expected in zip(compiled.cochlea(vowel(0.2), 48_000, 5, at_once), whole, strict=True):
            np.testing.assert_array_equal(part, expected)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc: apt install gcc")
def test_c_touches_only_its_struct(tmp_path):
    """Push a sound in pieces under AddressSanitizer and UBSan, which must not complain."""
    main = """
        #include <stdio.h>
        #include <stdlib.h>
        #include "cochlea.h"
        int main(void) {
          struct cochlea *ear = malloc(sizeof *ear);
          float *tables = malloc(EAR_TABLES * sizeof *tables), audio[500];
          uint64_t random[EAR_PLACES];
          FILE *file = fopen("tables", "rb");
          if (fread(tables, sizeof *tables, EAR_TABLES, file) != EAR_TABLES) return 1;
          for (int k = 0; k < EAR_PLACES; k++) random[k] = 1 + (uint64_t)k * 0x9e3779b97f4a7c15u;
          cochlea_start(ear, tables, random);
          int events = 0;
          for (int k = 0, at = 0; k < 60; k++, at = 0) {
            for (int i = 0; i < 500; i++) audio[i] = (float)((500 * k + i) % 200 - 100) / 100.0f;
            while (at < 500) {
              at += cochlea_push(ear, audio + at, 500 - at);
              events += ear->num_events;
            }
          }
          printf("%d", events);
          free(ear), free(tables), fclose(file);
        }"""
    (tmp_path / "main.c").write_text(main)
    (tmp_path / "cochlea_constants.h").write_text(cochlea_c.constants())
    cochlea_c.tables().tofile(tmp_path / "tables")
    flags = ["-std=c99", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-ffp-contract=off"]
    sources = ["main.c", cochlea_c.SOURCE, "-I.", f"-I{cochlea_c.SOURCE.parent}"]
    subprocess.run(["gcc", *flags, *sources, "-o", "hear"], cwd=tmp_path, check=True)
    heard = subprocess.run(["./hear"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert heard.stderr == ""
    assert int(heard.stdout) > 1000
