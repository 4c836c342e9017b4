"""Streaming inference: take events as they come, and give the decision at the first output spike.

stream = Stream(network, dt_ms=10, T=100)
for times_s, channels in chunks:
    if decision := stream.push(times_s, channels):
        break
else:
    decision = stream.finish()
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from snn import checks, ops
from snn.conv import pixels_of
from snn.errors import InputError
from snn.inputs import SparseCounts, as_tensor
from snn.network import Layer, Network
from snn.operations import of_inputs, of_loop
from snn.ops import stream as kernels
from snn.ops.drives import Drive


class Decision(NamedTuple):
    """A decision by the first output spike or, if the window had none (step is None), by the highest potential."""

    label: int
    step: int | None  # of the first output spike, from 1
    time_ms: float | None  # the end of that step


class Work(NamedTuple):
    """The work done so far."""

    steps: int
    events: int  # taken; events past the window are not
    synaptic_operations: int  # see `snn.operations`
    neuron_updates: int
    spikes: tuple[int, ...]  # per layer, the output last


class Stream:
    """A network on the CPU that takes one recording at a time, event by event, and computes only what events change.

    Decisions and their times equal those of `network.folded()` on whole recordings, bit by bit: BatchNorm is folded
    into the weights.

    Args:
        network: a network on events.
        dt_ms, T, T_empty: the steps, as in the configuration's data section.
        ticks_per_second: the unit of the times that are pushed; 1 for seconds.
        stops: stop work after the decision; False runs on to the end of the window, for comparison.
    """

    def __init__(
        self,
        network: Network,
        dt_ms: float,
        T: int,
        T_empty: int = 0,
        ticks_per_second: float = 1.0,
        stops: bool = True,
    ):
        checks.kind("the network", network, Network)
        checks.number("dt_ms", dt_ms, above=0)
        checks.number("ticks_per_second", ticks_per_second, above=0)
        checks.number("a step in thousandths of a tick", dt_ms * ticks_per_second, above=0)
        checks.whole("T", T, 1)
        checks.whole("T_empty", T_empty, 0)
        checks.weights("the network", network.output.linear.weight)  # type: ignore[arg-type]  # no pool decides
        network.check_values("the network")
        network = network.folded()
        self.dt_ms, self.T, self.T_end = float(dt_ms), T, T + T_empty
        self.ticks_per_second, self.stops = float(ticks_per_second), stops
        dynamics = tuple(layer.neurons.dynamics for layer in network.layers)
        self.num_channels = network.num_channels
        self._place_of_channel = _places(network)
        drives, sizes = [], [self.num_channels]  # of the layers; of the input and the layers
        for k, layer in enumerate(network.layers, 1):
            if not hasattr(layer.linear, "drive"):
                kind = type(layer.linear).__name__
                raise InputError(f"streaming: layer {k} ({kind}) does not say how it streams; it has no `drive`")
            drives.append(layer.linear.drive(sizes[-1]))
            sizes.append(drives[-1].num_outputs)
        self._layers = tuple(
            _layer(layer, drive, layer is network.output) for layer, drive in zip(network.layers, drives, strict=True)
        )
        self._to_reset = [(len(neuron.values), drive.waiting) for neuron, drive in zip(dynamics, drives, strict=True)]
        self._kernels = kernels.kernels(dynamics, drives)
        self._arguments = tuple(map(tuple, self._layers))
        self._neurons, num_classes, room = sum(sizes[1:]), sizes[-1], max(sizes)
        self._channels, self._counts = np.empty(room, np.int32), np.empty(room, self._layers[0].rows.dtype)
        self._entry_of_channel = np.empty(self.num_channels, np.int64)
        self._tally = np.empty(kernels.COUNTERS, np.int64)
        self._spikes = np.empty(len(self._layers), np.int64)
        self.output_counts = np.empty(num_classes, np.int64)  # spikes of each class so far
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next event begins a new recording."""
        for layer, (first_state_row, waiting) in zip(self._layers, self._to_reset, strict=True):
            layer.reset(first_state_row, waiting)
        self._entry_of_channel.fill(-1)
        for counter in (self._tally, self._spikes, self.output_counts):
            counter.fill(0)
        self._last_time = 0.0

    def push(self, times: np.ndarray, channels: np.ndarray) -> Decision | None:
        """Take the next events, and return the decision once it is made.

        Events are (n,) times from the recording's start and (n,) channels. Times may not fall, within a call or from
        call to call. The events of a step are summed when the first event after it arrives. Events past the T bins are
        dropped, as in training. An InputError comes before any event of the call is taken.
        """
        try:
            times, channels = np.asarray(times), np.asarray(channels)
        except (RuntimeError, TypeError, ValueError) as error:  # ragged lists, tensors on a GPU
            raise InputError(f"times and channels must be arrays of numbers: {error}") from None
        if times.ndim != 1 or times.shape != channels.shape:
            raise InputError(
                f"there must be a time for each channel, but the shapes are {times.shape} and {channels.shape}"
            )
        if len(times) and (times.dtype.kind not in "iuf" or channels.dtype.kind not in "iu"):  # [] has no type
            raise InputError(
                f"times must be numbers and channels whole numbers, not {times.dtype} and {channels.dtype}"
            )
        if len(times):
            # the types that binning uses; compiled code does not take every type. A channel beyond int64 turns negative
            times, channels = times.astype(np.float64), channels.astype(np.int64)
            steps = np.empty(len(times), np.int64)
            binning = (self.ticks_per_second, self.dt_ms, self.T, steps)
            e = kernels.steps_of(times, channels, self._last_time, self.num_channels, *binning)
            if e < len(times):
                if not 0 <= channels[e] < self.num_channels:
                    there = f"0..{self.num_channels - 1} of this network"
                    raise InputError(f"event {e} of this call: channel {channels[e]} is outside {there}")
                before = times[e - 1] if e else self._last_time
                raise InputError(
                    f"event {e} of this call has the time {times[e]:.12g}, after {before:.12g}: times must be numbers "
                    "in rising order"
                )
            self._last_time = float(times[-1])
            self._advance(steps, self._place_of_channel[channels], 0)
        return self._decision()

    def finish(self) -> Decision | None:
        """End the recording: run on to the decision, or to the end of the window, where potentials decide.

        Return None if no event came within the window, since there is nothing to decide on.
        """
        if self._tally[kernels.EVENTS] == 0:
            return None
        self._advance(np.empty(0, np.int64), np.empty(0, np.int32), self.T_end)
        return self._decision() or Decision(int(self._layers[-1].rows[kernels.PEAK, 0].argmax()), None, None)

    @property
    def work(self) -> Work:
        """Return the work done since `reset`."""
        steps, events, synaptic = (int(self._tally[k]) for k in (kernels.STEP, kernels.EVENTS, kernels.SYNAPTIC))
        return Work(steps, events, synaptic, steps * self._neurons, tuple(self._spikes.tolist()))

    def _advance(self, steps: np.ndarray, places: np.ndarray, end: int) -> None:
        buffers = (self._channels, self._counts, self._entry_of_channel, self._tally, self._spikes, self.output_counts)
        self._kernels.advance(steps, places, self.T, end, self.stops, self._arguments, *buffers)

    def _decision(self) -> Decision | None:
        step = int(self._tally[kernels.DECIDED])
        if step == 0:
            return None
        return Decision(int(self._tally[kernels.LABEL]), step, step * self.dt_ms)


def _places(network: Network) -> np.ndarray:
    """Return the place of each input channel among the entries of the first layer: those of an image come by pixel."""
    channel_of_place = torch.arange(network.num_channels)
    if network.image is not None:
        channel_of_place = as_tensor(pixels_of(channel_of_place.view(1, 1, -1), network.image)).flatten()
    return channel_of_place.argsort().numpy().astype(np.int32)


def _layer(layer: Layer, drive: Drive, is_output: bool) -> kernels.Layer:
    """Convert a layer to arrays."""
    neurons, N = layer.neurons, drive.num_outputs

    def repeated(tensor: Tensor) -> np.ndarray:
        """Return a value for each neuron, of tensors with one for all or one for each channel of an image."""
        return tensor.detach().repeat(N // len(tensor)).numpy()

    def whole(tensor: Tensor | None) -> np.ndarray | None:
        return None if tensor is None else tensor.detach().numpy().astype(np.int64)

    values_PN = np.stack([repeated(value) for value in neurons.values().values()])
    bias = getattr(layer.linear, "bias", None)
    feedback = neurons.feedback
    V_NN, delay_N, D = (None, None, 0) if feedback is None else (feedback.V_NN, feedback.delay_N, feedback.D)
    return kernels.Layer(
        kernels.new_scratch(neurons.dynamics, values_PN),
        np.empty((kernels.ROWS, 1, N), values_PN.dtype),
        drive.arrays,
        whole(of_inputs(layer.linear)),
        None if bias is None else repeated(bias),
        None if V_NN is None else np.ascontiguousarray(V_NN.detach().numpy().T),
        whole(delay_N),
        None if delay_N is None else np.empty((D, N), values_PN.dtype),
        None if V_NN is None else whole(of_loop(V_NN)),
        np.empty(N, np.int64),
        neurons.dynamics.spike_first,
        is_output,
    )


@torch.inference_mode()
def first_difference(network: Network, other: Network, x_T1C: SparseCounts) -> str:
    """Describe the first spike in which two networks of the same layers differ on a recording: potential, threshold."""
    neurons = [[layer.neurons for layer in each.layers] for each in (network, other)]
    inputs: list[list[Tensor]] = [[], []]
    for each, modules, xs in zip((network, other), neurons, inputs, strict=True):
        hooks = [module.register_forward_pre_hook(lambda _, x, xs=xs: xs.append(x[0])) for module in modules]
        each.run(x_T1C.to(next(each.parameters()).device))
        for hook in hooks:
            hook.remove()
    first = None
    for layer, (pair, x_TBN) in enumerate(zip(zip(*neurons, strict=True), zip(*inputs, strict=True), strict=True)):
        ran = [
            ops.multi_step(x, each.values(), {}, each.dynamics, each.feedback, backend=each.backend)
            for each, x in zip(pair, x_TBN, strict=True)
        ]
        (y, _, _), (y_other, _, _) = ran
        apart = (y.cpu() != y_other.cpu()).nonzero()
        if len(apart) and (first is None or apart[0, 0] < first[0]):
            n, b, j = apart[0].tolist()
            neuron = b * y.shape[-1] + j  # b is the pixel of an image
            here, there = (float(h[n, b, j]) for _, h, _ in ran)  # type: ignore[index]  # h is wanted
            first = n, layer, neuron, here, there, pair[0].threshold
    if first is None:
        return "no spike differs"
    n, layer, j, h_here, h_there, theta = first
    return f"layer {layer + 1}, step {n + 1}, neuron {j}: potential {h_here:.8g} and {h_there:.8g}, threshold {theta:g}"
