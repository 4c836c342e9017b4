"""Delayed inputs on the CPU: an event adds to the rows it reaches, forward and backward.

Rows r = t·B + b as in `snn.ops.sparse`; taps (`first`, K of them) as in `snn.ops.taps`. The first `past` steps of an
input came in before: their events are still on their way, and the result has no rows for them.

Each event becomes K entries of an ordinary sparse product: by tap j, input c arrives as channel j·C + c, whose weights
are w_nc h_jc, in the row that it reaches.

An input may arrive several times. Of C inputs, input c is then column c, C + c, 2·C + c ..., each of which has a delay
and weights.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from snn.inputs import Entries
from snn.ops.compiled import in_parts, kernel
from snn.ops.sparse import arrays

PAD = 16  # between scratch rows: strides of a power of two would crowd one cache set


@kernel
def _arrive(offsets, channels, counts, lags, at_once, C, K, T, firsts_BT, to_channels, to_counts, begin, end):
    """Write the entries of samples begin ... end, in the order of the events' steps; row t begins at firsts_BT[b, t].

    If there is no `to_counts`, set firsts_BT to the number of entries instead.
    """
    B = len(firsts_BT)
    place = np.zeros(T, np.uint64)  # counted here, then copied once
    for b in range(begin, end):
        if to_counts is None:
            place[:] = 0
        else:
            place[:] = firsts_BT[b]
        for t in range((len(offsets) - 1) // B):
            for first in range(0, len(lags), C):
                for e in range(np.uint64(offsets[t * B + b]), np.uint64(offsets[t * B + b + 1])):
                    column = np.uint64(first) + np.uint64(channels[e])
                    for j in range(K if column >= at_once else 1):
                        row = np.uint64(t + lags[column] + j)  # a step before the first is a huge number
                        if row < np.uint64(T):
                            if to_counts is not None:
                                to_channels[place[row]] = np.uint64(j * len(lags)) + column
                                to_counts[place[row]] = counts[e]
                            place[row] += np.uint64(1)
        if to_counts is None:
            firsts_BT[b] = place


def arrived(
    events: Entries, first_C: Tensor, at_once: int, num_taps: int, num_inputs: int, B: int, past: int
) -> Entries:
    """Return the entries of the delayed input. The first `at_once` columns have one tap."""
    T = (len(events.offsets) - 1) // B - past
    entries = arrays(events, events.counts.dtype)
    rule = first_C.numpy() - past, at_once, num_inputs, num_taps, T
    firsts_BT = np.empty((B, T), np.int64)
    in_parts(_arrive, (*entries, *rule, firsts_BT, None, None), B)
    ends = np.zeros(T * B + 1, np.int64)
    np.cumsum(firsts_BT.T.ravel(), out=ends[1:])
    firsts_BT = np.ascontiguousarray(ends[:-1].reshape(T, B).T)
    channels, counts = np.empty(ends[-1], np.int32), np.empty(ends[-1], entries[2].dtype)
    in_parts(_arrive, (*entries, *rule, firsts_BT, channels.view(np.uint32), counts), B)
    return Entries(*map(torch.from_numpy, (ends, channels, counts)))


@kernel
def _move_back(gx_TBC, places, h_KC, mask_BC, past, steps, gs_TBC, begin, end):
    """Set gs[t, b, c] = mask Σ_j h[j, c] gx[t + first[c] + j - past, b, c] for samples begin ... end; K is even.

    If an input arrives as several channels, the sum is also over these.

    places[c] is that of step first[c] in the scratch, which holds gx from step `past` on and zeros elsewhere.
    """
    (T, _, C), width = gs_TBC.shape, len(places) + PAD
    room = np.zeros(steps * width, gs_TBC.dtype)
    for b in range(begin, end):
        for t in range(len(gx_TBC)):
            for c in range(len(places)):
                room[(past + t) * width + c] = gx_TBC[t, b, c]
        for t in range(T):
            gs_C = gs_TBC[t, b]
            gs_C[:] = 0
            for first in range(0, len(places), C):
                h_KD, places_D = h_KC[:, first : first + C], places[first : first + C]
                for j in range(0, len(h_KC), 2):
                    for c in range(C):
                        at = np.uint64((t + j) * width) + places_D[c]
                        gs_C[c] += h_KD[j, c] * room[at] + h_KD[j + 1, c] * room[at + np.uint64(width)]
            if mask_BC is not None:
                for c in range(C):
                    gs_C[c] *= mask_BC[b, c]


def moved_back(
    gx_RC: Tensor, first_C: Tensor, h_KC: Tensor, mask_BC: Tensor | None, B: int, past: int, num_inputs: int
) -> Tensor:
    """Return the gradient of an input, ((past + T)·B, num_inputs), from that of the delayed input."""
    h_KC = F.pad(h_KC, (0, 0, 0, len(h_KC) % 2))
    K, C = h_KC.shape
    gx_TBC = gx_RC.contiguous().view(-1, B, C)
    gs_TBC = gx_TBC.new_empty(past + len(gx_TBC), B, num_inputs)
    places = (first_C.numpy() * (C + PAD) + np.arange(C)).astype(np.uint64)
    mask = None if mask_BC is None else mask_BC.contiguous().numpy()
    steps = len(gs_TBC) + int(first_C.max()) + K
    arguments = (gx_TBC.numpy(), places, h_KC.numpy(), mask, past, steps, gs_TBC.numpy())
    in_parts(_move_back, arguments, B)
    return gs_TBC.flatten(0, 1)
