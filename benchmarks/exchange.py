"""An exported network in other simulators: python -m benchmarks.exchange --load_pt_file runs/<name>/best.pt

Writes the graph, reads it back with snnTorch, SpikingJelly and Norse, and the ONNX model with onnxruntime, and compares
their output spikes with ours on recordings of the training file. Where spikes differ, it says how far from its
threshold our potential was at the first one that did, over all layers.
"""

import argparse
import contextlib
import io
import logging
import math
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import nir
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import export
import tasks
from datasets.events import Bins, batches
from snn import checkpoint, cli, exchange
from snn.errors import InputError
from snn.events import Events
from snn.network import Network

DT_S = 1e-4

# of one recording (T, *shape): the output spikes (T, classes), and those of every layer of neurons by name
Spikes = tuple[Tensor, dict[str, Tensor]]


def initial(graph: nir.NIRGraph) -> dict[str, tuple[Tensor, Tensor]]:
    """(current, membrane) that each layer begins with."""
    return {
        name: (torch.as_tensor(node.metadata["i_initial"]), torch.as_tensor(node.metadata["v_initial"]))
        for name, node in graph.nodes.items()
        if "i_initial" in node.metadata
    }


def recorded(net: nn.Module, names: list[str], steps: Callable[[], Tensor]) -> Spikes:
    """Run `steps` and keep what the layers of these names give."""
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
    """Output spikes (T, B, classes) of x (T, B, channels)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(x_TBC: Tensor) -> Tensor:
        states = [np.zeros((x_TBC.shape[1], *shape), np.float32) for shape in step.state_shapes]
        out = []
        for x_BC in x_TBC.numpy():
            s, _, *states = session.run(None, {"x": x_BC, **dict(zip(step.state_names, states, strict=True))})
            out.append(torch.from_numpy(s))
        return torch.stack(out)

    return run


def margin(network: Network, x_T1C: Events, theirs: dict[str, Tensor], latencies: list[int]) -> float:
    """|h - θ| of ours where, in the time of the graph, the first spike of any layer differs."""
    ran: list[tuple[Tensor, Tensor]] = []
    neurons = [*(block.neurons for block in network.blocks), network.output]
    for module in neurons:
        module.return_potential = True
        module.register_forward_hook(lambda _, __, out: ran.append(out))
        if module is not network.output:
            module.register_forward_hook(lambda _, __, out: out[0])
    network.reset()
    network(x_T1C)
    found = []
    for name, s_TN in theirs.items():
        k = int(name.split("_")[1]) - 1
        # an image of ours is (pixel, channel), of theirs (channel, pixel)
        ours_TN, h_TN = (of_layer.transpose(1, 2).flatten(1)[latencies[k] :] for of_layer in ran[k])
        apart = (s_TN[: len(ours_TN), : ours_TN.shape[1]] != ours_TN).nonzero()
        if len(apart):
            n, j = apart[0].tolist()
            found.append((n, k, abs(float(h_TN[n, j]) - neurons[k].dynamics.theta)))
    return min(found)[2]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--load_pt_file", type=Path, required=True)
    parser.add_argument("--path_to_dataset", help="folder of the data files; default that of the training")
    parser.add_argument("--recordings", type=int, default=200)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    path = cli.find_checkpoint(args.load_pt_file)
    cfg, content = checkpoint.load(path)
    data = cfg.data.model_copy(update={"path": args.path_to_dataset or cfg.data.path})
    network = Network(cfg.network, data.shape, data.num_classes).eval()
    checkpoint.load_weights(network, content["network"], path)
    folded = network.folded()
    bins = Bins(data.dt_ms, data.T, data.T_empty, math.prod(data.shape))
    recordings = tasks.read_recordings(data, "train", bins)
    chosen = np.arange(min(args.recordings, len(recordings)))

    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "step.onnx"
        export.write_onnx(cfg, network, model)
        runtime = in_onnxruntime(model, exchange.Step(network, data.shape))
        equal = 0
        for x_TBC, _ in batches(recordings, chosen, bins, 100):
            folded.reset()
            equal += int((runtime(x_TBC.dense()) == folded(x_TBC).s_TBN).all(-1).all(0).sum())
        print(f"{'onnxruntime':<14}{equal} of {len(chosen)} recordings with all output spikes equal")

        if unsaid := exchange.unsaid_by_nir(network):
            print(f"compared without {' and '.join(unsaid)}")
            folded = exchange.approximated(network)
        graph = exchange.nir_graph(folded, data.shape, DT_S)
        nir.write(Path(folder) / "graph.nir", graph)
        steps = np.cumsum(
            [exchange.latency_of(module) for module in [b.neurons for b in folded.blocks] + [folded.output]]
        )
        for name, simulator in SIMULATORS.items():
            try:
                run = simulator(Path(folder) / "graph.nir")
                equal, spikes, margins = 0, 0, []
                for r in tqdm(chosen, name, leave=False, disable=None):
                    x_T1C, _ = next(batches(recordings, np.array([r]), bins, 1))
                    folded.reset()
                    ours_TN = folded(x_T1C).s_TBN[:, 0]
                    theirs_TN, layers = run(x_T1C.dense().view(len(ours_TN), *data.shape))
                    same = torch.equal(theirs_TN[: len(ours_TN) - steps[-1]], ours_TN[steps[-1] :])
                    equal, spikes = equal + same, spikes + int(ours_TN.sum())
                    if not same:
                        margins.append(margin(folded.folded(), x_T1C, layers, steps.tolist()))
            except (ValueError, AttributeError, RuntimeError, ImportError, InputError) as error:
                print(f"{name:<14}cannot run it: {' '.join(str(error).split()):.100}")
                continue
            away = f"; first difference |h - θ| up to {max(margins):.1e}" if margins else ""
            print(f"{name:<14}{equal} of {len(chosen)} recordings with all output spikes equal, {spikes} spikes{away}")


if __name__ == "__main__":
    main()
