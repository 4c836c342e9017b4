"""Sparse convolutions on the CPU: the work grows with the number of events.

An input row is a pixel, r = (f·H + y)·W + x of frame f, and its entries are its active channels. An output row is a
pixel of the (padded, strided) result. Outputs are cut into S slices of LANES, the last padded with zeros. Weights are
W_SKCL, with all K·K taps (places in the kernel) on the second axis, so that an event adds one contiguous row for each
output pixel that sees it.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from snn import checks
from snn.errors import InputError
from snn.inputs import Entries
from snn.ops.compiled import in_parts, kernel
from snn.ops.lanes import LANES, add_product, load, load_part, store, store_part, where, zeros
from snn.ops.sparse import arrays, slices

BLOCK = 256  # output pixels, at most, that a line of the kernel is taken to
SECTION = 64  # frames whose entries are sorted at once for the weight gradient


class Geometry(NamedTuple):
    """The size of the input image, and the kernel and stride of the convolution."""

    height: int
    width: int
    kernel: int  # K, odd; the padding is K // 2
    stride: int

    def check(self) -> None:
        """Raise InputError unless an image can have this size and such a kernel can slide over it."""
        for name, value in self._asdict().items():
            checks.whole(name, value, 1)
        if self.kernel % 2 == 0:
            raise InputError(f"the kernel of a convolution must be odd, but is {self.kernel}")

    @property
    def out_height(self) -> int:
        return -(-self.height // self.stride)

    @property
    def out_width(self) -> int:
        return -(-self.width // self.stride)


def thinned(x_FCHW: Tensor, kernel: int, stride: int) -> tuple[Tensor, int]:
    """Return the pixels that torch's convolution has to read, and its stride over them.

    A kernel of 1 x 1 reads each pixel alone, so the stride can leave pixels out beforehand. If torch does that, its
    gradient of the weights writes beyond its memory for few channels that lie last in memory (torch 2.14 with AVX2,
    https://github.com/uxlfoundation/oneDNN/issues/6035).
    """
    return (x_FCHW[..., ::stride, ::stride], 1) if kernel == 1 else (x_FCHW, stride)


@kernel
def rows_of_pixels(
    offsets, channels, counts, inner, is_pixel_first, pixel_offsets, pixel_channels, pixel_counts, begin, end
):  # fmt: skip
    """Write the entries of the images begin ... end pixel by pixel; `pixel_offsets` must hold zeros at the start.

    Entries are numbered pixel · inner + channel if `is_pixel_first`, otherwise channel · inner + pixel.
    """
    inner, pixels = np.uint32(inner), (len(pixel_offsets) - 1) // (len(offsets) - 1)
    for r in range(begin, end):
        first, last = offsets[r], offsets[r + 1]
        ends = pixel_offsets[r * pixels + 1 :]  # first the entries of each pixel, then where its next one goes
        for e in range(first, last):
            ends[channels[e] // inner if is_pixel_first else channels[e] % inner] += 1
        at = first
        for p in range(pixels):
            number = ends[p]
            ends[p] = at
            at += number
        for e in range(first, last):
            c = channels[e] // inner
            p = channels[e] - c * inner
            if is_pixel_first:
                p, c = c, p
            to = ends[p]
            pixel_channels[to], pixel_counts[to] = c, counts[e]
            ends[p] = to + 1
        for p in range(pixels):
            for e in range(first + 1, ends[p]):  # sorts these few by channel, the order of the dense product
                c, count = pixel_channels[e], pixel_counts[e]
                k = e
                while k > first and pixel_channels[k - 1] > c:
                    pixel_channels[k], pixel_counts[k] = pixel_channels[k - 1], pixel_counts[k - 1]
                    k -= 1
                pixel_channels[k], pixel_counts[k] = c, count
            first = ends[p]


@kernel
def product_lines(offsets, channels, counts, W_SKCL, sums, out, height, width, K, stride, begin, end):
    """Set the lines begin ... end of `out`, counted over all frames, to Σ counts · w, and those of `sums` to Σ w.

    `sums` may be None. Each line of the kernel is taken to a block of lines, so that its weights stay in a near cache.
    """
    (S, _, C, _), N = W_SKCL.shape, out.shape[1]
    out_height, out_width = -(-height // stride), -(-width // stride)
    block = max(1, BLOCK // out_width)
    out[begin * out_width : end * out_width] = 0
    if sums is not None:
        sums[begin * out_width : end * out_width] = 0
    for first in range(begin, end, block):
        for s in range(S):
            for dy in range(K):
                for line in range(first, min(first + block, end)):
                    y = line % out_height * stride + dy - K // 2
                    row = (line // out_height * height + y) * width
                    if y < 0 or y >= height or offsets[row] == offsets[row + width]:
                        continue
                    for column in range(out_width):
                        left = column * stride - K // 2
                        x_first, x_last = max(0, left), min(left + K, width)
                        if offsets[row + x_first] == offsets[row + x_last]:
                            continue
                        at, room = (line * out_width + column) * N + s * LANES, N - s * LANES
                        out_L = load_part(out, at, room, LANES)
                        sum_L = out_L if sums is None else load_part(sums, at, room, LANES)
                        w = ((s * K + dy) * K + x_first - left) * C
                        for r in range(row + x_first, row + x_last):
                            for e in range(offsets[r], offsets[r + 1]):
                                w_L = load(W_SKCL, (w + channels[e]) * LANES, LANES)
                                out_L = add_product(out_L, counts[e], w_L)
                                if sums is not None:
                                    sum_L = sum_L + w_L
                            w += C
                        store_part(out, at, room, out_L)
                        if sums is not None:
                            store_part(sums, at, room, sum_L)


@kernel
def _sort_frames(
    offsets, channels, counts, constants, starts, places, sorted_counts, sorted_constants, size, begin, end
):  # fmt: skip
    """Order the entries of the frames begin ... end by channel and phase; `constants` may be None.

    Pixel (y, x) has the phase p = (y mod stride) · stride + x mod stride. The entries of channel c and phase p in frame
    k begin at starts[k, c · stride² + p]. places[e] is the pixel (y // stride, x // stride) of an output map with its
    margin; through each tap an entry is seen by the pixel a fixed shift away.
    """
    height, width, stride, margin = size
    phases = stride * stride
    line_length = -(-width // stride) + 2 * margin
    frame_length = (-(-height // stride) + 2 * margin) * line_length
    groups = starts.shape[1] - 1
    place = np.empty(groups, np.int64)
    for k in range(begin, end):
        frame = k * height * width
        place[:] = 0
        for y, x in np.ndindex(height, width):
            phase, r = y % stride * stride + x % stride, frame + y * width + x
            for e in range(offsets[r], offsets[r + 1]):
                place[channels[e] * phases + phase] += 1
        at = offsets[frame]
        for g in range(groups):
            starts[k, g] = at
            at += place[g]
            place[g] = starts[k, g]
        starts[k, groups] = at
        for y, x in np.ndindex(height, width):
            phase, r = y % stride * stride + x % stride, frame + y * width + x
            seen_by = k * frame_length + (y // stride + margin) * line_length + x // stride + margin
            for e in range(offsets[r], offsets[r + 1]):
                to = place[channels[e] * phases + phase]
                places[to] = seen_by
                sorted_counts[to] = counts[e]
                if constants is not None:
                    sorted_constants[to] = constants[e]
                place[channels[e] * phases + phase] = to + 1


@kernel
def _weight_gradient(starts, places, values, constants, maps, gW_SKCL, N, line_length, stride, begin, end):
    """Add Σ values · maps[the pixel that sees the entry] to gW_SKCL[s, tap, c], for channels c = begin ... end.

    `maps` are output pixels with a margin. With `constants`, they hold spike times t, inf for none, and the sum is one
    of constants - values · t over the times that are finite.
    """
    S, taps, C, _ = gW_SKCL.shape
    K = int(np.sqrt(taps))
    for k, c, s in np.ndindex(len(starts), end - begin, S):
        c += begin
        if starts[k, c * stride * stride] == starts[k, (c + 1) * stride * stride]:
            continue
        for tap in range(taps):
            dy, dx = K // 2 - tap // K, K // 2 - tap % K
            group = c * stride * stride + -dy % stride * stride + -dx % stride
            first, last = starts[k, group], starts[k, group + 1]
            if first == last:
                continue
            shift = (-(-dy // stride) * line_length - (-dx // stride)) * N + s * LANES
            at = ((s * taps + tap) * C + c) * LANES
            sum_L = load(gW_SKCL, at, LANES)
            if constants is None:
                for e in range(first, last):
                    sum_L = add_product(sum_L, values[e], load(maps, places[e] * N + shift, LANES))
            else:
                none_L = zeros(gW_SKCL, LANES)
                for e in range(first, last):
                    t_L = load(maps, places[e] * N + shift, LANES)
                    sum_L = sum_L + where(t_L < np.inf, add_product(none_L + constants[e], -values[e], t_L), none_L)
            store(gW_SKCL, at, sum_L)


def pixel_rows(of_images: Entries, pixels: int) -> Entries:
    """Turn entries with a row for each image into entries with a row for each pixel, in the order of their channels.

    In a row of an image, pixel p has the channels c · pixels + p.
    """
    offsets, channels, counts = arrays(of_images, of_images.counts.dtype)
    images = len(offsets) - 1
    of_pixels = np.zeros(images * pixels + 1, np.int64), np.empty(len(channels), np.int32), np.empty_like(counts)
    in_parts(rows_of_pixels, (offsets, channels, counts, pixels, False, *of_pixels), images)
    return Entries(*map(torch.from_numpy, of_pixels))


def product(entries: Entries, W_NCKK: Tensor, shape: Geometry, with_sums: bool = False) -> Tensor:
    """Return the convolution, (output rows, N).

    With `with_sums`, the convolution of ones in place of the counts stands above it: (2 · output rows, N).
    """
    lines = (len(entries.offsets) - 1) // (shape.height * shape.width) * shape.out_height
    out = torch.empty(1 + with_sums, lines * shape.out_width, len(W_NCKK), dtype=W_NCKK.dtype)
    sums_RN, out_RN = out[0].numpy() if with_sums else None, out[-1].numpy()
    arguments = (*arrays(entries, W_NCKK.dtype), slices(W_NCKK).numpy(), sums_RN, out_RN, *shape)
    in_parts(product_lines, arguments, lines)
    return out.flatten(0, 1)


def weight_gradient(
    entries: Entries, gy_RN: Tensor, num_inputs: int, shape: Geometry, constants: Tensor | None = None
) -> Tensor:
    """Return the gradient of the weights, (N, C, K, K), from that of the output rows.

    With `constants`, one for each entry, the output rows are spike times t, inf for none, and the result is the sum of
    constants - counts · t over those that are finite.
    """
    of_all = arrays(entries, gy_RN.dtype)
    constants_E = None if constants is None else constants.detach().to(gy_RN.dtype).contiguous().numpy()
    frames, N, K = len(gy_RN) // (shape.out_height * shape.out_width), gy_RN.shape[1], shape.kernel
    margin = -(-(K // 2) // shape.stride)
    # Maps with a margin. A slice of lanes reads beyond the N numbers of a pixel; the sums of what follows are dropped.
    size = min(frames, SECTION), shape.out_height + 2 * margin, shape.out_width + 2 * margin, N
    maps = gy_RN.new_full((math.prod(size) + LANES,), 0 if constants is None else math.inf)
    inner_FHWN = maps[:-LANES].view(size)[:, margin:, margin:][:, : shape.out_height, : shape.out_width]
    gy_FHWN = gy_RN.detach().reshape(frames, shape.out_height, shape.out_width, N)
    gW_SKCL = torch.zeros(-(-N // LANES), K * K, num_inputs, LANES, dtype=gy_RN.dtype)
    for first in range(0, frames, SECTION):
        last = min(first + SECTION, frames)
        inner_FHWN[: last - first] = gy_FHWN[first:last]
        groups = _by_channel(of_all, constants_E, first, last, num_inputs, shape, margin)
        arguments = (*groups, maps.numpy(), gW_SKCL.numpy(), N, size[2], shape.stride)
        # A thread sums whole channels, in the order of the rows, so the bits are the same for any number of threads.
        in_parts(_weight_gradient, arguments, num_inputs)
    gW_KCN = gW_SKCL.permute(1, 2, 0, 3).flatten(2)[:, :, :N]
    return gW_KCN.view(K, K, num_inputs, N).permute(3, 2, 0, 1)


def _by_channel(
    of_all: tuple[np.ndarray, np.ndarray, np.ndarray], constants: np.ndarray | None, first: int, last: int,
    num_inputs: int, shape: Geometry, margin: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:  # fmt: skip
    """Return (starts, places, counts, constants) of the frames first ... last, see `_sort_frames`."""
    offsets, channels, counts = of_all
    pixels = shape.height * shape.width
    begins = offsets[first * pixels : last * pixels + 1]
    entries = slice(begins[0], begins[-1])
    starts = np.empty((last - first, num_inputs * shape.stride**2 + 1), np.int64)
    places, sorted_counts = np.empty(begins[-1] - begins[0], np.int32), np.empty_like(counts[entries])
    of_each = (None, None) if constants is None else (constants[entries], np.empty_like(sorted_counts))
    size = shape.height, shape.width, shape.stride, margin
    arguments = begins - begins[0], channels[entries], counts[entries], of_each[0], starts, places, sorted_counts
    in_parts(_sort_frames, (*arguments, of_each[1], size), last - first)
    return starts, places, sorted_counts, of_each[1]
