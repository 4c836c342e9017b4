"""Convolutions and pools on images with their channels last, against loops over every pixel."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from snn import conv
from snn.conv import EventConv, Pooling, as_frames, as_pixels, pixels_of
from snn.errors import InputError
from snn.inputs import SparseCounts
from snn.ops import max_pool, sparse, sparse_conv, winograd
from tests.make import as_events

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}  # of the largest entry: sums in another order
SHAPES = [  # T, B, inputs, outputs, height, width, kernel, stride
    (1, 1, 1, 1, 1, 1, 1, 1),
    (2, 3, 2, 5, 7, 4, 3, 1),
    (3, 2, 4, 3, 6, 9, 5, 2),
    (2, 2, 3, 20, 5, 8, 3, 3),
    (13, 10, 3, 70, 4, 5, 3, 2),  # more frames and outputs than a section and a slice hold
    (2, 3, 65, 70, 7, 8, 3, 1),  # enough channels for the gradient of the inputs to be computed tile by tile
]


def random_pixels(T: int, B: int, channels: int, height: int, width: int, share: float, dtype: torch.dtype):
    torch.manual_seed(0)
    active = torch.rand(T, B * height * width, channels) < share
    return (torch.randint(1, 5, active.shape) * active).to(dtype)


def slow_conv(x_TPC: torch.Tensor, W_NCKK: torch.Tensor, height: int, width: int, stride: int) -> torch.Tensor:
    """Output pixel by output pixel, tap by tap."""
    T, _, C = x_TPC.shape
    x = x_TPC.view(T, -1, height, width, C)
    K = W_NCKK.shape[2]
    out = []
    for y, x_at in itertools.product(range(0, height, stride), range(0, width, stride)):
        total = torch.zeros(T, x.shape[1], len(W_NCKK), dtype=x.dtype)
        for dy, dx in itertools.product(range(K), range(K)):
            line, column = y + dy - K // 2, x_at + dx - K // 2
            if 0 <= line < height and 0 <= column < width:
                total = total + x[:, :, line, column] @ W_NCKK[:, :, dy, dx].T
        out.append(total)
    return torch.stack(out, 2).flatten(1, 2)  # pixels after samples, in their order


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    atol = TOLERANCE[expected.dtype] * float(expected.detach().abs().max())
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["f32", "f64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("share", [0.2, 1.0])
@pytest.mark.parametrize("is_event_driven", [True, False])
def test_convolution_equals_the_slow_one(monkeypatch, dtype, shape, share, is_event_driven):
    """Compare output and both gradients, under a random upstream gradient, for events and dense input."""
    T, B, inputs, outputs, height, width, kernel, stride = shape
    calls = []
    product = sparse_conv.product
    monkeypatch.setattr(sparse_conv, "product", lambda *arguments: calls.append(1) or product(*arguments))
    layer = EventConv(inputs, outputs, height, width, kernel, stride).to(dtype)
    layer.dense_above = 1.0 if is_event_driven else -1.0
    x_TPC = random_pixels(T, B, inputs, height, width, share, dtype).requires_grad_()
    expected = slow_conv(x_TPC, layer.weight, height, width, stride)
    upstream = torch.randn_like(expected)
    expected_gx, expected_gW = torch.autograd.grad(expected, [x_TPC, layer.weight], upstream)

    actual = layer(x_TPC)
    gx, gW = torch.autograd.grad(actual, [x_TPC, layer.weight], upstream)
    assert bool(calls) == layer.is_event_driven == is_event_driven
    assert layer.active_share == pytest.approx(float((x_TPC != 0).double().mean()))
    assert_close(actual, expected)
    assert_close(gx, expected_gx)
    assert_close(gW, expected_gW)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 4e-6), (torch.float64, 1e-14)], ids=str)
@pytest.mark.parametrize(
    "shape",  # frames, outputs, inputs, height, width
    [(1, 1, 1, 1, 1), (3, 17, 16, 5, 2), (2, 16, 33, 4, 9), (1, 5, 64, 3, 13), (70, 40, 20, 6, 7), (2, 129, 65, 8, 8)],
    ids=str,
)
def test_the_gradient_of_inputs_by_tiles_equals_that_by_taps(shape, dtype, tolerance, poisoned):
    """70 frames have more tiles than are taken at once."""
    frames, N, C, height, width = shape
    torch.manual_seed(0)
    geometry = sparse_conv.Geometry(height, width, 3, 1)
    gy_RN = torch.randn(N, frames * height * width, dtype=dtype).T  # not contiguous
    W_NCKK = torch.randn(N, C, 3, 3, dtype=dtype, requires_grad=True)
    expected = conv.input_gradient_by_taps(gy_RN.double(), W_NCKK.detach().double(), geometry)
    actual = winograd.input_gradient(gy_RN, W_NCKK, geometry)
    assert not actual.requires_grad
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("size", "channels", "kernel", "stride", "by_tiles"),
    [(8, 64, 3, 1, True), (8, 63, 3, 1, False), (8, 64, 5, 1, False), (8, 64, 3, 2, False), (5, 64, 3, 1, False)],
)
def test_tiles_are_taken_where_they_are_faster(monkeypatch, size, channels, kernel, stride, by_tiles):
    """Too few channels, other kernels and strides, and images that fill few of their tiles are left to torch."""
    seen, gradient = [], winograd.input_gradient
    monkeypatch.setattr(winograd, "input_gradient", lambda *given: seen.append(given) or gradient(*given))
    layer = EventConv(channels, 64, size, size, kernel, stride)
    x_TPC = random_pixels(2, 1, channels, size, size, 0.05, torch.float32).requires_grad_()
    layer(x_TPC).sum().backward()
    assert layer.is_event_driven
    assert bool(seen) == by_tiles


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("of_events", [False, True])
def test_half_precision_is_refused(dtype, of_events):
    x_TPC = random_pixels(2, 1, 2, 4, 4, 0.2, torch.float32)
    x_TPC = as_events(x_TPC) if of_events else x_TPC
    with pytest.raises(InputError, match=r"call \.float\(\) on the network"):
        EventConv(2, 3, 4, 4, 3, 1).to(dtype)(x_TPC)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["f32", "f64"])
@pytest.mark.parametrize("image", [(2, 5, 3), (1, 4, 4), (7, 1, 6)], ids=str)
def test_events_of_images_become_rows_of_pixels(image, dtype):
    """They equal the entries that are found in the dense images with channels last."""
    (C, H, W), (T, B) = image, (4, 3)
    torch.manual_seed(0)
    x_TBC = torch.randint(0, 3, (T, B, C * H * W)).to(dtype)
    x_TBC[1, 2] = 0  # an image without an event
    x_TPC = x_TBC.view(T, B, C, H, W).movedim(2, -1).reshape(T, -1, C)
    events = given_by_entries(x_TBC, shuffle=True)
    rows = pixels_of(events, image)
    assert rows.shape == x_TPC.shape
    x_RC = x_TPC.flatten(0, 1)
    expected = sparse.compress(x_RC, sparse.find(x_RC))
    for entries, wanted in zip(rows.entries, expected, strict=True):
        assert torch.equal(entries, wanted)
    assert torch.equal(pixels_of(x_TBC, image), x_TPC)
    assert torch.equal(pixels_of(x_TBC.movedim(0, 1).contiguous().movedim(0, 1), image), x_TPC)
    with pytest.raises(InputError, match="are not images of"):
        pixels_of(events, (C, H, W + 1))


def given_by_entries(x_TBC: torch.Tensor, shuffle: bool = False) -> SparseCounts:
    """Return a batch as events, those of a step in any order."""
    T, B, C = x_TBC.shape
    offsets, channels, counts = sparse.compress(x_TBC.flatten(0, 1), sparse.find(x_TBC.flatten(0, 1)))
    if shuffle:
        for first, last in itertools.pairwise(offsets.tolist()):
            order = first + torch.randperm(last - first)
            channels[first:last], counts[first:last] = channels[order], counts[order]
    return SparseCounts(offsets, channels, counts, (T, B, C))


@pytest.mark.parametrize("is_event_driven", [True, False])
def test_a_convolution_of_events_equals_that_of_their_pixels(is_event_driven, monkeypatch):
    """Output and weight gradient are equal bit by bit; the event-driven product makes nothing dense of the events."""
    layer = EventConv(2, 5, 6, 7, 3, 1)
    layer.dense_above = 1.0 if is_event_driven else -1.0
    x_TBC = random_pixels(3, 4, 1, 1, 2 * 6 * 7, 0.2, torch.float32).view(3, 4, -1)
    x_TPC, rows = (pixels_of(x, (2, 6, 7)) for x in (x_TBC, given_by_entries(x_TBC)))
    expected = layer(x_TPC)
    if is_event_driven:
        monkeypatch.setattr(SparseCounts, "dense", lambda _: pytest.fail("made dense"))
    actual = layer(rows)
    assert layer.is_event_driven == is_event_driven
    assert layer.active_share == float((x_TPC != 0).double().mean())
    assert torch.equal(actual, expected)
    upstream = torch.randn_like(expected)
    gradients = [torch.autograd.grad(y, layer.weight, upstream)[0] for y in (actual, expected)]
    assert torch.equal(*gradients)
    with pytest.raises(InputError, match="do not fit a layer with 2 inputs"):
        layer(given_by_entries(x_TBC))


def test_the_rule_goes_by_activity_and_keeps_no_dense_input():
    """Slices of 64 lanes hold the outputs. With few inputs the product is dense."""
    layer = EventConv(8, 96, 10, 10, 3, 1)
    assert EventConv(7, 96, 10, 10, 3, 1).dense_above == 0
    limit = 0.75 * conv.DENSE_ABOVE
    for share, is_event_driven in ((0.8 * limit, True), (1.2 * limit, False)):
        x_TPC = random_pixels(20, 2, 8, 10, 10, share, torch.float32).requires_grad_()
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, kept=kept: kept.append(tensor.numel()), lambda x: x
        ):
            layer(x_TPC)
        assert layer.is_event_driven == is_event_driven
        assert (max(kept) >= x_TPC.numel()) != is_event_driven


def test_results_do_not_depend_on_the_number_of_threads():
    x_TPC = random_pixels(6, 3, 5, 8, 8, 0.1, torch.float32)
    layer, results = EventConv(5, 16, 8, 8, 3, 1), []
    layer.dense_above = 1.0
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = layer(x_TPC)
            (gW,) = torch.autograd.grad(out, layer.weight, torch.ones_like(out))
            results.append((out, gW))
    finally:
        torch.set_num_threads(before)
    for out, gW in results[1:]:
        assert torch.equal(out, results[0][0])
        assert torch.equal(gW, results[0][1])


def test_weights_are_xavier_uniform():
    torch.manual_seed(0)
    weight = EventConv(16, 32, 8, 8, 5, 1).weight.detach()
    bound = (6 / (16 * 25 + 32 * 25)) ** 0.5
    assert 0.99 * bound < weight.max() <= bound
    assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.02)


@pytest.mark.parametrize("is_average", [False, True])
def test_pool_equals_the_slow_one(is_average):
    """Windows side by side; a line or column that fills no window is left out, and its gradient is 0."""
    T, B, C, height, width, kernel = 3, 2, 4, 7, 9, 2
    x_TPC = random_pixels(T, B, C, height, width, 0.3, torch.float64).requires_grad_()
    x = x_TPC.view(T, B, height, width, C)
    windows = [
        x[:, :, y : y + kernel, c : c + kernel].flatten(2, 3)
        for y, c in itertools.product(range(0, height - 1, kernel), range(0, width - 1, kernel))
    ]
    pooled = [w.mean(2) if is_average else w.amax(2) for w in windows]
    expected = torch.stack(pooled, 2).flatten(1, 2)
    actual = Pooling(height, width, kernel, is_average)(x_TPC)
    torch.testing.assert_close(actual, expected)
    (gx,) = torch.autograd.grad(actual.sum(), x_TPC)
    gx = gx.view(T, B, height, width, C)
    assert not gx[:, :, -1].any()
    assert not gx[:, :, :, -1].any()
    share = 1 / kernel**2 if is_average else None
    for y, c in itertools.product(range(0, height - 1, kernel), range(0, width - 1, kernel)):
        window = gx[:, :, y : y + kernel, c : c + kernel].flatten(2, 3)
        torch.testing.assert_close(window.sum(2), torch.ones_like(window[:, :, 0]))
        assert window.eq(share).all() if is_average else (window == 1).sum(2).eq(1).all()


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (5, 7, 9, 6, 2), (4, 9, 8, 3, 3), (2, 17, 16, 2, 16)], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["f32", "f64"])
def test_maximum_pool_is_that_of_torch(shape, dtype):
    """Ties, which nearly all spikes are, go to the same place; the gradient is equal in every bit."""
    *size, kernel = shape
    torch.manual_seed(0)
    x_FHWC = (torch.rand(size) < 0.3).to(dtype) * torch.randint(-2, 3, size)
    x_FHWC.requires_grad_()
    expected = F.max_pool2d(x_FHWC.permute(0, 3, 1, 2), kernel).permute(0, 2, 3, 1)
    actual = max_pool.max_pool(x_FHWC, kernel)
    upstream = torch.randn_like(expected)
    assert torch.equal(actual, expected)
    assert torch.equal(*(torch.autograd.grad(out, x_FHWC, upstream)[0] for out in (actual, expected)))


def test_frames_and_pixels_are_views():
    x_TPC = torch.randn(3, 2 * 5 * 4, 6)
    frames = as_frames(x_TPC, 5, 4)
    assert frames.shape == (6, 6, 5, 4)
    assert frames[3, 2, 4, 1] == x_TPC[1, 20 + 4 * 4 + 1, 2]
    assert as_pixels(frames, 3).data_ptr() == frames.data_ptr() == x_TPC.data_ptr()
    out = F.conv2d(frames, torch.randn(8, 6, 3, 3), padding=1)
    assert as_pixels(out, 3).data_ptr() == out.data_ptr()


@pytest.mark.parametrize("has_gradient", [True, False])
def test_torch_takes_no_stride_over_single_pixels(monkeypatch, has_gradient):
    """With one, its gradient of the weights writes beyond its memory. Equal to a 3 x 3 kernel with zeros around."""
    x_TPC = torch.rand(3, 70, 5, dtype=torch.float64).requires_grad_(has_gradient)
    small, large = EventConv(5, 3, 7, 5, 1, 2).double(), EventConv(5, 3, 7, 5, 3, 2).double()
    large.weight.data.zero_()[..., 1:2, 1:2] = small.weight.data
    given, gradients, conv2d = [], [], F.conv2d

    def noted(x, W, bias, stride, padding):
        given.append(stride)
        return conv2d(x, W, bias, stride, padding)

    monkeypatch.setattr(F, "conv2d", noted)
    for layer, strides in ((small, [1]), (large, [1, 2])):
        y = layer(x_TPC)
        assert given == strides
        wanted = (layer.weight, x_TPC) if has_gradient else (layer.weight,)
        gW, *gx = torch.autograd.grad(y, wanted, torch.linspace(0, 1, y.numel(), dtype=y.dtype).view_as(y))
        gradients.append([y, gW if gW.shape[-1] == 1 else gW[..., 1:2, 1:2], *gx])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
