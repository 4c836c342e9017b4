"""The gain of work that grows with the events: products, a training step, and decisions on a stream.

    python -m benchmarks.events [--json FILE] [--rounds 9] [--load_pt_file best.pt]

1. The input layer of configs/adlif_shd.yaml, 12,800 rows, 700 to 256, forward and weight gradient at several shares of
   active inputs. "from dense" is the case of a hidden layer: its input arrives as spikes in a dense tensor, which is
   searched for them first. The rule in snn/linear.py uses the share above which this is no longer faster.
2. A training step of that network, event-driven, with dense products, and with SpikingJelly's LIFNodes; and the memory
   that its input layer takes, from recordings to weight gradient.
3. One recording at a time on one core: `snn.streaming` against the batched pass with dense products at batch 1.

All contenders take turns; times are medians. Recordings are made up as in benchmarks.step, and networks are untrained.
With a checkpoint, part 3 takes its network and recordings of its test file.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.figures import Figure, Other, add_option, duration, others, store
from benchmarks.kernels import high_water_megabytes, medians, processor
from benchmarks.step import CONFIG, make_recordings, our_step, spikingjelly_step
from datasets.binning import Bins, bin_events
from datasets.recordings import AnyRecordings, Recordings, subset
from snn import architecture, arguments, checkpoint, cli, config, settings
from snn.conv import EventConv
from snn.errors import InputError
from snn.inputs import SparseCounts
from snn.linear import EventLinear
from snn.memory import keep_freed_memory
from snn.network import Network
from snn.ops import sparse
from snn.streaming import Stream
from tasks.events import read_recordings

ROWS, INPUTS, OUTPUTS = 12_800, 700, 256
NEVER = -1.0  # a layer's `dense_above` below every share of active inputs: its products are always dense
KEEP = (0.125, 0.25, 0.5, 0.75, 1.0)
INPUT_LAYERS = ("event-driven", "dense products", "frames")
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


def contenders(share: float) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    x_RC = (torch.rand(ROWS, INPUTS) < share).float()
    W_NC, gy_RN = torch.randn(OUTPUTS, INPUTS), torch.randn(ROWS, OUTPUTS)
    given = SparseCounts(*sparse.compress(x_RC, sparse.find(x_RC)), (ROWS, 1, INPUTS))

    def event_driven(events: SparseCounts) -> None:
        sparse.product(events.entries, W_NC)
        sparse.weight_gradient(events.entries, gy_RN, INPUTS)

    def from_dense() -> None:
        event_driven(SparseCounts(*sparse.compress(x_RC, sparse.find(x_RC)), (ROWS, 1, INPUTS)))

    def dense() -> None:
        F.linear(x_RC, W_NC)
        gy_RN.T @ x_RC

    return {"events": lambda: event_driven(given), "from dense": from_dense, "dense": dense}


def products(rounds: int) -> list[dict]:
    print(f"{ROWS} rows, {INPUTS} to {OUTPUTS}, float32")
    print("active    events   from dense   dense (ms, forward + weight gradient)")
    rows = []
    for share in SHARES:
        ms = medians(contenders(share), rounds, "cpu")
        rows.append({"share": share, "milliseconds": ms})
        times = "".join(f"{ms[name]:8.1f} ({ms['dense'] / ms[name]:4.1f}x)" for name in ("events", "from dense"))
        print(f"{100 * share:5.0f} %{times}{ms['dense']:8.1f}")
    return rows


def training_step(cfg: config.Config, recordings: Recordings, rounds: int) -> dict[str, float]:
    steps = {
        "event-driven": our_step(cfg, "cpu", recordings),
        "dense products": our_step(cfg, "cpu", recordings, dense_above=NEVER),
        "SpikingJelly, LIFNode": spikingjelly_step(cfg, recordings),
    }
    ms = medians(steps, rounds, "cpu")
    print(f"a training step of {CONFIG.name}, B = {len(recordings)}")
    for name, value in ms.items():
        print(f"  {name:<24}{value:8.1f} ms {value / ms['event-driven']:6.2f} x")
    return ms


def input_layer_megabytes(kind: str) -> float:
    """Measure the memory that binning, forward and weight gradient of the input layer add to this process."""
    cfg = settings.load(CONFIG)
    recordings = made_up(cfg)
    torch.manual_seed(0)
    layer = EventLinear(cfg.data.channels, architecture.parse(cfg.network.layers)[0].size)
    layer.dense_above = 1.0 if kind == "event-driven" else NEVER

    def step(index: np.ndarray) -> None:
        x_TBC = bin_events(recordings, index, Bins.of(cfg.data, "test"))
        if kind == "frames":  # dense, as in other libraries
            x_TBC = x_TBC.dense()
        layer(x_TBC).sum().backward()

    step(np.arange(2))
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the high water mark falls to what is in use now
    before = high_water_megabytes()
    step(np.arange(len(recordings)))
    return high_water_megabytes() - before


def streaming(network: Network, cfg: config.Config, recordings: Recordings, rounds: int) -> dict:
    """Measure ms per recording, events per second, and the time if only a share of a recording's events is kept."""
    bins = Bins.of(cfg.data, "test")
    network = network.folded()
    dense = network.folded()
    for module in dense.modules():
        if isinstance(module, EventConv | EventLinear):
            module.dense_above = NEVER
    frames = [bin_events(recordings, np.array([r]), bins).dense() for r in range(len(recordings))]
    streams = {
        stops: Stream(network, bins.dt_ms, bins.T, bins.T_empty, recordings.ticks_per_second, stops)
        for stops in (True, False)
    }

    def thinned(keep: float) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return (times, channels) of each recording, with an evenly spread share of its events."""
        parts = [np.arange(*recordings.offsets[r : r + 2]) for r in range(len(recordings))]
        parts = [part[np.linspace(0, len(part) - 1, max(1, round(keep * len(part)))).astype(int)] for part in parts]
        return [(recordings.times[part], recordings.channels[part]) for part in parts]

    def stream_all(stops: bool, given: list[tuple[np.ndarray, np.ndarray]]) -> None:
        stream = streams[stops]
        for times, channels in given:
            stream.reset()
            stream.push(times, channels)
            stream.finish()

    @torch.inference_mode()
    def batches_of_one() -> None:
        for x_T1C in frames:
            dense.reset()
            dense(x_T1C)

    n, everything = len(recordings), thinned(1.0)
    steps = {
        "stream, to the decision": lambda: stream_all(True, everything),
        "stream, whole window": lambda: stream_all(False, everything),
        "batch of one, dense": batches_of_one,
    }
    ms = {name: value / n for name, value in medians(steps, rounds, "cpu").items()}
    print(f"one recording at a time, one core, {n} recordings")
    for name, value in ms.items():
        print(f"  {name:<24}{value:8.3f} ms {ms['batch of one, dense'] / value:6.2f} x")
    parts = {keep: thinned(keep) for keep in KEEP}
    all_ms = medians({keep: partial(stream_all, False, given) for keep, given in parts.items()}, rounds, "cpu")
    end = bins.end_ticks(recordings.ticks_per_second)
    curve = [
        {"events": sum(int((times < end).sum()) for times, _ in given) / n, "ms": all_ms[keep] / n}
        for keep, given in parts.items()
    ]
    x, y = np.array([[point["events"], point["ms"]] for point in curve]).T
    slope, start = np.polyfit(x, y, 1)
    r2 = 1 - np.var(y - start - slope * x) / np.var(y)
    print(f"  whole window: {start:.3f} ms + {1e3 * slope:.3f} µs an event (R² {r2:.3f})")
    print(f"  {1e3 * x[-1] / y[-1]:,.0f} events/s over the whole window")
    return {"milliseconds": ms, "curve": curve, "r2": float(r2)}


def made_up(cfg: config.Config) -> Recordings:
    """Return one batch of recordings."""
    return make_recordings(cfg.train.batch_size, cfg.data.channels, cfg.data.num_classes)


def trained(path: Path) -> tuple[Network, config.Config, Recordings]:
    """Return the network of a run, its configuration, and one batch of recordings, spread over its test file."""
    path = arguments.find_checkpoint(path)
    network, cfg, _ = checkpoint.load_network(path, "cpu")
    if not isinstance(network, Network):
        raise InputError(f"{path}: a TTFS network, which benchmarks.ttfs_events measures")
    recordings = read_recordings(cfg.data, "test", Bins.of(cfg.data, "test"))
    return network, cfg, some(recordings, cfg.train.batch_size)


def some(recordings: AnyRecordings, n: int) -> Recordings:
    """Return n recordings that are spread over a file."""
    chosen, places = subset(recordings, np.linspace(0, len(recordings) - 1, n).astype(int)).load(np.arange(n))
    return subset(chosen, places)


def figures(result: dict, dataset_name: str | None) -> list[Figure]:
    """Return the rows of docs/speed.md; that of a stream needs a trained network, and the name of its data set."""
    rows = []
    step = result["step_milliseconds"]
    who = {"dense products": "torch's dense products", "SpikingJelly, LIFNode": "SpikingJelly, LIFNodes in like layers"}
    title = "training step of `configs/adlif_shd.yaml`, B = 128"
    rows.append(Figure(title, duration(step["event-driven"]), others(step, "event-driven", who)))
    titles = {0.05: f"input layer, {ROWS:,} rows, 700 to 256, forward + weight gradient, 5 % active"}
    titles[0.1] = "the same, 10 % active"
    for row in result["products"]:
        if title := titles.get(row["share"]):
            ms = row["milliseconds"]
            rows.append(Figure(title, duration(ms["events"]), others(ms, "events", {"dense": "dense products"})))
    memory = result["input_layer_megabytes"]
    title = "memory of the input layer for such a step, from recordings to weight gradient"
    rows.append(
        Figure(title, f"{memory['event-driven']:.0f} MB", [Other("dense frames", f"{memory['frames']:.0f} MB")])
    )
    if dataset_name:
        ms, last = result["streaming"]["milliseconds"], result["streaming"]["curve"][-1]
        ours = ms["stream, to the decision"]
        here = f"{duration(ours)}; {last['events'] / last['ms'] / 1000:.0f} million events/s"
        whole = Other("here, the whole window", duration(ms["stream, whole window"]))
        dense = others(ms, "stream, to the decision", {"batch of one, dense": "the batched network, dense, batch 1"})
        rows.append(
            Figure(f"a recording of `{dataset_name}` as a stream, one core, to the decision", here, [whole, *dense])
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="file for the numbers (JSON)")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (9)")
    parser.add_argument("--load_pt_file", type=Path, help="run whose network and test recordings the streams take")
    parser.add_argument("--peak", choices=INPUT_LAYERS, help=argparse.SUPPRESS)
    add_option(parser)
    args = parser.parse_args()
    if args.peak:
        print(input_layer_megabytes(args.peak))
        return
    streamed = trained(args.load_pt_file) if args.load_pt_file else None
    keep_freed_memory()  # as train.py does; it helps every contender
    print(f"{processor()}, {torch.get_num_threads()} threads")
    result = {"device": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    result["products"] = products(args.rounds)
    cfg = settings.load(CONFIG)
    recordings = made_up(cfg)
    result["step_milliseconds"] = training_step(cfg, recordings, args.rounds)
    command = [sys.executable, "-m", "benchmarks.events", "--peak"]
    result["input_layer_megabytes"] = {
        kind: float(subprocess.run([*command, kind], capture_output=True, text=True, check=True).stdout)
        for kind in INPUT_LAYERS
    }
    print(
        "memory of the input layer: " + ", ".join(f"{k} {v:.0f} MB" for k, v in result["input_layer_megabytes"].items())
    )

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network, cfg, recordings = streamed or (cfg.new_network("cpu"), cfg, recordings)
    result["streaming"] = streaming(network, cfg, recordings, args.rounds)
    if args.store:
        store(figures(result, cfg.data.dataset_name if streamed else None))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
