"""Random changes of events during training, before they are binned. The published results were trained without them.

The change of a recording depends only on the epoch's key and the recording's number, so it depends neither on the batch
nor on the number of processes.
"""

from dataclasses import dataclass

import numpy as np

from datasets.recordings import WHOLE, Recordings, check_array, check_index
from snn import checks
from snn.errors import InputError
from snn.ops.compiled import inlined, kernel

# splitmix64 (Steele, Lea, Flood, OOPSLA 2014): state += GOLDEN, then the bits are mixed
GOLDEN, MIX_1, MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
LOW_16 = np.uint64(0xFFFF)
BELL_SIGMA = 2 * 65536 / 12**0.5  # of the sum of four


@dataclass(frozen=True)
class Augmentation:
    """The changes made to each recording, in this order; 0 leaves a part out. `snn.config` describes each.

    Units are p · height · width + y · width + x; a cochlea's channels have height 1 and move along x only.
    """

    stretch: float
    time_jitter_ms: float
    drop: float
    shift: int
    unit_jitter: int
    width: int
    height: int

    def __post_init__(self) -> None:
        for name in ("stretch", "time_jitter_ms", "drop"):
            checks.number(name, getattr(self, name), least=0)
        for name, least in (("shift", 0), ("unit_jitter", 0), ("width", 1), ("height", 1)):
            checks.whole(name, getattr(self, name), least)

    @property
    def is_off(self) -> bool:
        return not (self.stretch or self.time_jitter_ms or self.drop or self.shift or self.unit_jitter)


def augment(recordings: Recordings, index: np.ndarray, numbers: np.ndarray, how: Augmentation, key: int) -> Recordings:
    """Return the recordings in `index`, changed. `key`, 0 to 2^64 - 1, stands for the epoch, `numbers` for each one.

    A time that would come before 0 becomes 0; one past the window is dropped when events are binned. An event that
    leaves the sensor is lost. So this step loses events only by `drop` and at the edges of the sensor.
    """
    check_index(index, recordings)
    check_array("numbers", numbers, WHOLE)
    checks.whole("key", key, 0, 2**64 - 1)
    if len(numbers) != len(index):
        raise InputError(f"there are {len(index)} recordings to change, but {len(numbers)} numbers of them")
    lengths = recordings.offsets[index + 1] - recordings.offsets[index]
    times = np.empty(lengths.sum(), recordings.times.dtype)
    channels = np.empty(lengths.sum(), recordings.channels.dtype)
    is_whole = times.dtype.kind in "iu"
    ends = _augment(
        (recordings.offsets, recordings.times, recordings.channels, index, numbers),
        (times, channels),
        np.uint64(key),
        how.stretch,
        how.time_jitter_ms * recordings.ticks_per_second / 1000,
        how.drop,
        how.shift,
        how.unit_jitter,
        (how.width, how.height),
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
def _augment(source, target, key, stretch, jitter_ticks, drop, shift, unit_jitter, size, last_tick, is_whole):
    """Write the changed events of each recording in turn; return where each ends."""
    offsets, times, channels, index, numbers = source
    new_times, new_channels = target
    width, height = size
    moves, wanders = shift > 0 or unit_jitter > 0, height > 1
    ends = np.empty(len(index), np.int64)
    k = 0
    for b in range(len(index)):
        state = np.empty(1, np.uint64)
        state[0] = _mix(key + np.uint64(numbers[b]) * GOLDEN)
        factor = 1 + stretch * (2 * _uniform(state) - 1)
        shift_x, shift_y = _whole(state, shift), _whole(state, shift)
        for e in range(offsets[index[b]], offsets[index[b] + 1]):
            if drop > 0 and _uniform(state) < drop:
                continue
            channel = channels[e]
            if moves:
                x, row = np.int64(channel) % width, np.int64(channel) // width
                x += shift_x + _whole(state, unit_jitter)
                if not 0 <= x < width:
                    continue
                if wanders:
                    y = row % height + shift_y + _whole(state, unit_jitter)
                    if not 0 <= y < height:
                        continue
                    row = row // height * height + y
                new_channels[k] = row * width + x
            else:
                new_channels[k] = channel
            if stretch > 0 or jitter_ticks > 0:
                t = factor * np.float64(times[e])
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
