"""Write a trained network for other tools: python export.py --load_pt_file runs/<name>/best.pt --format nir

nir: a graph in the Neuromorphic Intermediate Representation, for snnTorch, SpikingJelly, Norse and others.
onnx: one step of the network for onnxruntime; it takes the state and returns the next one.
c: a folder of C99 for a microcontroller.
html: a page that hears words through the microphone and shows how the network decides.
docs/export.md and docs/embedded.md say how to run each.
"""

import argparse
import json
import math
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import snn  # comes first, because it says which packages are missing
from snn import cli

if __name__ == "__main__":
    cli.end_at_ctrl_c()

# isort: split
import torch
from tqdm import tqdm

import tasks
from datasets.binning import Bins, batches
from snn import arguments, checkpoint, config, embedded, exchange, schema
from snn.classes import Named
from snn.coding import decide
from snn.embedded import ttfs
from snn.errors import InputError
from snn.files import whole
from snn.network import Network
from snn.ttfs.network import TTFSNetwork

Names = tuple[str, ...] | None  # of the classes


def main() -> None:
    args = read_command_line()
    if args.format == "nir":
        snn.need("nir", extra="export")
    args.load_pt_file = path = arguments.find_checkpoint(args.load_pt_file)
    network, cfg, content = checkpoint.load_network(path, "auto")
    if not isinstance(network, Network) and args.format != "c":
        raise InputError(f"{path}: is a TTFS network, which can be exported as C (--format c) but not as {args.format}")
    out = args.out or (path.with_name(f"{path.stem}_c") if args.format == "c" else path.with_suffix(f".{args.format}"))
    if out.suffix == ".pt":
        raise InputError(f"{out}: is the name of a checkpoint; choose another --out")
    print(WRITERS[args.format](args, cfg, network, out, content["class_names"]))


def names_as_metadata(names: Names) -> dict[str, str]:
    """Return metadata that name the classes: a JSON list in the order of the outputs."""
    return {} if names is None else {"class_names": json.dumps(names)}


def write_nir(args: argparse.Namespace, cfg: config.Config, network: Network, out: Path, names: Names = None) -> str:
    """Write the network as a NIR graph, and return a line about it."""
    import nir  # here, because the other formats do not need it

    left_out = exchange.unsaid_by_nir(network)
    exported = exchange.approximated(network) if left_out and args.approximate else network
    graph = exchange.nir_graph(exported, cfg.data.shape, args.dt)
    if args.approximate and not left_out:
        raise InputError(f"{args.load_pt_file}: NIR expresses all of this network; leave --approximate out")
    graph.metadata |= {
        "dataset_name": cfg.data.dataset_name,
        "data_dt_ms": cfg.data.dt_ms,
        "data_T": cfg.data.T,
        "data_T_empty": cfg.data.T_empty,
        **names_as_metadata(names),
        "left_out": " and ".join(left_out) or "nothing",
    }
    about = f"{out}: {len(graph.nodes)} nodes for steps of {args.dt:g} s"
    latency = graph.metadata["latency_steps"]
    about += f"; the output comes {latency} step{'s' * (latency != 1)} earlier than here"
    if exported is not network:
        different, of = differing_decisions(cfg, args.path_to_dataset, names, network, exported)
        about += f"; without {' and '.join(left_out)} {different} of {of} held-out decisions differ"
    write(out, lambda part: nir.write(part, graph))
    return about


def write_onnx(_: argparse.Namespace, cfg: config.Config, network: Network, out: Path, names: Names = None) -> str:
    """Write one step of the network as an ONNX model, and return a line about it."""
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise InputError(f"--format onnx needs {' and '.join(missing)}: pip install onnx onnxscript onnxruntime")
    step = exchange.Step(network, cfg.data.shape).eval()
    batch = torch.export.Dim("batch")
    states = tuple(torch.zeros(2, *shape) for shape in step.state_shapes)
    inputs = (torch.zeros(2, math.prod(cfg.data.shape)), *states)

    def save(part: Path) -> None:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of its own internals
            program = torch.onnx.export(
                step,
                inputs,
                input_names=["x", *step.state_names],
                output_names=["spikes", "potentials", *(f"{name}_next" for name in step.state_names)],
                dynamic_shapes=({0: batch}, tuple({0: batch} for _ in states)),
                dynamo=True,
                verbose=False,
            )
        program.model.metadata_props.update(names_as_metadata(names))
        program.save(part)

    write(out, save)
    return f"{out}: one step of the network; inputs x and {', '.join(step.state_names)}"


def write_c(
    args: argparse.Namespace, cfg: schema.AnyConfig, network: Network | TTFSNetwork, out: Path, names: Names = None
) -> str:
    """Write a folder of C, and return a line about it."""
    if out.exists():
        raise InputError(f"{out}: exists already; remove it, or choose another --out")
    int8 = args.quantise == "int8"
    if isinstance(network, TTFSNetwork):
        code = ttfs.code(network, names, int8)
    else:
        bins = Bins.of(cfg.data, "test")
        code = embedded.code(network, bins.dt_ms, bins.T, bins.T_empty, names, int8)

    def save(part: Path) -> None:
        part.mkdir()
        for name, text in code.files.items():
            (part / name).write_text(text, encoding="utf-8")

    write(out, save)
    return f"{out}: C for {code.constants_bytes:,} bytes of flash and {code.state_bytes:,} of RAM; build it with make"


def write_html(args: argparse.Namespace, cfg: config.Config, network: Network, out: Path, names: Names = None) -> str:
    """Write the page that listens, and return a line about it."""
    import listen  # loads the cochlea and speech synthesis, which the other formats do not need

    text = listen.page(network, cfg.data, names, args.load_pt_file.parent.name)
    write(out, lambda part: part.write_text(text, encoding="utf-8"))
    return f"{out}: a page of {len(text.encode()) / 1e6:.1f} MB; open it in a browser and say a word"


WRITERS = {"nir": write_nir, "onnx": write_onnx, "c": write_c, "html": write_html}


def write(out: Path, save: Callable[[Path], None]) -> None:
    """Save a file or folder at once or not at all."""
    try:
        with whole(out) as part:
            save(part)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another --out") from None


@torch.inference_mode()
def differing_decisions(
    cfg: config.Config, folder: str | None, names: Names, network: Network, other: Network
) -> tuple[int, int]:
    """Return (differing, all) first-spike decisions on the recordings that were held out in training."""
    data = cfg.data if folder is None else cfg.data.model_copy(update={"path": folder})
    bins = Bins.of(data, "train")
    recordings = tasks.events.read_recordings(data, "train", bins, Named(names, "the checkpoint"))
    _, validation, held_out = tasks.events.for_validation(recordings, data, bins, cfg.train.seed)
    if not len(held_out):
        raise InputError(f"{recordings.where}: nothing was held out to compare on (data.validation_share is 0)")
    size = cfg.train.test_batch_size
    bar = tqdm(
        batches(validation, held_out, bins, size), "compare", math.ceil(len(held_out) / size), leave=False, disable=None
    )
    different = 0
    for x_TBC, _ in bar:
        one_B, other_B = (decide(*each.run(x_TBC)[:2])[0] for each in (network, other))
        different += int((one_B != other_B).sum())
    return different, len(held_out)


def read_command_line() -> argparse.Namespace:
    parser = cli.OneLineParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--load_pt_file", type=Path, required=True, metavar="PT", help="checkpoint, run folder or name")
    parser.add_argument("--format", choices=WRITERS, required=True, help="what to write")
    parser.add_argument("--out", type=Path, help="file or folder to write (default: beside the checkpoint)")
    parser.add_argument(
        "--dt",
        type=float,
        help="nir: step of the simulator (s; default: 1e-4, which is fixed in snnTorch)",
    )
    parser.add_argument(
        "--approximate",
        action="store_true",
        help="nir: leave out what NIR cannot express, and count the held-out decisions that differ",
    )
    parser.add_argument("--path_to_dataset", help="nir: folder of the data files for that count")
    parser.add_argument(
        "--quantise", choices=("int8",), help="c: store weights as bytes; test.py --quantise shows the effect"
    )
    args = parser.parse_args()
    if args.quantise and args.format != "c":
        parser.error(f"--quantise {args.quantise} is for --format c")
    nir_alone = {"--approximate": args.approximate, "--path_to_dataset": args.path_to_dataset, "--dt": args.dt}
    given = [word for word, value in nir_alone.items() if value is not None and value is not False]
    if args.format != "nir" and given:
        parser.error(f"{given[0]} is for --format nir")
    if args.path_to_dataset and not args.approximate:
        parser.error("--path_to_dataset is for the count of --approximate")
    args.dt = 1e-4 if args.dt is None else args.dt
    if not 0 < args.dt < math.inf:
        parser.error(f"--dt {args.dt}: must be a positive number of seconds")
    return args


if __name__ == "__main__":
    cli.run(main)
