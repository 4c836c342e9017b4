"""A TTFS network event by event, against the pass over all times at once; the early decision, against all outcomes."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from snn.errors import InputError
from snn.ttfs.evaluation import TTFSEvaluation, examine_images
from snn.ttfs.events import EventDriven
from tests.conftest import toy_images
from tests.networks import build_ttfs, random_images, trained_ttfs

CPU = torch.device("cpu")
KNOWN = pytest.mark.parametrize("known", [True, False], ids=["fires known", "spikes alone"])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"words": "20F - 15F", "T": 3.0, "zero_drive_fires": True},
        {"words": "A2 - 6C5S3 - 9C3 - P2 - 12F", "standardised": True, "T": 0.5},
        {"words": "6C3 - 5C3S2", "encoder": "direct", "bias": True},
        {"bias": True, "standardised": True},
    ],
    ids=str,
)
def test_events_one_by_one_give_the_times_of_all_at_once(options):
    network, x = build_ttfs(**options).double().eval(), random_images(20).double()
    x[0], x[1, :, :6] = 0, 1  # a black image, and many spikes at the same time
    evaluation = TTFSEvaluation()
    examine_images(network, x, torch.zeros(20, dtype=torch.int64), CPU, evaluation)
    V_BN, passages, _ = network(x)
    events = EventDriven(network)
    outcomes = [events.run(each) for each in x]
    for k, outcome in enumerate(outcomes):
        for t, passage in zip(outcome.t_layers, passages, strict=True):
            torch.testing.assert_close(t, passage.t_out[k], rtol=1e-9, atol=1e-9)  # also of silent ones, which are inf
        assert outcome.label == V_BN[k].argmax()
        assert len(passages) <= outcome.windows <= len(passages) + 1
    operations = np.sum([outcome.operations[:-1] for outcome in outcomes], 0)
    assert operations.tolist() == evaluation.operations[:-1].tolist()


@pytest.mark.parametrize("words", ["30F", "6C3 - P2 - 8C3 - 20F"])
@KNOWN
def test_decisions_of_a_trained_network_do_not_change_and_come_earlier(words, known):
    network, (pixels, labels) = trained_ttfs(words), toy_images(60, 1)
    x = torch.from_numpy(pixels)[:, None] / 255
    expected = network(x).V_BN.argmax(1)
    assert (expected == torch.from_numpy(labels)).float().mean() > 0.9
    events = EventDriven(network)
    outcomes = {share: [events.run(each, share, known) for each in x] for share in (1.0, 0.5, 0.1)}
    assert [outcome.label for outcome in outcomes[1.0]] == expected.tolist()
    windows = {share: np.array([outcome.windows for outcome in each]) for share, each in outcomes.items()}
    assert (windows[1.0] >= windows[0.5]).all()
    assert (windows[0.5] >= windows[0.1]).all()
    assert windows[0.1].mean() < len(outcomes[0.1][0].t_layers) + 0.5


def ends(W_ON: np.ndarray, t_N: np.ndarray, s: float, T: float, known: bool) -> Iterator[np.ndarray]:
    """Yield what inputs that have not arrived by s may do: come as late as they can, or now where a class gains."""
    waits = (t_N > s) & ((t_N < math.inf) | (not known))
    late = np.where(waits, T if known else math.inf, t_N)
    yield late
    leader = potentials(W_ON, late, T).argmax()
    for weight in W_ON:
        yield np.where(waits & (weight > W_ON[leader]), s, late)
    random = np.random.default_rng(0)
    for _ in range(20):
        some = np.where(waits, random.uniform(s, T, len(t_N)), t_N)
        yield np.where(waits & (not known) & (random.random(len(t_N)) < 0.3), math.inf, some)


def potentials(W_ON: np.ndarray, t_N: np.ndarray, T: float) -> np.ndarray:
    return W_ON @ np.where(t_N < math.inf, 2 * T - t_N, 0)


@KNOWN
@pytest.mark.parametrize("classes", [2, 3, 12])
def test_a_decision_is_final_and_comes_as_soon_as_it_is(classes, known):
    """Nothing that inputs may still do changes it, and just before, something would have."""
    random = np.random.default_rng(classes)
    T, N, between, early = 2.0, 25, 0, 0
    network = build_ttfs(f"{N}F", (1, 1, 3), classes, T=T).double()
    for _ in range(60):
        W_ON = random.normal(0, 0.3, (classes, N))
        W_ON[0, : N // 2] += random.uniform(0, 2)
        t_N = (random.uniform(0, T, N) * random.choice([1, 0.3])).round(2)
        t_N[random.random(N) < random.choice([0, 0.2, 0.6, 1], p=[0.3, 0.3, 0.3, 0.1])] = math.inf
        with torch.no_grad():
            network.readout.weight.copy_(torch.from_numpy(W_ON))
        label, s, _ = EventDriven(network).readout.decide(torch.from_numpy(t_N)[None], 1.0, known)
        assert label == potentials(W_ON, t_N, T).argmax()
        assert {int(potentials(W_ON, end, T).argmax()) for end in ends(W_ON, t_N, s, T, known)} <= {label} or s == T
        if 0 < s < T:
            before = {int(potentials(W_ON, end, T).argmax()) for end in ends(W_ON, t_N, s - 1e-6, T, known)}
            assert len(before | {label}) > 1
            early += 1
            between += s not in t_N
    assert early > 5
    assert between > 1


@KNOWN
def test_equal_classes_are_decided_by_the_lower_number_at_the_end(known):
    network = build_ttfs("6F", (1, 1, 3), 3).double()
    with torch.no_grad():
        network.readout.weight[:] = torch.tensor([0.0, 1.0, 1.0])[:, None]
    label, s, _ = EventDriven(network).readout.decide(
        torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5, math.inf]]).double(), 1.0, known
    )
    assert (label, s) == (1, 1.0)


def test_bad_calls():
    events = EventDriven(build_ttfs())
    with pytest.raises(InputError, match="the pixels"):
        events.run(torch.zeros(2, 12, 11))
    with pytest.raises(InputError, match="share"):
        events.run(torch.zeros(2, 12, 10), share=0.0)
