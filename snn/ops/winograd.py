"""The gradient of the input of a 3 x 3 convolution without stride, on the CPU, with a quarter of its multiplications.

It is a convolution, too: of the outputs' gradients, with the weights mirrored. Tiles d of 6 x 6 pixels and the weights
g are taken to 36 places. At each of them one matrix product over all tiles and channels suffices, and the sums give
tiles of 4 x 4 pixels (Winograd's algorithm F(4 x 4, 3 x 3) by Lavin and Gray, *Fast Algorithms for Convolutional Neural
Networks*, CVPR 2016):

    Y = Aᵀ ((G g Gᵀ) ⊙ (Bᵀ d B)) A

The matrices evaluate and interpolate polynomials at 0, ±√½, ±√2 and infinity. With these points, errors of rounding are
about twice those of the sum over taps; with the usual 0, ±1 and ±2, four times, and the largest seven times. A NaN or
infinity spreads over its tile.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from snn.ops.compiled import in_parts, inlined, kernel
from snn.ops.lanes import LINE, load_part, load_rows, scratch, store_part, store_rows, zeros
from snn.ops.sparse_conv import Geometry

A, B = math.sqrt(0.5), math.sqrt(2)  # the points; A² B² = 1
G = [[1 / scale, point / scale, point**2 / scale] for point, scale in ((0, 1), (A, -1.5), (-A, -1.5), (B, 6), (-B, 6))]
G.append([0, 0, 1])
TILES = 129  # taken at once, so that their numbers stay in a cache; odd, so that places do not meet in its sets
# Measured by `python -m benchmarks.networks` with AVX2, not with AVX-512: with 32 channels on either side torch's
# convolution is as fast or faster, with 64 this takes 0.6 to 0.9 of its time, with 128 0.4 to 0.8. Tiles that stand out
# beyond small images take time, too.
FEWEST_CHANNELS = 64
FEWEST_PIXELS = 8  # of an image for each tile, which has 16


@inlined
def _evaluate(d0, d1, d2, d3, d4, d5):
    """Return Bᵀ d."""
    even_a, odd_a = d4 - 2.0 * d2, A * d3 - B * d1
    even_b, odd_b = d4 - 0.5 * d2, B * d3 - A * d1
    return (
        d0 - 2.5 * d2 + d4, even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, d1 - 2.5 * d3 + d5,
    )  # fmt: skip


@inlined
def _interpolate(m0, m1, m2, m3, m4, m5):
    """Return Aᵀ m."""
    even_a, odd_a, even_b, odd_b = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return (
        m0 + even_a + even_b,
        A * odd_a + B * odd_b,
        0.5 * even_a + 2.0 * even_b,
        0.5 * A * odd_a + 2.0 * B * odd_b + m5,
    )


@inlined
def _corner(tile, height, width):
    """Return the frame of a tile, and its first line and pixel."""
    across, down = -(-width // 4), -(-height // 4)
    return tile // (across * down), tile // across % down * 4, tile % across * 4


@inlined
def _pixel(maps, line, x, width, N, n):
    """Return the channels n ... of pixel x of a line, 0 beyond its ends and for line -1."""
    return (
        load_part(maps, (line * width + x) * N + n, N - n, LINE) if line >= 0 and 0 <= x < width else zeros(maps, LINE)
    )


@kernel
def _to_places(maps, at_places, height, width, N, first, begin, end):
    """Set the tiles begin ... end of at_places (36, tiles, channels in whole lines), counted from tile `first`."""
    _, tiles, channels = at_places.shape
    room = scratch(at_places, 36 * LINE)
    for k in range(begin, end):
        frame, top, left = _corner(first + k, height, width)
        for n in range(0, channels, LINE):
            for i in range(6):
                y, x = top - 1 + i, left - 1
                line = frame * height + y if 0 <= y < height else -1
                row = _evaluate(
                    _pixel(maps, line, x, width, N, n), _pixel(maps, line, x + 1, width, N, n),
                    _pixel(maps, line, x + 2, width, N, n), _pixel(maps, line, x + 3, width, N, n),
                    _pixel(maps, line, x + 4, width, N, n), _pixel(maps, line, x + 5, width, N, n),
                )  # fmt: skip
                store_rows(room, 6 * i * LINE, LINE, LINE, row)
            for j in range(6):
                column = _evaluate(*load_rows(room, j * LINE, 6 * LINE, 6))
                store_rows(at_places, (j * tiles + k) * channels + n, 6 * tiles * channels, LINE, column)


@kernel
def _from_places(at_places, maps, height, width, N, first, begin, end):
    """Set the pixels of the tiles begin ... end, counted from tile `first`, from the sums at the 36 places."""
    _, tiles, channels = at_places.shape
    room = scratch(at_places, 24 * LINE)
    for k in range(begin, end):
        frame, top, left = _corner(first + k, height, width)
        for n in range(0, channels, LINE):
            for j in range(6):
                sums = load_rows(at_places, (j * tiles + k) * channels + n, 6 * tiles * channels, 6)
                store_rows(room, j * LINE, 6 * LINE, LINE, _interpolate(*sums))
            for i in range(min(4, height - top)):
                pixels = _interpolate(*load_rows(room, 6 * i * LINE, LINE, 6))
                to = ((frame * height + top + i) * width + left) * N + n
                for p in range(min(4, width - left)):
                    store_part(maps, to + p * N, N - n, pixels[p])


def fits(W_NCKK: Tensor, shape: Geometry) -> bool:
    """Return whether `input_gradient` takes these, and is the faster way."""
    is_right_kind = W_NCKK.device.type == "cpu" and (shape.kernel, shape.stride) == (3, 1)
    pixels = shape.height * shape.width
    return is_right_kind and min(W_NCKK.shape[:2]) >= FEWEST_CHANNELS and pixels >= FEWEST_PIXELS * _tiles(shape)


def input_gradient(gy_RN: Tensor, W_NCKK: Tensor, shape: Geometry) -> Tensor:
    """Return the gradient of the input rows, (R, C), from that of the output rows."""
    N, C = W_NCKK.shape[:2]
    gy_RN, G_63 = gy_RN.detach().contiguous(), torch.tensor(G, dtype=W_NCKK.dtype)
    W_PNC = torch.einsum("iy,jx,ncyx->ijnc", G_63, G_63, W_NCKK.detach().flip(2, 3)).flatten(0, 1)
    W_PNC = F.pad(W_PNC, (0, -C % LINE, 0, -N % LINE)).contiguous()
    gx_RC = gy_RN.new_empty(len(gy_RN), C)
    tiles = len(gy_RN) // (shape.height * shape.width) * _tiles(shape)
    gy_PKN, gx_PKC = (gy_RN.new_empty(36, min(TILES, tiles), channels) for channels in W_PNC.shape[1:])
    for first in range(0, tiles, TILES):
        number = min(TILES, tiles - first)
        in_parts(_to_places, (gy_RN.numpy(), gy_PKN.numpy(), shape.height, shape.width, N, first), number)
        torch.bmm(gy_PKN, W_PNC, out=gx_PKC)
        in_parts(_from_places, (gx_PKC.numpy(), gx_RC.numpy(), shape.height, shape.width, C, first), number)
    return gx_RC


def _tiles(shape: Geometry) -> int:
    """Return the number of tiles that cover an image."""
    return -(-shape.height // 4) * -(-shape.width // 4)
