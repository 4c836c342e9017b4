"""A TTFS network event by event beside the dense pass: operations, time and early decisions, in Python and in C.

    python -m benchmarks.ttfs_events --load_pt_file runs/NAME/best.pt [--images 1000] [--path_to_dataset DIR]

Takes images of the test split, evenly spread, one at a time. The dense pass of the network (a batch of one image) and
`snn.ttfs.events` take turns; times are medians of processor time, so use one thread (OMP_NUM_THREADS=1). Then come
early decisions, by both bounds of `snn.ttfs.events` and by shares of them, in windows T from the start of the image.
The network as C, compiled by gcc, decides on the same images, and on 20 of them on a Cortex-M4F and a Cortex-M7 in
QEMU, which counts instructions.
"""

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import embedded as bench
from benchmarks.figures import Figure, Other, add_option, duration, store
from benchmarks.kernels import processor
from datasets import images
from snn import arguments, checkpoint, cli
from snn.embedded import ttfs
from snn.errors import InputError
from snn.quantise import quantised
from snn.ttfs import products
from snn.ttfs.evaluation import TTFSEvaluation, examine_images
from snn.ttfs.events import EventDriven
from snn.ttfs.layers import SpikingLayer
from snn.ttfs.network import TTFSNetwork

RULES = [(known, share) for known in (True, False) for share in (1.0, 0.5, 0.2, 0.1, 0.05)]
SHOWN = (1.0, 0.2, 0.1)  # shares on the page
ON_BOARDS = 20  # images


class Curve(NamedTuple):
    """Early decisions by one rule."""

    fires_known: bool
    share: float
    label_n: np.ndarray
    windows_n: np.ndarray
    operations: float  # of the readout, a mean over images

    @property
    def name(self) -> str:
        bound = "knowing which inputs fire" if self.fires_known else "by spikes alone"
        return f"{bound}, {'certain' if self.share == 1 else f'{self.share:g} of the bound'}"


@contextmanager
def dense_products() -> Iterator[None]:
    """Make the products of convolutions dense, which follow the events where few inputs fire."""
    before, products.DENSE_ABOVE = products.DENSE_ABOVE, -1.0
    try:
        yield
    finally:
        products.DENSE_ABOVE = before


def decide(network: TTFSNetwork, x_BCHW: Tensor) -> tuple[list[int], list[Curve], dict[str, float]]:
    """Return the decisions of the dense pass, those of all rules, and median milliseconds of both passes."""
    events = EventDriven(network)
    events.run(x_BCHW[0])  # compiles
    dense, label, windows, added = [], *([[] for _ in RULES] for _ in range(3))
    taken: dict[str, list[float]] = {"dense": [], "events": []}
    for x_CHW in tqdm(x_BCHW, "images", leave=False, disable=None):
        start = time.process_time()
        with dense_products():
            dense.append(int(network(x_CHW[None]).V_BN.argmax()))
        between = time.process_time()
        events.run(x_CHW)
        taken["dense"].append(between - start)
        taken["events"].append(time.process_time() - between)
        t, t_layers, _ = events.layer_times(x_CHW)
        for k, (known, share) in enumerate(RULES):
            decision, at, operations = events.readout.decide(t, share, known)
            label[k].append(decision)
            windows[k].append(len(t_layers) + at / events.T)
            added[k].append(operations)
    curves = [
        Curve(known, share, np.array(label[k]), np.array(windows[k]), statistics.mean(added[k]))
        for k, (known, share) in enumerate(RULES)
    ]
    return dense, curves, {name: 1000 * statistics.median(each) for name, each in taken.items()}


def in_c(network: TTFSNetwork, pixels: np.ndarray, int8: bool) -> tuple[list[int], float]:
    """Return the decisions of the network in C and the milliseconds an image; print its size and instructions."""
    code = ttfs.code(network, None, int8)
    kind = "int8" if int8 else "float32"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench.write_code(code, folder)
        pixels.tofile(folder / "images.bin")
        lines = bench.run_native(folder, ["gcc", "-O3"], sources=[bench.IMAGES])[1:]
        taken = []
        for _ in range(5):
            before = os.times().children_user
            subprocess.run(["./native"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
            taken.append(os.times().children_user - before)  # without the time that others have the processor
        ms = 1000 * statistics.median(taken) / len(pixels)
        if why := bench.missing_for_arm():
            print(f"not run for Cortex-M: {why}")
        else:
            few = np.linspace(0, len(pixels) - 1, min(ON_BOARDS, len(pixels))).round().astype(int)
            pixels[few].tofile(folder / "images.bin")
            for board in bench.BOARDS:
                words = [line.split() for line in bench.run_on(board, folder, [bench.IMAGES])[1:]]
                same = sum(" ".join(word[:4]) == lines[k] for word, k in zip(words, few, strict=True))
                counted = statistics.median(int(word[4]) for word in words)
                flash = bench.flash_bytes(board, folder)
                print(
                    f"C, {kind}, {board.name}: {flash:,} bytes of flash, {code.state_bytes:,} of RAM, "
                    f"{counted:,.0f} instructions; {same} of {len(few)} decisions as natively"
                )
    return [int(line.split()[1]) for line in lines], ms


def count(network: TTFSNetwork, x_BCHW: Tensor, target_B: Tensor) -> tuple[float, float]:
    """Return (synaptic operations of spikes up to the readout, multiply-adds of one dense product) for an image."""
    evaluation = TTFSEvaluation()
    for part in range(0, len(x_BCHW), 100):
        chosen = slice(part, part + 100)
        examine_images(network, x_BCHW[chosen], target_B[chosen], torch.device("cpu"), evaluation)
    metrics = evaluation.metrics()
    return sum(metrics["synaptic_operations_by_layer"][:-1]), metrics["synapses"]


def differing(one: Iterable[int], other: Iterable[int]) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


def show(curves: Sequence[Curve], dense: Sequence[int], target_n: np.ndarray) -> None:
    """Print a table of the rules."""
    print("| decision | accuracy | unlike the dense pass | windows, mean (90 % by) | operations of the readout |")
    print("|---|---|---|---|---|")
    for curve in curves:
        windows = f"{curve.windows_n.mean():.2f} ({np.quantile(curve.windows_n, 0.9):.2f})"
        cells = [curve.name, percent(curve.label_n, target_n), str(differing(curve.label_n, dense)), windows]
        print(f"| {' | '.join([*cells, f'{curve.operations:,.0f}'])} |")


def percent(label_n: Sequence[int] | np.ndarray, target_n: np.ndarray) -> str:
    return f"{100 * (np.asarray(label_n) == target_n).mean():.2f} %"


@torch.inference_mode()
def main() -> None:
    parser = cli.OneLineParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--load_pt_file", type=Path, required=True, metavar="PT")
    parser.add_argument("--path_to_dataset", help="folder of the data files")
    parser.add_argument("--images", type=int, default=1000, help="images of the test split (1000)")
    add_option(parser)
    args = parser.parse_args()
    path = arguments.find_checkpoint(args.load_pt_file)
    network, cfg, _ = checkpoint.load_network(path)
    if not isinstance(network, TTFSNetwork):
        raise InputError(f"{path}: is not a TTFS network")
    network = network.folded()
    data = images.read(cfg.data.model_copy(update={"path": args.path_to_dataset or cfg.data.path}), "test")
    if data.pixels.dtype != np.uint8:
        raise InputError(f"{data.where}: the C reads pixels of a byte, but these are {data.pixels.dtype}")
    chosen = np.linspace(0, len(data) - 1, min(args.images, len(data))).round().astype(int)
    pixels, target_n = data.pixels[chosen], data.labels[chosen]
    x_BCHW = torch.from_numpy(pixels) / 255
    operations, synapses = count(network, x_BCHW, torch.from_numpy(target_n))
    dense, curves, ms = decide(network, x_BCHW)
    print(f"{processor()}, {torch.get_num_threads()} threads; {cfg.ttfs.layers}; {len(chosen)} images")
    print(f"dense: {ms['dense']:.2f} ms, {synapses:,.0f} synapses, for two sums each; {percent(dense, target_n)}")
    print(f"events: {ms['events']:.2f} ms, {operations:,.0f} synapses of spikes before the readout, for two sums each")
    show(curves, dense, target_n)
    for int8 in (False, True):
        kind = "C, int8" if int8 else "C"
        label, ms[kind] = in_c(network, pixels, int8)
        own = [int(V_N.argmax()) for V_N in quantised(network)(x_BCHW).V_BN] if int8 else dense
        print(
            f"{kind}: {ms[kind]:.2f} ms; {percent(label, target_n)}; {differing(label, own)} decisions unlike those of "
            f"the same network in Python, {differing(label, dense)} unlike those in float32"
        )
    if args.store:
        layers = sum(isinstance(module, SpikingLayer) for module in network.layers)
        what = f"an image by `{cfg.ttfs.layers}` of neurons that spike once, event by event, one core"
        here = f"{duration(ms['C'])} in C, {duration(ms['events'])} in Python; {operations:,.0f} synapses"
        rows = [
            Other("dense, a batch of 1", f"{duration(ms['dense'])}; {synapses:,.0f} synapses", ms["dense"] / ms["C"])
        ]
        took = [f"{curve.windows_n.mean():.2f} windows, {percent(curve.label_n, target_n)}" for curve in curves]
        early = [Other(curve.name, words) for curve, words in zip(curves, took, strict=True) if curve.share in SHOWN]
        early.append(Other("dense, at the end", f"{layers + 2} windows, {percent(dense, target_n)}"))
        figures = [Figure(what, here, rows), Figure(f"its decision, {curves[0].name}", took[0], early[1:])]
        store(figures)


if __name__ == "__main__":
    cli.run(main)
