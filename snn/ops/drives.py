"""The input of a layer's neurons in one step of a stream, for each kind of layer: its drive.

The entries of a step are the channels and counts of its events, or the spikes of the layer before. Entry p · C + c of
an image is channel c of pixel p. Every drive sums in the order of its batched kernel, so that all bits are equal.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from snn.ops.compiled import inlined
from snn.ops.sparse import product_rows, slices
from snn.ops.sparse_conv import Geometry, product_lines, rows_of_pixels
from snn.ops.synaptic import whole_step, whole_synapses


class Drive(NamedTuple):
    """A compiled function and the arrays that it works on.

    step(x_1N, t, channels, counts, number, *arrays) takes the entries of step t, `number` of them, and sets the input
    of the N neurons. It may read and write the entries and the arrays as it likes.
    """

    step: Callable[..., None]
    arrays: tuple
    num_outputs: int  # N
    waiting: tuple[np.ndarray, ...] = ()  # those of the arrays that a new recording sets to 0


def full(W_NC: Tensor) -> Drive:
    """Return the drive of a fully connected layer."""
    return Drive(_full, (_one_row(), slices(W_NC).numpy()), len(W_NC))


def late_inputs(W_NC: Tensor, delay_C: Tensor, num_inputs: int) -> Drive:
    """Return the drive of a fully connected layer whose inputs come late by whole steps.

    An input may arrive several times, see `snn.ops.delays`.
    """
    C, D, dtype = W_NC.shape[1], int(delay_C.max()) + 1, W_NC.detach().numpy().dtype
    due = np.empty((D, C), np.int32), np.empty((D, C), dtype), np.zeros(D, np.int64)
    return Drive(
        _late_inputs, (_one_row(), slices(W_NC).numpy(), delay_C.numpy(), num_inputs, *due), len(W_NC), due[2:]
    )


def late_synapses(W_NC: Tensor, delay_NC: Tensor) -> Drive:
    """Return the drive of a fully connected layer with a delay of whole steps for each synapse."""
    arrays = whole_synapses(delay_NC, W_NC)
    return Drive(whole_step, arrays, len(W_NC), arrays[2:])


def convolution(W_NCKK: Tensor, shape: Geometry) -> Drive:
    """Return the drive of a convolution."""
    W_SKCL, pixels, C = slices(W_NCKK).numpy(), shape.height * shape.width, W_NCKK.shape[1]
    rows = np.empty(pixels + 1, np.int64), np.empty(pixels * C, np.int32), np.empty(pixels * C, W_SKCL.dtype)
    num_outputs = shape.out_height * shape.out_width * len(W_NCKK)
    return Drive(_convolution, (_one_row(), C, *rows, W_SKCL, *shape, shape.out_height, shape.out_width), num_outputs)


def pool(height: int, width: int, kernel: int, is_average: bool, channels: int) -> Drive:
    """Return the drive of a pool over windows that do not overlap."""
    lines, columns = height // kernel, width // kernel
    y, x = (each // kernel for each in np.divmod(np.arange(height * width), width))
    window_of_pixel = np.where((y < lines) & (x < columns), y * columns + x, -1)
    num_outputs = lines * columns * channels
    return Drive(
        _pool, (channels, window_of_pixel, kernel * kernel, is_average, np.zeros(num_outputs, np.int64)), num_outputs
    )


def _one_row() -> np.ndarray:
    """Return the offsets of entries in one row; the last is set in each step."""
    return np.zeros(2, np.int64)


@inlined
def _full(x_1N, t, channels, counts, number, offsets, W_SCL):
    offsets[1] = number
    product_rows(offsets, channels, counts, W_SCL, x_1N, 0, 1)


@inlined
def _late_inputs(
    x_1N, t, channels, counts, number, offsets, W_SCL, delay_C, num_inputs, due_channels_DC, due_counts_DC,
    due_numbers_D,
):  # fmt: skip
    """Store the entries in the row of the step in which they are due, t mod D; those due now come in."""
    D = len(due_numbers_D)
    for first in range(0, len(delay_C), num_inputs):
        for e in range(number):
            c = first + channels[e]
            due = (t + delay_C[c]) % D
            due_channels_DC[due, due_numbers_D[due]] = c
            due_counts_DC[due, due_numbers_D[due]] = counts[e]
            due_numbers_D[due] += 1
    now = t % D
    offsets[1] = due_numbers_D[now]
    product_rows(offsets, due_channels_DC[now], due_counts_DC[now], W_SCL, x_1N, 0, 1)
    due_numbers_D[now] = 0


@inlined
def _convolution(
    x_1N, t, channels, counts, number, offsets, C, pixel_offsets, pixel_channels, pixel_counts, W_SKCL,
    height, width, K, stride, out_height, out_width,
):  # fmt: skip
    """Sort the entries into a row for each pixel, then set each output pixel to the sum over its window."""
    offsets[1] = number
    pixel_offsets[:] = 0
    rows_of_pixels(offsets, channels, counts, C, True, pixel_offsets, pixel_channels, pixel_counts, 0, 1)
    x_RN = x_1N.reshape(out_height * out_width, -1)
    entries = pixel_offsets, pixel_channels, pixel_counts
    product_lines(*entries, W_SKCL, None, x_RN, height, width, K, stride, 0, out_height)


@inlined
def _pool(x_1N, t, channels, counts, number, C, window_of_pixel, size, is_average, filled_N):
    """Take the entries into their windows, whose other entries are 0. filled_N, how many each has, goes back to 0."""
    x = x_1N[0]
    x[:] = 0
    for e in range(number):
        p = channels[e] // C
        w = window_of_pixel[p]
        if w < 0:
            continue
        n = w * C + channels[e] - p * C
        if filled_N[n] == 0:
            x[n] = counts[e]
        elif is_average:
            x[n] += counts[e]
        else:
            x[n] = max(x[n], counts[e])
        filled_N[n] += 1
    for e in range(number):
        p = channels[e] // C
        n = window_of_pixel[p] * C + channels[e] - p * C
        if n < 0 or filled_N[n] == 0:  # n < 0: no window
            continue
        if is_average:
            x[n] /= size
        elif filled_N[n] < size:
            x[n] = max(x[n], 0)
        filled_N[n] = 0
