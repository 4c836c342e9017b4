"""The simulated event-camera set: outlines, the pixel, the files."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from datasets import readers
from datasets.prepare import planes
from datasets.recordings import Recordings
from snn.errors import InputError
from tests.programs import prepare

CHANNELS = 2 * planes.HEIGHT * planes.WIDTH
SLOW = planes.Flight(80, 150, -60, 0, 1e-4, 0, 0, 1, 1, 0.85, 3.6e6)  # all the way down in 3.6 s


def read(path: Path) -> Recordings:
    return readers.read("dvsplane", path, "train", CHANNELS, 4)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Make the smallest set, with seed 3."""
    folder = tmp_path_factory.mktemp("planes")
    done = prepare("planes", "--out", folder, "--recordings", 20, "--seed", 3, "--processes", 2)
    assert done.returncode == 0, done.stderr
    return folder


def test_outlines_are_symmetric_and_differ():
    pictures = [planes.silhouette(name) for name in planes.CLASSES]
    for picture in pictures:
        assert np.abs(picture - picture[:, ::-1]).mean() < 0.01
        assert 0.05 < picture.mean() < 0.3
        nose, wings = picture[20:40].sum(), picture[140:200].sum()
        assert nose < 0.3 * wings
    for one, other in itertools.combinations(pictures, 2):
        assert np.abs(one - other).mean() > 0.15 * one.mean()


def test_files_have_the_layout_of_dvsplane(made):
    train, test = (read(made / f"planes-{split}.hdf5") for split in ("train", "test"))
    assert np.bincount(train.labels).tolist() == [4] * 4
    assert np.bincount(test.labels).tolist() == [1] * 4
    for recordings in (train, test):
        lengths_ms = recordings.times[recordings.offsets[1:] - 1] / 1000
        assert ((lengths_ms > 180) & (lengths_ms < 270)).all()  # 242 ± 21 in DVSPlane
        assert (np.diff(recordings.offsets) > 10_000).all()


def test_same_seed_same_files_on_any_number_of_processes(tmp_path, made):
    planes.make_planes(tmp_path, 3, 20, 1)
    for name in ("planes-train.hdf5", "planes-test.hdf5"):
        one, other = read(made / name), read(tmp_path / name)
        for field in ("offsets", "times", "channels", "labels"):
            assert np.array_equal(getattr(one, field), getattr(other, field))
    assert not np.array_equal(planes._record(3, 0)[0], planes._record(4, 0)[0])


def test_what_is_made_is_kept(made, monkeypatch):
    monkeypatch.setattr(planes, "map_in_order", None)  # would fail
    planes.make_planes(made, 3, 20, None)
    with pytest.raises(TypeError):
        planes.make_planes(made, 3, 40, None)
    assert len(read(made / "planes-train.hdf5")) == 16


@pytest.mark.parametrize(
    ("words", "message"), [(("--recordings", 30), "multiple of 20"), (("--seed", -1), "seed is -1")]
)
def test_wrong_words(program, tmp_path, words, message):
    done = program("-m datasets.prepare planes", "--out", tmp_path / "x", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()


def pixel_by_pixel(picture, flight, threshold, pixels):
    """Apply the pixel's rule in plain Python; return the events (t_us, polarity) of each of `pixels`."""
    events = {pixel: [] for pixel in pixels}
    for x, y in pixels:
        light, memory, ready = 0.0, 0.0, 0.0
        for step in range(1, int(flight.duration_us / planes.STEP_US) + 1):
            now = step * planes.STEP_US
            angle = flight.heading + now * flight.spin_per_us
            dx, dy = x - flight.x0 - now * flight.vx_per_us, y - flight.y0 - now * flight.vy_per_us
            along = -(dx * np.sin(angle) + dy * np.cos(angle)) / flight.along / flight.length_px
            across = (dx * np.cos(angle) - dy * np.sin(angle)) / flight.across / flight.length_px
            texels = planes.TEXELS / planes.EXTENT * np.array([along, across]) + planes.TEXELS / 2 - 0.5
            (i, j), (r, c) = np.floor(texels).astype(int), texels % 1
            inside = 0 <= i < planes.TEXELS - 1 and 0 <= j < planes.TEXELS - 1
            weights = np.outer([1 - r, r], [1 - c, c])
            after = -flight.contrast * float((weights * picture[i : i + 2, j : j + 2]).sum()) if inside else 0.0
            for t in np.arange(now - planes.STEP_US, now, 5.0) + 5.0:  # 5 µs at a time
                value = light + (after - light) * (t - now + planes.STEP_US) / planes.STEP_US
                if t - 5.0 < ready <= t:
                    memory = value
                if t >= ready and abs(value - memory) >= threshold[y, x]:
                    events[x, y].append((t, int(value > memory)))
                    ready = t + planes.REFRACTORY_US
            light = after
    return events


def test_the_pixel_equals_its_rule_step_by_step():
    flight = planes.draw_flight(np.random.default_rng(5))._replace(duration_us=150_000.0)
    picture, threshold = planes.silhouette("Su35"), planes.thresholds(0)
    times_us, data = planes._watch(picture, flight, threshold)
    busiest = np.bincount(data[:, 1].astype(int) * planes.WIDTH + data[:, 0]).argsort()[-1:-4000:-1000]
    pixels = [(int(unit % planes.WIDTH), int(unit // planes.WIDTH)) for unit in busiest]
    expected = pixel_by_pixel(picture, flight, threshold, pixels)
    assert sum(map(len, expected.values())) >= 10
    for (x, y), events in expected.items():
        here = (data[:, 0] == x) & (data[:, 1] == y)
        assert data[here, 2].tolist() == [polarity for _, polarity in events]
        np.testing.assert_allclose(times_us[here], [t for t, _ in events], atol=25)


def test_thresholds_and_refractory_time():
    """A slow plane gives an event for each threshold of 0.25 in a contrast of 0.85, and back from the last of them."""
    even = np.full((planes.HEIGHT, planes.WIDTH), 0.25, np.float32)
    times_us, data = planes._watch(planes.silhouette("F117"), SLOW, even)
    off, on = np.zeros((2, planes.HEIGHT, planes.WIDTH), int)
    for count, polarity in ((off, 0), (on, 1)):
        x, y, _ = data[data[:, 2] == polarity].T
        np.add.at(count, (y, x), 1)
    under_the_nose = np.s_[20:220, 148:153]
    assert (off[under_the_nose] == 3).all()
    assert np.isin(on[under_the_nose], (2, 3)).all()
    fast = planes.draw_flight(np.random.default_rng(0))
    times_us, data = planes._watch(planes.silhouette("F117"), fast, planes.thresholds(0))
    unit = data[:, 1].astype(int) * planes.WIDTH + data[:, 0]
    order = np.lexsort((times_us, unit))
    gaps_us = np.diff(times_us[order])[np.diff(unit[order]) == 0]
    assert len(gaps_us) > 10_000
    assert gaps_us.min() >= planes.REFRACTORY_US - 1e-3


def test_noise_and_mismatch():
    away = planes.Flight(100, -900, -900, 0, 0, 0, 0, 1, 1, 0.8, 2e6)
    times_us, data = planes.camera(planes.silhouette("F117"), away, planes.thresholds(0), np.random.default_rng(0))
    expected = planes.NOISE_HZ * 2 * planes.HEIGHT * planes.WIDTH
    assert len(times_us) == pytest.approx(expected, abs=4 * expected**0.5)
    assert (np.diff(times_us) >= 0).all()
    assert data.max(axis=0).tolist() == [planes.WIDTH - 1, planes.HEIGHT - 1, 1]
    threshold = planes.thresholds(0)
    assert threshold.mean() == pytest.approx(planes.THRESHOLD, rel=0.001)
    assert threshold.std() == pytest.approx(planes.MISMATCH * planes.THRESHOLD, rel=0.02)
    with pytest.raises(InputError, match="busy"):
        planes.busy_part(times_us[:1001])
