"""Random changes of events during training, before they are binned. The published results were trained without them.

The change of a recording depends only on the epoch's key and the recording's number, so it depends neither on the batch
nor on the number of processes.
"""

from dataclasses import dataclass

import numpy as np

from datasets.recordings import WHOLE, AnyRecordings, Recordings, check_array, check_index
from snn import checks
from snn.config import Augment
from snn.errors import InputError
from snn.ops.compiled import inlined, kernel

# splitmix64 (Steele, Lea, Flood, OOPSLA 2014): state += GOLDEN, then the bits are mixed
GOLDEN, MIX_1, MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
LOW_16 = np.uint64(0xFFFF)
BELL_SIGMA = 2 * 65536 / 12**0.5  # of the sum of four uniform 16-bit numbers


@dataclass(frozen=True)
class Change:
    """The change of all recordings in one epoch. Partners for blending are drawn among the recordings in `among`.

    Units are p · height · width + y · width + x; a cochlea's channels have height 1 and move along x only.
    """

    how: Augment
    size: tuple[int, int]  # width and height, as the network sees them
    key: int  # of the epoch
    among: np.ndarray

    def __call__(self, recordings: AnyRecordings, numbers: np.ndarray) -> Recordings:
        """Load the recordings with these numbers and return them changed."""
        checks.whole("key", self.key, 0, 2**64 - 1)
        for index in (numbers, self.among):
            check_index(index, recordings)
        partners = self._partners(recordings.labels, numbers)
        has_one = partners >= 0
        loaded, places = recordings.load(np.concatenate([numbers, partners[has_one]]))
        partners[has_one] = places[len(numbers) :]
        return augment(loaded, places[: len(numbers)], numbers, self.how, self.size, self.key, partners)

    def _partners(self, labels: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Draw for each recording one of its class to blend with, or -1 for none; return their numbers."""
        partners = np.full(len(numbers), -1, np.int64)
        if self.how.blend:
            labels_among = labels[self.among]
            for k, number in enumerate(numbers):
                random = np.random.default_rng([self.key, number])
                mates = self.among[labels_among == labels[number]]
                if random.random() < self.how.blend and len(mates):
                    partners[k] = random.choice(mates)
        return partners


def augment(
    recordings: Recordings,
    index: np.ndarray,
    numbers: np.ndarray,
    how: Augment,
    size: tuple[int, int],
    key: int,
    partners: np.ndarray | None = None,
) -> Recordings:
    """Return the recordings in `index`, changed at random by `key` (0 to 2^64 - 1, one for each epoch) and `numbers`.

    `how` and `size` are as in `Change`.

    `partners` gives the place of the recording that each is blended with, or -1: the two move so that their mean times
    and places meet, and each event of either is kept with probability 1/2 (Nowotny et al. 2025).

    A time that would come before 0 becomes 0; one past the window is dropped when events are binned. An event that
    leaves the sensor is lost.
    """
    check_index(index, recordings)
    check_array("numbers", numbers, WHOLE)
    checks.sizes("the width and height", size)
    checks.whole("key", key, 0, 2**64 - 1)
    if len(numbers) != len(index):
        raise InputError(f"there are {len(index)} recordings to change, but {len(numbers)} numbers of them")
    partners = np.full(len(index), -1, np.int64) if partners is None else partners
    lengths = recordings.offsets[index + 1] - recordings.offsets[index]
    blended = check_index(partners[partners >= 0], recordings)
    lengths[partners >= 0] += recordings.offsets[blended + 1] - recordings.offsets[blended]
    times = np.empty(lengths.sum(), recordings.times.dtype)
    channels = np.empty(lengths.sum(), recordings.channels.dtype)
    is_whole = times.dtype.kind in "iu"
    ends = _augment(
        (recordings.offsets, recordings.times, recordings.channels, index, partners, numbers),
        (times, channels),
        np.uint64(key),
        how.stretch,
        how.time_jitter_ms * recordings.ticks_per_second / 1000,
        how.drop,
        how.shift,
        how.flip,
        how.zoom,
        how.unit_jitter,
        (how.mask, how.mask_ms * recordings.ticks_per_second / 1000),
        size,
        float(np.iinfo(times.dtype).max) if is_whole else np.inf,
        is_whole,
    )
    return Recordings(
        np.concatenate([[0], ends]),
        times[: ends[-1]],
        recordings.ticks_per_second,
        channels[: ends[-1]],
        recordings.labels[index],
        None if recordings.speakers is None else recordings.speakers[index],
        recordings.where,
    )


@kernel
def _augment(
    source, target, key, stretch, jitter_ticks, drop, shift, flip, zoom, unit_jitter, masks, size, last_tick, is_whole
):
    """Write the changed events of each recording in turn; return where each ends."""
    offsets, times, channels, index, partners, numbers = source
    new_times, new_channels = target
    mask, mask_ticks = masks
    width, height = size
    ends = np.empty(len(index), np.int64)
    k = 0
    for b in range(len(index)):
        state = np.empty(1, np.uint64)
        state[0] = _mix(key + np.uint64(numbers[b]) * GOLDEN)
        factor = 1 + stretch * (2 * _uniform(state) - 1)
        shift_x, shift_y = _whole(state, shift), _whole(state, shift)
        is_mirrored = flip and _uniform(state) < 0.5
        scale = 1.0
        if zoom > 0:
            scale += zoom * (2 * _uniform(state) - 1)
        is_blended = partners[b] >= 0 and _has_events(offsets, index[b]) and _has_events(offsets, partners[b])
        mean_t, mean_x, mean_y, last = 0.0, 0.0, 0.0, 0.0
        if is_blended or mask_ticks > 0:
            mean_t, mean_x, mean_y, last = _extent(offsets, times, channels, index[b], size)
        mask_x = mask_end_x = np.int64(0)
        if mask > 0:
            mask_x = np.int64(_uniform(state) * width)
            mask_end_x = mask_x + np.int64(_uniform(state) * (mask + 1))
        mask_t = mask_end_t = 0.0
        if mask_ticks > 0:
            mask_t = _uniform(state) * last
            mask_end_t = mask_t + _uniform(state) * mask_ticks
        dt, dx, dy = 0.0, np.int64(0), np.int64(0)
        if is_blended:
            other_t, other_x, other_y, _ = _extent(offsets, times, channels, partners[b], size)
            dt = (other_t - mean_t) / 2
            dx, dy = np.int64(np.round((other_x - mean_x) / 2)), np.int64(np.round((other_y - mean_y) / 2))
        moves = shift > 0 or zoom > 0 or unit_jitter > 0 or is_blended
        in_time = stretch > 0 or jitter_ticks > 0 or is_blended
        for part in range(2 if is_blended else 1):
            r = index[b]
            if part == 1:
                r, dt, dx, dy = partners[b], -dt, -dx, -dy
            for e in range(offsets[r], offsets[r + 1]):
                if is_blended and _uniform(state) < 0.5:
                    continue
                if drop > 0 and _uniform(state) < drop:
                    continue
                channel, x = channels[e], np.int64(0)
                if moves or mask > 0 or is_mirrored:
                    x = np.int64(channel) % width
                if moves:
                    row = np.int64(channel) // width
                    if zoom > 0:
                        x = _zoomed(state, x, width, scale)
                    x += dx + shift_x + _whole(state, unit_jitter)
                    if not 0 <= x < width:
                        continue
                    if height > 1:
                        y = row % height
                        if zoom > 0:
                            y = _zoomed(state, y, height, scale)
                        y += dy + shift_y + _whole(state, unit_jitter)
                        if not 0 <= y < height:
                            continue
                        row = row // height * height + y
                    channel = row * width + x
                if mask_x <= x < mask_end_x or mask_t <= times[e] < mask_end_t:
                    continue
                new_channels[k] = channel + (width - 1 - 2 * x if is_mirrored else 0)
                if in_time:
                    t = factor * (np.float64(times[e]) + dt)
                    if jitter_ticks > 0:
                        t += jitter_ticks * _bell(state)
                    t = min(max(t, 0.0), last_tick)
                    new_times[k] = np.floor(t + 0.5) if is_whole else t
                else:
                    new_times[k] = times[e]
                k += 1
        ends[b] = k
    return ends


@inlined
def _has_events(offsets, r):
    return offsets[r + 1] > offsets[r]


@inlined
def _extent(offsets, times, channels, r, size):
    """Return the mean time, x and y of the events of recording r, and its last time."""
    width, height = size
    t, x, y, last = 0.0, 0.0, 0.0, 0.0
    for e in range(offsets[r], offsets[r + 1]):
        t += np.float64(times[e])
        x += np.int64(channels[e]) % width
        y += np.int64(channels[e]) // width % height
        last = max(last, np.float64(times[e]))
    number = max(offsets[r + 1] - offsets[r], 1)
    return t / number, x / number, y / number, last


@inlined
def _zoomed(state, x, size, scale):
    """Return x scaled about the middle of the sensor; the exact place within the channel or pixel is drawn."""
    middle = size / 2
    return np.int64(np.floor(middle + scale * (x + _uniform(state) - middle)))


@inlined
def _mix(bits):
    bits = (bits ^ (bits >> np.uint64(30))) * MIX_1
    bits = (bits ^ (bits >> np.uint64(27))) * MIX_2
    return bits ^ (bits >> np.uint64(31))


@inlined
def _uniform(state):
    """Draw a uniform number from [0, 1)."""
    state[0] += GOLDEN
    return np.float64(_mix(state[0]) >> np.uint64(11)) * 2.0**-53


@inlined
def _whole(state, most):
    """Draw a whole number from -most to most, each with the same probability."""
    return np.int64(_uniform(state) * (2 * most + 1)) - most if most > 0 else 0


@inlined
def _bell(state):
    """Draw a nearly normal number with mean 0 and σ 1, never beyond 3.5: the sum of four uniform 16-bit numbers."""
    state[0] += GOLDEN
    bits = _mix(state[0])
    total = 0
    for _ in range(4):
        total += np.int64(bits & LOW_16)
        bits >>= np.uint64(16)
    return (total - 2 * 65535) / BELL_SIGMA
