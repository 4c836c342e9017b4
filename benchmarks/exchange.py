"""An exported network in other simulators: python -m benchmarks.exchange --load_pt_file runs/<name>/best.pt

Writes the graph, reads it back with snnTorch, SpikingJelly and Norse, and the ONNX model with onnxruntime, and compares
their output spikes with ours on recordings of the training file. For each recording with different spikes, it finds the
first difference over all layers and prints the distance of the potential from its threshold θ, in units in the last
place (ulp) of θ: ours and onnxruntime's, as the simulators do not give theirs. Sums of float32 in another order differ
by a few units, so such distances are expected; a potential many units away would be a defect.
"""

import argparse
import contextlib
import copy
import io
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import snn

# isort: split
if __name__ == "__main__":
    snn.need("nir", "onnx", "onnxscript", "onnxruntime", extra="test")

# isort: split
import nir

import export
import tasks
from datasets.binning import Bins, batches
from datasets.recordings import AnyRecordings
from snn import arguments, checkpoint, cli, exchange
from snn.errors import InputError
from snn.inputs import SparseCounts
from snn.network import Network
from snn.neurons import SpikingNeuron

DT_S = 1e-4
BATCH = 100

# of one recording (T, *shape): the output spikes (T, classes), and those of every layer of neurons by name
Spikes = tuple[Tensor, dict[str, Tensor]]


def initial(graph: nir.NIRGraph) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the initial (current, membrane) of each layer."""
    return {
        name: (torch.as_tensor(node.metadata["i_initial"]), torch.as_tensor(node.metadata["v_initial"]))
        for name, node in graph.nodes.items()
        if "i_initial" in node.metadata
    }


def recorded(net: nn.Module, names: list[str], steps: Callable[[], Tensor]) -> Spikes:
    """Run `steps` and keep the outputs of the layers with these names."""
    spikes: dict[str, list[Tensor]] = {name: [] for name in names}
    hooks = [
        getattr(net, name).register_forward_hook(
            lambda _, __, out, kept=kept: kept.append((out if isinstance(out, Tensor) else out[0]).flatten())
        )
        for name, kept in spikes.items()
        if hasattr(net, name)
    ]
    out_TN = steps()
    for hook in hooks:
        hook.remove()
    return out_TN, {name: torch.stack(kept) for name, kept in spikes.items() if kept}


def in_snntorch(path: Path) -> Callable[[Tensor], Spikes]:
    from snntorch.import_nir import import_from_nir

    graph = nir.read(path)
    states = initial(graph)
    with contextlib.redirect_stdout(io.StringIO()):
        net = import_from_nir(graph)

    def run(x: Tensor) -> Spikes:
        for name, (i, v) in states.items():
            getattr(net, name).syn, getattr(net, name).mem = i.clone(), v.clone()
        return recorded(net, list(states), lambda: torch.stack([net(x_n)[0].flatten() for x_n in x]))

    return run


def in_spikingjelly(path: Path) -> Callable[[Tensor], Spikes]:
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    graph = nir.read(path)
    net = import_from_nir(graph, dt=DT_S)

    def run(x: Tensor) -> Spikes:
        def steps() -> Tensor:
            state = dict.fromkeys(graph.nodes)
            state |= {name: (v.unsqueeze(0), i.unsqueeze(0)) for name, (i, v) in initial(graph).items()}
            out = []
            for x_n in x:
                s, state = net(x_n.unsqueeze(0), state)
                out.append(s.flatten())
            return torch.stack(out)

        return recorded(net, list(initial(graph)), steps)

    return run


def in_norse(path: Path) -> Callable[[Tensor], Spikes]:
    import norse.torch as norse
    from nirtorch.graph_executor import GraphExecutorState
    from norse.torch.functional.leaky_integrator_box import LIBoxState
    from norse.torch.functional.lif_box import LIFBoxFeedForwardState

    graph = nir.read(path)
    net = norse.from_nir(graph, dt=DT_S)

    def run(x: Tensor) -> Spikes:
        def steps() -> Tensor:
            state = GraphExecutorState()
            for name, (i, v) in initial(graph).items():
                state.state[name] = ((LIBoxState(i), LIFBoxFeedForwardState(v)),)
            out = []
            for x_n in x:
                s, state = net(x_n, state)
                out.append(s.flatten())
            return torch.stack(out)

        return recorded(net, list(initial(graph)), steps)

    return run


SIMULATORS = {"snntorch": in_snntorch, "spikingjelly": in_spikingjelly, "norse": in_norse}


def in_onnxruntime(path: Path, step: exchange.Step) -> Callable[[Tensor], Tensor]:
    """Return a function from x (T, B, channels) to output spikes (T, B, classes)."""
    run = _session(path.read_bytes(), step)
    return lambda x_TBC: run(x_TBC)[0]


def potentials_in_onnxruntime(path: Path, step: exchange.Step) -> Callable[[Tensor], list[Tensor]]:
    """Return a function from x (T, B, channels) to h - θ (T, B, N) of each layer, which the model compares with 0."""
    import onnx

    model = onnx.load(path)
    compared = [node.input[0] for node in model.graph.node if node.op_type in ("GreaterOrEqual", "Greater")]
    compared = list(dict.fromkeys(compared))
    a_layer = len(compared) // len(step.layers)  # `spike_first` compares twice, the output spike last
    compared = compared[a_layer - 1 :: a_layer]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in compared)
    run = _session(model.SerializeToString(), step, compared)
    return lambda x_TBC: run(x_TBC)[1:]


def _session(model: bytes, step: exchange.Step, more: Sequence[str] = ()) -> Callable[[Tensor], list[Tensor]]:
    """Return a function from x (T, B, channels) to output spikes and other outputs in `more`, (T, B, N) each."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = ["spikes", *(f"{name}_next" for name in step.state_names), *more]

    def run(x_TBC: Tensor) -> list[Tensor]:
        states = [np.zeros((x_TBC.shape[1], *shape), np.float32) for shape in step.state_shapes]
        kept = []
        for x_BC in x_TBC.numpy():
            s, *rest = session.run(names, {"x": x_BC, **dict(zip(step.state_names, states, strict=True))})
            states, others = rest[: len(states)], rest[len(states) :]
            kept.append([s, *others])
        return [torch.from_numpy(np.stack(steps)).flatten(2) for steps in zip(*kept, strict=True)]

    return run


class Difference(NamedTuple):
    """The first spike of a recording, over all layers, that only one of two networks has."""

    step: int
    layer: int
    neuron: int
    away: float  # of our potential from the threshold, in units in the last place of the latter

    def __str__(self) -> str:
        where = f"layer {self.layer + 1}, neuron {self.neuron}, step {self.step + 1}"
        return f"first at {where}: ours {self.away:+.1f} ulp from θ"


def in_ulp(away: float, theta: float) -> float:
    """Convert a distance from θ to units in the last place of θ as float32."""
    return away / float(np.spacing(np.float32(theta)))


def neurons_of(network: Network) -> list[SpikingNeuron]:
    return [layer.neurons for layer in network.layers]


def spikes_and_potentials(network: Network, x_T1C: SparseCounts) -> list[tuple[Tensor, Tensor]]:
    """Return spikes and potentials, (T, N) each, layer after layer; images are in NIR's order, channels first."""
    network, ran = copy.deepcopy(network), []
    for module in neurons_of(network):
        module.return_potential = True
        module.register_forward_hook(lambda _, __, out: ran.append(out))
        if module is not network.output.neurons:
            module.register_forward_hook(lambda _, __, out: out[0])
    network.reset()
    network(x_T1C)
    return [tuple(of_layer.transpose(1, 2).flatten(1) for of_layer in both) for both in ran]


def first_difference(
    network: Network, ran: list[tuple[Tensor, Tensor]], theirs: dict[int, Tensor], latencies: Sequence[int]
) -> Difference | None:
    """Find the first difference in spikes (T, N) by layer; theirs come `latencies` steps earlier than ours (`ran`)."""
    found = []
    for k, s_TN in theirs.items():
        ours_TN, h_TN = (of_layer[latencies[k] :] for of_layer in ran[k])
        apart = (s_TN[: len(ours_TN), : ours_TN.shape[1]] != ours_TN).nonzero()
        if len(apart):
            n, j = apart[0].tolist()
            theta = neurons_of(network)[k].threshold
            # in the graph's time, a layer's spike and its effect on the next layer are in the same step
            found.append((n, k, Difference(n + latencies[k], k, j, in_ulp(float(h_TN[n, j]) - theta, theta))))
    return min(found)[2] if found else None


def in_words(network: Network, recordings: AnyRecordings, r: int, bins: Bins, away: list[Tensor], b: int) -> str:
    """Describe the first spike of recording r, number b of its batch in onnxruntime, that only one of the two has."""
    x_T1C, _ = next(batches(recordings, np.array([r]), bins, 1))
    dynamics, ran = [module.dynamics for module in neurons_of(network)], spikes_and_potentials(network, x_T1C)
    spikes = {
        k: ((u_TBN[:, b] > 0) if dynamics[k].spike_first else (u_TBN[:, b] >= 0)).float()
        for k, u_TBN in enumerate(away)
    }
    first = first_difference(network, ran, spikes, [0] * len(away))
    if first is None:
        return "equal where the potentials are asked for, which changes how onnxruntime rounds"
    theta, (_, h_TN), theirs_TN = neurons_of(network)[first.layer].threshold, ran[first.layer], away[first.layer][:, b]
    theirs = in_ulp(float(theirs_TN[first.step, first.neuron]), theta)
    until = slice(first.step + 1)  # all other spikes of this layer are equal until then: only rounding differs
    apart_TN = (h_TN[until] - theta - theirs_TN[until]).abs()
    apart_TN[first.step, first.neuron] = 0
    apart = in_ulp(float(apart_TN.max()), theta)
    return f"{first}, onnxruntime {theirs:+.1f}; equal spikes till then from potentials up to {apart:.1f} ulp apart"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--load_pt_file", type=Path, required=True)
    parser.add_argument("--path_to_dataset", help="folder of the data files (default: that of the training)")
    parser.add_argument("--recordings", type=int, default=200)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    path = arguments.find_checkpoint(args.load_pt_file)
    cfg, content = checkpoint.load(path)
    data = cfg.data.model_copy(update={"path": args.path_to_dataset or cfg.data.path})
    network = cfg.new_network().eval()
    checkpoint.load_weights(network, content["network"], path)
    folded = network.folded()
    bins = Bins(data.dt_ms, data.T, data.T_empty, math.prod(data.shape))
    recordings = tasks.events.read_recordings(data, "train", bins)
    chosen = np.arange(min(args.recordings, len(recordings)))

    with tempfile.TemporaryDirectory() as folder:
        model, step = Path(folder) / "step.onnx", exchange.Step(network, data.shape)
        export.write_onnx(argparse.Namespace(), cfg, network, model)
        runtime, potentials = in_onnxruntime(model, step), potentials_in_onnxruntime(model, step)
        equal, lines = 0, []
        for k, (x_TBC, _) in enumerate(batches(recordings, chosen, bins, BATCH)):
            folded.reset()
            differ = (runtime(x_TBC.dense()) != folded(x_TBC).s_TBN).any(-1).any(0)
            equal += int((~differ).sum())
            if differ.any():
                away = potentials(x_TBC.dense())  # in the same batch: a product with other rows may round differently
                lines += [
                    f"  recording {BATCH * k + b}: {in_words(folded, recordings, BATCH * k + b, bins, away, b)}"
                    for b in differ.nonzero().flatten().tolist()
                ]
        print(f"{'onnxruntime':<14}{equal} of {len(chosen)} recordings with all output spikes equal", *lines, sep="\n")

        if unsaid := exchange.unsaid_by_nir(network):
            print(f"compared without {' and '.join(unsaid)}")
            folded = exchange.approximated(network)
        graph = exchange.nir_graph(folded, data.shape, DT_S)
        nir.write(Path(folder) / "graph.nir", graph)
        steps = np.cumsum([exchange.latency_of(layer.neurons) for layer in folded.layers])
        for name, simulator in SIMULATORS.items():
            try:
                run = simulator(Path(folder) / "graph.nir")
                equal, spikes, lines = 0, 0, []
                for r in tqdm(chosen, name, leave=False, disable=None):
                    x_T1C, _ = next(batches(recordings, np.array([r]), bins, 1))
                    folded.reset()
                    ours_TN = folded(x_T1C).s_TBN[:, 0]
                    theirs_TN, layers = run(x_T1C.dense().view(len(ours_TN), *data.shape))
                    same = torch.equal(theirs_TN[: len(ours_TN) - steps[-1]], ours_TN[steps[-1] :])
                    equal, spikes = equal + same, spikes + int(ours_TN.sum())
                    if not same:
                        of_layers = {int(layer.split("_")[1]) - 1: s_TN for layer, s_TN in layers.items()}
                        ran = spikes_and_potentials(folded, x_T1C)
                        lines.append(f"  recording {r}: {first_difference(folded, ran, of_layers, steps.tolist())}")
            except (ValueError, AttributeError, RuntimeError, ImportError, InputError) as error:
                print(f"{name:<14}cannot run it: {' '.join(str(error).split()):.100}")
                continue
            print(f"{name:<14}{equal} of {len(chosen)} recordings with all output spikes equal, {spikes} spikes")
            print(*lines, sep="\n", end="\n" if lines else "")


if __name__ == "__main__":
    cli.run(main)
