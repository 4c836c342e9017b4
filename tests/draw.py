"""Arguments for calls of the library, drawn at random: most fit, some do not."""

import numpy as np
import torch

from datasets.binning import Bins
from datasets.recordings import Recordings
from snn.inputs import Entries, SparseCounts

DTYPES = [torch.float64, torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16, torch.bfloat16]
DTYPES += [torch.uint16, torch.complex64]
NOT_NUMBERS = [None, "3", [1, 2], True, 2.5, float("nan"), float("inf"), -1, 0, 2**40, -(2**40)]


class Draw:
    """Draws arguments that fit, and now and then one that does not."""

    def __init__(self, *seed: int):
        self.random = np.random.default_rng(seed)
        self.spoils = self.random.random() < 0.8

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def wrong(self, share: float = 0.08) -> bool:
        return self.spoils and self.chance(share)

    def of(self, values: list):
        return values[self.random.integers(len(values))]

    def size(self, most: int = 6) -> int:
        return int(self.random.integers(1, most + 1))

    def number(self, value: float):
        return self.of(NOT_NUMBERS) if self.wrong(0.04) else value

    def shape(self, *sizes: int) -> tuple[int, ...]:
        sizes = list(sizes)
        if self.wrong():
            k = self.random.integers(len(sizes))
            sizes[k] = self.of([0, 1, sizes[k] + 1, max(0, sizes[k] - 1), 3 * sizes[k], 70])
        if self.wrong(0.03):
            sizes = sizes[1:]
        if self.wrong(0.03):
            sizes.append(2)
        return tuple(sizes)

    def tensor(self, *sizes: int, low: float = 0.0, high: float = 3.0, density: float | None = None):
        """Draw numbers, some of them zero, in any memory layout and type."""
        if self.wrong(0.02):
            return self.of([None, "x", [[1.0]], np.zeros(sizes, np.float32), torch.zeros(sizes).to_sparse(), 3.0])
        shape = self.shape(*sizes)
        density = self.of([0.0, 0.05, 0.1, 0.5, 1.0]) if density is None else density
        x = self.random.uniform(low, high, shape) * (self.random.random(shape) < density)
        x = np.ceil(x) if self.chance(0.5) else x
        x = torch.from_numpy(np.asarray(x, np.float32))
        if self.wrong() and x.numel():
            x.view(-1)[self.random.integers(x.numel())] = self.of(
                [float("nan"), float("inf"), -1.0, 1e38, -float("inf")]
            )
        if self.wrong(0.15):
            x = x.nan_to_num(0).to(self.of(DTYPES))
        if self.chance(0.2) and x.dim() > 1:
            x = x.transpose(0, 1).contiguous().transpose(0, 1)
        if self.chance(0.1):
            x = x.repeat(*[1] * (x.dim() - 1), 2)[..., : x.shape[-1]] if x.dim() else x
        if self.chance(0.2) and x.is_floating_point():
            x.requires_grad_()
        return x

    def whole(self, size: int, low: int, high: int, dtype=torch.int64):
        """Draw (size,) whole numbers from low to high - 1."""
        if self.wrong(0.02):
            return self.of([None, [0, 1], np.zeros(size, np.int64), torch.zeros(size)])
        x = torch.from_numpy(self.random.integers(low, max(high, low + 1), self.shape(size))).to(dtype)
        if self.wrong() and x.numel():
            place, extremes = (
                self.random.integers(x.numel()),
                torch.tensor([-1, high, high + 1, 2**31 - 1, -(2**31), -100]),
            )
            x.view(-1)[place] = self.of(list(extremes.to(dtype)))
        return x.to(self.of([torch.int32, torch.int64, torch.uint8, torch.float32])) if self.wrong(0.05) else x

    def entries(self, rows: int, channels: int) -> Entries:
        lengths = self.random.integers(0, 4, rows)
        offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
        if self.wrong():
            offsets[self.random.integers(len(offsets))] = self.of([-1, 0, 2, 10**6, 2**62])
        n = int(lengths.sum())
        numbers = self.tensor(n, density=1.0)
        offsets = self.whole(1, 0, 1) if self.wrong(0.03) else offsets
        return Entries(offsets, self.whole(n, 0, channels, torch.int32), numbers)

    def events(self, T: int, B: int, C: int) -> SparseCounts:
        shape = self.shape(T, B, C)
        return SparseCounts(*self.entries(T * B, C), tuple(self.number(size) for size in shape))

    def array(self, values: np.ndarray) -> np.ndarray:
        """Return the values unchanged, as another type of numbers, or with another size."""
        if self.wrong(0.04):
            return self.of(
                [None, values.tolist(), values[:, None], values[:-1], np.float16(values), values.astype("O")]
            )
        if self.wrong(0.03):
            return values.astype(values.dtype.newbyteorder())
        if self.wrong() and len(values):
            values = values.copy()
            extremes = [-1, 0, 2**31 - 1, 10**6, np.nan, np.inf, -50.0, -(2**60), 2**62]
            with np.errstate(all="ignore"):
                values[self.random.integers(len(values))] = np.asarray(self.of(extremes)).astype(values.dtype)
        return values

    def recordings(self, channels: int) -> Recordings:
        lengths = self.random.integers(0, 12, self.size(5))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        times = self.random.uniform(0, 0.2, offsets[-1]).astype(np.float32)
        units = self.random.integers(0, channels, offsets[-1]).astype(self.of([np.uint16, np.int64]))
        labels = np.arange(len(lengths)) % 2
        return Recordings(
            self.array(offsets),
            self.array(times),
            self.number(1.0),
            self.array(units),
            self.array(labels),
            None,
            "mine",
        )

    def index(self, recordings: Recordings) -> np.ndarray:
        return self.array(self.random.integers(0, len(recordings), self.size(4)))

    def bins(self, channels: int) -> Bins:
        return Bins(self.number(10.0), self.number(self.size(12)), self.number(2), self.number(channels))
