"""Values that many tests make: calls of `multi_step` on every neuron, counts, spike times; and comparisons."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from snn import config
from snn.inputs import SparseCounts
from snn.neurons import NEURONS
from snn.neurons.values import Decay
from snn.ops import Dynamics, Feedback, reference, sparse

# Largest difference of a gradient, relative to its largest entry. Spikes, h and states must be equal.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}
TOLERANCE_OF_SUMS = {torch.float32: 1e-5, torch.float64: 1e-12}  # of sums in another order, likewise relative
THETA = 0.25
# All neurons as they are, and the paper's in other ways to fire. Neurons that only differ in what is learned are one.
DYNAMICS = {name: neuron.dynamics_of() for name, neuron in NEURONS.items() if name not in ("PCuLIF", "PLIF")}
DYNAMICS |= {
    "-".join((name, *firing)): NEURONS[name].dynamics_of("soft" if "soft" in firing else "hard", "late" in firing)
    for name, firing in (("CuLIF", ("soft", "late")), ("AdLIF", ("late",)), ("CuAdLIF", ("soft",)))
}
ADLIF, CULIF, CUADLIF, LIF = (DYNAMICS[name] for name in ("AdLIF", "CuLIF", "CuAdLIF", "LIF"))
LATE_SOFT = DYNAMICS["CuLIF-soft-late"]
over_neurons = pytest.mark.parametrize("neuron", DYNAMICS.values(), ids=DYNAMICS)


def _marks(name: str, short: str) -> list[pytest.MarkDecorator]:
    """Return the marks of a variant, each of which is compiled, which takes seconds.

    The kernels are the same text for both types of numbers, and a constant of the wrong type shows in float32: so CI
    takes that, and AdLIF alone in float64. CuLIF is late and soft.
    """
    if short == "f64" and name != "AdLIF":
        return [pytest.mark.long]
    return [pytest.mark.slow] * (name in ("AdLIF-late", "CuAdLIF-soft"))


over_neurons_and_dtypes = pytest.mark.parametrize(
    ("neuron", "dtype"),
    [
        pytest.param(neuron, dtype, id=f"{name}-{short}", marks=_marks(name, short))
        for name, neuron in DYNAMICS.items()
        for short, dtype in (("f32", torch.float32), ("f64", torch.float64))
    ],
)
over_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
# The code of feedback is the same for all neurons, and each variant must be compiled, so a few stand for all.
over_recurrent = pytest.mark.parametrize("neuron", [ADLIF, LATE_SOFT], ids=["AdLIF", "CuLIF-soft-late"])
INF = math.inf
WINDOWS = (0.5, 1.0, 3.0)  # T of networks that spike once


def image_data(layout: str, folder: Path, name: str, shape: tuple, num_classes: int, **more: object) -> config.Images:
    """Return the section of a configuration that describes images."""
    return config.Images(
        layout=layout, path=str(folder), dataset_name=name, shape=shape, num_classes=num_classes, **more
    )


def make_values(neuron: Dynamics, N: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Make values with which the neuron fires now and then."""

    def drawn(name: str, value) -> Tensor:
        if name == "theta":
            return torch.full((N,), THETA, dtype=dtype)
        low, high = (0.7, 0.95) if isinstance(value, Decay) else (0.0, 0.5)
        if value.draw is not None and not isinstance(value, Decay):
            low, high = value.draw
        if isinstance(value.initial, float):
            low = high = value.initial
        return torch.empty(N, dtype=dtype).uniform_(low, high)

    return {name: drawn(name, value) for name, value in NEURONS[neuron.name].values_of().items()}


def make_call(
    neuron: Dynamics, shape: tuple, dtype: torch.dtype, recurrent: bool = False, longest: int = 0
) -> tuple[Tensor, dict, dict, Dynamics, Feedback | None]:
    """Make random (x, values, state, neuron, feedback); every tensor is a leaf that requires its gradient."""
    torch.manual_seed(0)
    T, B, N = shape
    scale = 1 if "delta" not in neuron.values else 60  # BRF multiplies its input by δ
    x_TBN = scale * torch.randn(T, B, N, dtype=dtype)
    state = {name: torch.randn(B, N, dtype=dtype) for name in neuron.carried(False)}
    feedback = None
    if recurrent:
        delay_N = longest * torch.rand(N, dtype=dtype) if longest else None
        feedback = Feedback(scale * torch.randn(N, N, dtype=dtype) / N**0.5, delay_N, longest)
        state["y"] = (torch.randn(feedback.D, B, N) > 0).to(dtype)
    call = (x_TBN, make_values(neuron, N, dtype), state, neuron, feedback)
    for leaf in leaves(call):
        leaf.requires_grad_()
    return call


def leaves(call: tuple) -> list[Tensor]:
    x_TBN, values, state, _, feedback = call
    fed = (feedback.V_NN, feedback.delay_N) if feedback else ()
    return [tensor for tensor in (x_TBN, *values.values(), *state.values(), *fed) if tensor is not None]


def rebuilt(call: tuple, tensors: list[Tensor]) -> tuple:
    """Return the same call with other leaves."""
    rest = iter(tensors)
    _, values, state, neuron, feedback = call
    x_TBN, values = next(rest), {name: next(rest) for name in values}
    state = {name: next(rest) for name in state}
    if feedback:
        V_NN = next(rest)
        feedback = Feedback(V_NN, None if feedback.delay_N is None else next(rest), feedback.longest)
    return x_TBN, values, state, neuron, feedback


def run(multi_step, call: tuple) -> tuple[list[Tensor], list[Tensor]]:
    """Return all outputs, and the gradients of all leaves that require one, under random upstream gradients."""
    y_TBN, h_TBN, state = multi_step(*call)
    outputs = [y_TBN, h_TBN, *state.values()]
    random = torch.Generator().manual_seed(1)
    upstream = [torch.randn(o.shape, generator=random, dtype=o.dtype).to(o.device) for o in outputs]
    asking = [leaf for leaf in leaves(call) if leaf.requires_grad]
    product = sum((output * g).sum() for output, g in zip(outputs, upstream, strict=True))
    gradients = torch.autograd.grad(product, asking, allow_unused=True, materialize_grads=True)
    return outputs, list(gradients)


def tie_call(neuron: Dynamics, recurrent: bool) -> tuple:
    """Make a call of binary fractions: every sum is exact in any order, and h often equals the threshold."""
    torch.manual_seed(0)
    x_TBN = torch.randint(-4, 9, (9, 4, 20)).double() / 4
    feedback = Feedback(torch.randint(-4, 5, (20, 20)).double() / 4) if recurrent else None
    values = {name: torch.full_like(value, 0.5) for name, value in make_values(neuron, 20, torch.float64).items()}
    values["theta"] = torch.full_like(values["theta"], THETA)
    call = (x_TBN, {name: value.requires_grad_() for name, value in values.items()}, {}, neuron, feedback)
    assert (reference.multi_step(*call)[1] == THETA).sum() > 5
    return call


def quiet_call() -> tuple:
    """Make a call without input that lasts until the states leave the normal range of float32."""
    _, values, state, neuron, _ = make_call(DYNAMICS["CuAdLIF"], (1, 3, 20), torch.float32)
    state = {name: field.detach().abs() * 0.01 for name, field in state.items()}
    call = (torch.zeros(900, 3, 20), values | {"lam_w": values["lam_m"]}, state, neuron, None)
    with torch.no_grad():
        y_TBN, h_TBN, _ = reference.multi_step(*call)
    assert not y_TBN.any()
    assert ((h_TBN != 0) & (h_TBN.abs() < torch.finfo(torch.float32).tiny)).any()
    return call


def assert_close_gradients(actual: list[Tensor], expected: list[Tensor]) -> None:
    for got, want in zip(actual, expected, strict=True):
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCE[want.dtype] * want.detach().abs().max().item())


def assert_equal_to_reference(multi_step, call: tuple) -> None:
    outputs, gradients = run(multi_step, call)
    expected_outputs, expected_gradients = run(reference.multi_step, call)
    for output, expected in zip(outputs, expected_outputs, strict=True):
        assert torch.equal(output, expected)
    assert_close_gradients(gradients, expected_gradients)


def assert_recurrent_equals_reference(multi_step, call: tuple) -> None:
    """Compare in float64 and without ties, because feedback is summed in another order."""
    outputs, gradients = run(multi_step, call)
    expected_outputs, expected_gradients = run(reference.multi_step, call)
    assert torch.equal(outputs[0], expected_outputs[0])
    assert_close_gradients([*outputs, *gradients], [*expected_outputs, *expected_gradients])


def in_chunks(multi_step, sizes: list[int]):
    """Return a `multi_step` in several calls, each of which begins with the state that the last one left."""

    def chunked(x_TBN, values, state, neuron, feedback):
        ys, hs = [], []
        for chunk_TBN in x_TBN.split(sizes):
            y, h, state = multi_step(chunk_TBN, values, state, neuron, feedback)
            ys.append(y)
            hs.append(h)
        return torch.cat(ys), torch.cat(hs), state

    return chunked


def random_counts(shape: tuple, share: float, dtype: torch.dtype) -> torch.Tensor:
    torch.manual_seed(0)
    active = torch.rand(shape) < share
    return (torch.randint(1, 5, shape) * active).to(dtype)


def as_events(x_TBC: torch.Tensor) -> SparseCounts:
    x_RC = x_TBC.flatten(0, 1)
    return SparseCounts(*sparse.compress(x_RC, sparse.find(x_RC)), tuple(x_TBC.shape))


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    atol = TOLERANCE_OF_SUMS[expected.dtype] * float(expected.detach().abs().max())
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def finite(t: torch.Tensor) -> torch.Tensor:
    return t.masked_fill(t == INF, 0)


def random_times(shape: tuple, T: float, seed: int, silent_share: float = 0.3) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    t = T * torch.rand(shape, generator=random, dtype=torch.float64)
    return t.masked_fill(torch.rand(shape, generator=random) < silent_share, INF)


def random_weights(shape: tuple, seed: int, scale: float = 1.0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=random, dtype=torch.float64) * (2 / math.prod(shape[1:])) ** 0.5


def spike_times(S: Tensor, A: Tensor, T: float, zero_drive_fires: bool = False) -> Tensor:
    """Compute the spike times of TTFS neurons from S and A in plain torch, differentiated by autograd."""
    drive = T * S + A
    is_early = A >= T
    is_silent = ~is_early & ((drive < 0) | ((S == 0) & (A == 0) & (not zero_drive_fires)))
    # inf and 0 must not meet in a product or a quotient, forward or backward
    has_slope = ~(is_early | is_silent)
    t = (T - torch.where(has_slope, A, T)) / torch.where(has_slope, 1 + S, 1)
    t = t - (t - t.clamp(max=T)).detach()  # rounding may exceed T
    return torch.where(is_silent, math.inf, t)
