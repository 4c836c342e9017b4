"""Random changes of events in training."""

import numpy as np
import pytest

from datasets.augment import Change, augment
from datasets.binning import Bins, batches
from datasets.recordings import Recordings
from snn.config import Augment
from snn.errors import InputError

ALL_ON = {"stretch": 0.1, "time_jitter_ms": 3.0, "drop": 0.2, "shift": 4, "flip": True, "zoom": 0.1, "unit_jitter": 2}
ALL_ON |= {"blend": 0.5, "mask": 5, "mask_ms": 50.0}
COCHLEA, SENSOR = (700, 1), (40, 30)  # width, height
INDEX = np.array([5, 0, 3, 9])


def make(size: tuple[int, int], dtype: type = np.float32, per_recording: int = 4000) -> Recordings:
    """Ten recordings of evenly spread events: times to 1 s, in s or in µs; two polarities on a sensor."""
    random = np.random.default_rng(0)
    times = np.sort(random.permuted(np.tile(np.arange(100_000), (10, 1)), axis=1)[:, :per_recording]) / 100_000
    times = times.ravel()  # no two events of a recording at one time
    ticks = 1e6 if np.issubdtype(dtype, np.integer) else 1.0
    channels = random.integers(0, size[0] * size[1] * (2 if size[1] > 1 else 1), len(times)).astype(np.uint16)
    offsets = np.arange(11) * per_recording
    return Recordings(offsets, (times * ticks).astype(dtype), ticks, channels, np.arange(10) % 3, np.arange(10), "made")


def changed(
    recordings: Recordings, size: tuple[int, int], key: int = 7, index: np.ndarray = INDEX, **how
) -> Recordings:
    return augment(recordings, index, index, Augment(**how), size, key)


def events(recordings: Recordings, r: int) -> tuple[np.ndarray, np.ndarray]:
    part = slice(recordings.offsets[r], recordings.offsets[r + 1])
    return recordings.times[part], recordings.channels[part]


def pixels(channels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(x, y, polarity) of each channel."""
    width, height = size
    channels = channels.astype(np.int64)
    return np.stack([channels % width, channels // width % height, channels // (width * height)])


@pytest.mark.parametrize("dtype", [np.float32, np.uint32])
@pytest.mark.parametrize("size", [COCHLEA, SENSOR])
def test_off_is_the_identity(size, dtype):
    recordings = make(size, dtype)
    same = changed(recordings, size)
    for b, r in enumerate(INDEX):
        for one, other in zip(events(same, b), events(recordings, r), strict=True):
            assert one.dtype == other.dtype
            assert one.tobytes() == other.tobytes()
    assert same.labels.tolist() == recordings.labels[INDEX].tolist()
    assert same.speakers.tolist() == INDEX.tolist()
    assert same.ticks_per_second == recordings.ticks_per_second


@pytest.mark.parametrize("size", [(0, 1), (700, 0), (700.0, 1)])
def test_a_size_that_is_none(size):
    with pytest.raises(InputError, match="the width and height"):
        changed(make(COCHLEA), size, shift=1)


@pytest.mark.parametrize("name", sorted(Augment.model_fields.keys() - {"blend"}))  # which needs partners
def test_each_part_alone_changes_something(name):
    same, new = (changed(make(SENSOR), SENSOR, index=np.arange(10), **how) for how in ({}, {name: ALL_ON[name]}))
    assert not (np.array_equal(new.channels, same.channels) and np.array_equal(new.times, same.times))


@pytest.mark.parametrize("dtype", [np.float32, np.uint32])
def test_time_jitter(dtype):
    recordings = make(COCHLEA, dtype)
    new = changed(recordings, COCHLEA, time_jitter_ms=20.0)
    assert np.array_equal(np.diff(new.offsets), [4000] * 4)  # none is lost
    moves = []
    for b, r in enumerate(INDEX):
        (times, channels), (old_times, old_channels) = events(new, b), events(recordings, r)
        assert np.array_equal(channels, old_channels)
        assert times.min() >= 0
        late = old_times > 0.1 * recordings.ticks_per_second  # no jitter takes these to 0
        moves.append((times[late].astype(float) - old_times[late]) / recordings.ticks_per_second)
        assert (times == 0).sum() > 10  # events that would come before 0
    moves = np.concatenate(moves)
    assert abs(moves.mean()) < 4 * 0.02 / len(moves) ** 0.5
    assert moves.std() == pytest.approx(0.02, rel=0.03)
    assert np.abs(moves).max() < 3.5 * 0.02
    assert np.mean(np.abs(moves) < 0.02) == pytest.approx(0.68, abs=0.03)  # as a normal distribution


def test_whole_times_do_not_run_over():
    recordings = make(COCHLEA, np.uint32)
    recordings.times[:] = 2**32 - 1
    new = changed(recordings, COCHLEA, time_jitter_ms=20.0, stretch=0.5)
    assert new.times.min() > 2**30
    assert (new.times == 2**32 - 1).any()


def test_stretch():
    recordings = make(COCHLEA)
    factors = []
    for key in range(50):
        new = changed(recordings, COCHLEA, key, stretch=0.2)
        for b, r in enumerate(INDEX):
            ratio = events(new, b)[0] / events(recordings, r)[0]
            assert ratio.max() - ratio.min() < 1e-5  # one factor for a recording
            factors.append(ratio[0])
    assert 0.8 <= min(factors) < 0.82
    assert 1.18 < max(factors) <= 1.2
    assert np.mean(factors) == pytest.approx(1, abs=0.03)
    assert np.array_equal(new.channels, np.concatenate([events(recordings, r)[1] for r in INDEX]))


def test_drop():
    recordings = make(COCHLEA)
    new = changed(recordings, COCHLEA, drop=0.3)
    for b, r in enumerate(INDEX):
        times, channels = events(new, b)
        old_times, old_channels = events(recordings, r)
        assert len(times) == pytest.approx(0.7 * 4000, abs=120)
        place = np.searchsorted(old_times, times)
        assert np.array_equal(old_times[place], times)  # a part of what was there, in its order
        assert np.isin(channels, old_channels).all()


@pytest.mark.parametrize(("size", "polarities"), [(COCHLEA, 1), (SENSOR, 2)])
def test_shift(size, polarities):
    """A recording moves as a whole, and only events that would leave the sensor are lost."""
    width, height = size
    recordings = make(size)
    seen = set()
    for key in range(60):
        new = changed(recordings, size, key, index=np.array([3]), shift=2)
        times, channels = events(new, 0)
        old_times, old_channels = events(recordings, 3)
        old = pixels(old_channels, size)
        found = []
        for dx in range(-2, 3):
            for dy in range(-2, 3) if height > 1 else (0,):
                x, y, p = old[0] + dx, old[1] + dy, old[2]
                stays = (x >= 0) & (x < width) & (y >= 0) & (y < height)
                expected = ((p * height + y) * width + x)[stays]
                if len(expected) == len(channels) and (expected == channels).all():
                    assert np.array_equal(times, old_times[stays])
                    found.append((dx, dy))
        assert len(found) == 1
        seen.add(found[0])
        assert pixels(channels, size)[2].max() == polarities - 1
    assert len(seen) >= (5 if height == 1 else 18)  # of 5 and 25


@pytest.mark.parametrize("size", [COCHLEA, SENSOR])
def test_zoom(size):
    """A recording has one factor for both axes of a sensor; the events of a unit spread over its new extent."""
    width, height = size
    recordings = make(size)
    factors = []
    for key in range(40):
        new = changed(recordings, size, key, INDEX[:1], zoom=0.2)
        times, channels = events(new, 0)
        old_times, old_channels = events(recordings, INDEX[0])
        place = np.searchsorted(old_times, times)
        assert np.array_equal(old_times[place], times)
        (x, y, p), (old_x, old_y, old_p) = pixels(channels, size), pixels(old_channels[place], size)
        assert np.array_equal(p, old_p)
        assert np.array_equal(y, old_y) or height > 1
        assert len(set(zip(old_x, x, strict=True))) > 1.1 * len(set(old_x))  # a column spreads, or gaps would stay
        far = np.abs(old_x + 0.5 - width / 2) > width / 4
        factor = np.median((x + 0.5 - width / 2)[far] / (old_x + 0.5 - width / 2)[far])
        for one, old, middle in ((x, old_x, width / 2), (y, old_y, height / 2)):
            if middle > 0.5:
                assert np.abs(one + 0.5 - middle - factor * (old + 0.5 - middle)).max() < 1.5 + 0.02 * middle
        lost = np.setdiff1d(np.arange(4000), place)
        x, y, _ = pixels(old_channels[lost], size)  # only at the edges, and only if the recording grows
        from_edge = np.minimum(np.minimum(x, width - 1 - x) / width, np.minimum(y, height - 1 - y) / height)
        if height > 1:
            assert (from_edge < 0.13).all()
        else:
            assert (np.minimum(x, width - 1 - x) < 0.1 * width).all()
        assert factor > 0.97 or not len(lost)
        factors.append(factor)
    assert 0.79 < min(factors) < 0.84
    assert 1.16 < max(factors) < 1.21


def test_flip():
    """About half of the recordings are mirrored left to right, each as a whole, and the others stay as they are."""
    width, _ = SENSOR
    recordings = make(SENSOR)
    mirrored = 0
    for key in range(20):
        new = changed(recordings, SENSOR, key, flip=True)
        for b, r in enumerate(INDEX):
            (times, channels), (old_times, old_channels) = events(new, b), events(recordings, r)
            assert np.array_equal(times, old_times)
            (x, y, p), (old_x, old_y, old_p) = pixels(channels, SENSOR), pixels(old_channels, SENSOR)
            assert np.array_equal(y, old_y)
            assert np.array_equal(p, old_p)
            is_mirrored = np.array_equal(x, width - 1 - old_x)
            assert is_mirrored or np.array_equal(x, old_x)
            mirrored += is_mirrored
    assert 25 <= mirrored <= 55  # of 80


@pytest.mark.parametrize("size", [COCHLEA, SENSOR])
def test_unit_jitter(size):
    width, height = size
    recordings = make(size)
    new = changed(recordings, size, unit_jitter=3)
    for b, r in enumerate(INDEX):
        times, channels = events(new, b)
        old_times, old_channels = events(recordings, r)
        place = np.searchsorted(old_times, times)
        moves = pixels(channels, size) - pixels(old_channels[place], size)
        assert sorted(set(moves[0])) == [*range(-3, 4)]
        assert sorted(set(moves[1])) == ([0] if height == 1 else [*range(-3, 4)])
        assert not moves[2].any()  # polarities stay
        x, y, _ = pixels(old_channels, size)
        inner = (x >= 3) & (x < width - 3) & ((y >= 3) & (y < height - 3) | (height == 1))
        assert np.isin(np.flatnonzero(inner), place).all()  # only at the edge can an event be lost
        assert len(times) < 4000


def test_everything_follows_from_key_and_recording():
    """They do not depend on the batch, its order or its share; another key gives another change."""
    recordings = make(SENSOR)
    whole = changed(recordings, SENSOR, index=np.arange(10), **ALL_ON)
    for index in (np.array([9, 2]), np.array([2]), np.arange(10)[::3]):
        part = changed(recordings, SENSOR, index=index, **ALL_ON)
        for b, r in enumerate(index):
            for one, other in zip(events(part, b), events(whole, r), strict=True):
                assert np.array_equal(one, other)
    other = changed(recordings, SENSOR, key=8, index=np.arange(10), **ALL_ON)
    assert not np.array_equal(other.offsets, whole.offsets)
    assert not np.array_equal(events(whole, 0)[0][:100], events(whole, 1)[0][:100])


def test_batches_of_changed_recordings():
    """Counts and labels are those of the changed recordings; late events are dropped by the bins alone."""
    recordings, bins = make(COCHLEA), Bins(10.0, 50, 0, 700)

    index = np.arange(10)
    change = Change(Augment(**ALL_ON), COCHLEA, 7, index)
    seen = list(batches(recordings, index, bins, 4, lambda part: part[::2], change))
    assert [target.tolist() for _, target in seen] == [[0, 2], [1, 0], [2]]
    everything = change(recordings, index)
    for (x_TBC, _), numbers in zip(seen, ([0, 2], [4, 6], [8]), strict=True):
        for b, r in enumerate(numbers):
            times, channels = events(everything, r)
            early = np.floor(1000 * times.astype(np.float64) / 10.0) < 50
            frame = np.zeros((50, 700))
            np.add.at(frame, ((1000 * times[early].astype(np.float64) / 10.0).astype(int), channels[early]), 1)
            assert np.array_equal(x_TBC.dense()[:, b].numpy(), frame)


def test_a_recording_may_lose_everything():
    recordings = make((4, 1), per_recording=5)
    for key in range(40):
        new = changed(recordings, (4, 1), key, shift=4)
        assert len(new) == 4
        x_TBC, _ = next(batches(new, np.arange(4), Bins(10.0, 5, 0, 4), 4))
        assert x_TBC.shape == (5, 4, 4)
    lengths = [np.diff(changed(recordings, (4, 1), key, shift=4).offsets).min() for key in range(40)]
    assert min(lengths) == 0


def test_masks_silence_neighbouring_channels_and_a_stretch_of_time():
    recordings = make(COCHLEA, per_recording=40_000)
    widths, lengths = [], []
    for key in range(8):
        one = changed(recordings, COCHLEA, key, INDEX[:1], mask=50)
        silent = np.setdiff1d(np.arange(700), events(one, 0)[1])
        assert len(silent) == 0 or silent[-1] - silent[0] == len(silent) - 1
        widths.append(len(silent))
        times, _ = events(changed(recordings, COCHLEA, key, INDEX[:1], mask_ms=200.0), 0)
        lengths.append(np.diff(times).max())
    assert 25 < max(widths) <= 50
    assert 0.1 < max(lengths) <= 0.2 + 1e-3


def test_blended_recordings_meet_at_their_centres():
    random = np.random.default_rng(0)
    times = np.concatenate([random.normal(0.2, 0.02, 4000), random.normal(0.4, 0.02, 4000)]).astype(np.float32)
    channels = np.concatenate([random.integers(100, 200, 4000), random.integers(300, 400, 4000)]).astype(np.uint16)
    two = Recordings(np.array([0, 4000, 8000]), times, 1.0, channels, np.zeros(2, np.int64), None, "made")
    how = Augment(blend=0.999)
    new = augment(two, np.array([0]), np.array([0]), how, COCHLEA, 3, np.array([1]))
    assert len(new.times) == pytest.approx(4000, rel=0.05)
    assert new.times.mean() == pytest.approx(0.3, abs=0.002)
    assert new.times.std() == pytest.approx(0.02, rel=0.05)
    assert new.channels.mean() == pytest.approx(249.5, abs=2)
    assert new.channels.min() >= 200
    assert new.channels.max() < 300


def test_a_recording_without_events_is_no_partner():
    times, channels = np.linspace(0.3, 0.5, 100, dtype=np.float32), np.arange(100, 200, dtype=np.uint16)
    two = Recordings(np.array([0, 100, 100]), times, 1.0, channels, np.zeros(2, np.int64), None, "made")
    new = augment(two, np.array([0, 1]), np.array([0, 1]), Augment(blend=0.999), COCHLEA, 3, np.array([1, 0]))
    assert new.offsets.tolist() == [0, 100, 100]
    assert np.array_equal(new.times, times)
    assert np.array_equal(new.channels, channels)


def test_partners_are_of_the_same_class_and_are_trained_on():
    recordings, among = make(COCHLEA), np.arange(7)
    change = Change(Augment(blend=0.5), COCHLEA, 5, among)
    partners = change._partners(recordings.labels, among)
    chosen = partners[partners >= 0]
    assert 0 < len(chosen) < len(among)
    assert np.isin(chosen, among).all()
    assert (recordings.labels[chosen] == recordings.labels[among[partners >= 0]]).all()
    whole, part = change(recordings, among), change(recordings, among[2:4])  # whatever the batch
    for b in range(2):
        assert np.array_equal(events(whole, 2 + b)[0], events(part, b)[0])
        assert np.array_equal(events(whole, 2 + b)[1], events(part, b)[1])
