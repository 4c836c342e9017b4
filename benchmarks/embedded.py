"""A network in C beside Python's: python -m benchmarks.embedded --load_pt_file runs/<name>/best.pt [--quantise int8]

Writes the network as C, compiles it with every compiler that is there, and compares decisions, their steps and the
spikes of all layers with those of `snn.streaming` and of batches, on all test recordings. Then compiles it for
Cortex-M4F and Cortex-M7, and QEMU, which counts instructions, runs some of the recordings: the table of
docs/embedded.md.
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import tasks
from datasets.binning import Bins, bin_events
from datasets.recordings import Recordings
from snn import arguments, checkpoint, cli, embedded
from snn.errors import InputError
from snn.network import Network
from snn.quantise import quantised
from snn.streaming import Stream

MPS2 = Path(__file__).parent / "mps2"
RECORDINGS, IMAGES = str(MPS2 / "recordings.c"), str(MPS2 / "images.c")  # the second includes network.c
COMMON = ["-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-ffp-contract=off"]
SANITISED = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
ZIG = [sys.executable, "-m", "ziglang", "cc"]
ARM = ["arm-none-eabi-gcc", "-mthumb", "-mfloat-abi=hard", "-nostartfiles", "--specs=rdimon.specs", "-Wl,--gc-sections"]


class Board(NamedTuple):
    """A processor and the QEMU board that has it."""

    name: str
    machine: str
    flags: tuple[str, ...]


BOARDS = (
    Board("Cortex-M4F", "mps2-an386", ("-mcpu=cortex-m4", "-mfpu=fpv4-sp-d16")),
    Board("Cortex-M7", "mps2-an500", ("-mcpu=cortex-m7", "-mfpu=fpv5-sp-d16")),
)


def native_compilers() -> dict[str, list[str]]:
    """Return the installed compilers: name -> command."""
    found = {"gcc": ["gcc"], "clang": ["clang"]}
    found = {name: command for name, command in found.items() if shutil.which(name)}
    commands = {f"{name} {level}": [*command, level] for name, command in found.items() for level in ("-O0", "-O3")}
    if "gcc" in found:
        commands["gcc with sanitisers"] = ["gcc", *SANITISED]
    if find_spec("ziglang"):
        commands["zig -O3"] = [*ZIG, "-O3"]
    return commands


def missing_for_arm() -> str:
    """Return in words which tools for `run_on` are missing, or an empty string."""
    names = [name for name in ("arm-none-eabi-gcc", "qemu-system-arm") if shutil.which(name) is None]
    return f"{' and '.join(names)} missing: apt install gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm"[
        : None if names else 0
    ]


def write_code(code: embedded.Code, folder: Path) -> None:
    """Write all files into an existing folder."""
    for name, text in code.files.items():
        (folder / name).write_text(text, encoding="utf-8")


def write_recordings(folder: Path, recordings: Recordings, rows: Sequence[int]) -> None:
    """Write some recordings for `mps2/recordings.c`, with times in whole microseconds."""
    with (folder / "recordings.txt").open("w", encoding="utf-8") as file:
        for row in rows:
            events = slice(*recordings.offsets[row : row + 2])
            for time_us, channel in zip(
                microseconds(recordings, events).tolist(), recordings.channels[events].tolist(), strict=True
            ):
                file.write(f"{time_us} {channel}\n")
            file.write("end\n")


def microseconds(recordings: Recordings, events: slice) -> np.ndarray:
    """Return times as the C code takes them."""
    return np.floor(recordings.times[events].astype(np.float64) * (1e6 / recordings.ticks_per_second)).astype(np.int64)


def run_native(
    folder: Path, command: Sequence[str], *flags: str, sources: Sequence[str] = (RECORDINGS, "network.c")
) -> list[str]:
    """Return the lines that the C program prints for the recordings in the folder; the first is its size in RAM."""
    program = folder / "native"
    here = f"-I{folder.resolve()}"  # with -I. zig takes the object of another folder's network from its cache
    ran([*command, *COMMON, *flags, here, *sources, "-o", program.name], folder)
    return ran([str(program)], folder).splitlines()


def run_on(board: Board, folder: Path, sources: Sequence[str] = (RECORDINGS, "network.c")) -> list[str]:
    """Return the same from QEMU, with the instructions up to each decision and to the window's end."""
    sources = [*sources, str(MPS2 / "startup.c"), "-T", str(MPS2 / "mps2.ld")]
    flags = [*board.flags, "-O3", "-std=c99", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-DTIMED", "-I."]
    ran([*ARM, *flags, *sources, "-o", "board.elf"], folder)
    qemu = ["qemu-system-arm", "-M", board.machine, "-nographic", "-semihosting-config", "enable=on,target=native"]
    return ran([*qemu, "-icount", "shift=10", "-kernel", "board.elf"], folder).splitlines()


def flash_bytes(board: Board, folder: Path) -> int:
    """Return the bytes of code and constants of network.c."""
    ran([*ARM[:3], *board.flags, "-O3", "-std=c99", "-ffp-contract=off", "-c", "network.c"], folder)
    return int(ran(["arm-none-eabi-size", "network.o"], folder).splitlines()[1].split()[0])


def ran(command: Sequence[str], folder: Path) -> str:
    """Return what a command printed; InputError if it failed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise InputError(f"{' '.join(command)}: {(done.stderr or done.stdout)[-2000:]}")
    return done.stdout


def decisions(network: Network, recordings: Recordings, rows: Sequence[int], bins: Bins) -> list[str]:
    """Return the lines of decisions expected from the C program, as a stream decides."""
    stream = Stream(network, bins.dt_ms, bins.T, bins.T_empty, recordings.ticks_per_second)
    lines = []
    for row in rows:
        events = slice(*recordings.offsets[row : row + 2])
        stream.reset()
        decision = stream.push(recordings.times[events], recordings.channels[events]) or stream.finish()
        if decision is None:
            lines.append("decision -4 0 0")
        else:
            lines.append(f"decision {1 if decision.step else 3} {decision.label} {decision.step or 0}")
    return lines


@torch.inference_mode()
def spikes(network: Network, recordings: Recordings, row: int, bins: Bins) -> list[str]:
    """Return the lines of spikes expected from the C program for a recording, as in a batch."""
    network.reset()
    layers = network(bin_events(recordings, np.array([row]), bins)).layers
    found = [torch.nonzero(s_T1N[:, 0]) for s_T1N in layers]
    lines = np.concatenate([np.insert(each.numpy(), 1, layer, axis=1) for layer, each in enumerate(found)])
    lines = lines[np.lexsort(lines.T[::-1])]
    return [f"spike {step + 1} {layer} {n}" for step, layer, n in lines.tolist()]


def main() -> None:
    parser = cli.OneLineParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--load_pt_file", type=Path, required=True, metavar="PT")
    parser.add_argument("--path_to_dataset", help="folder of the data files")
    parser.add_argument("--quantise", choices=("int8",))
    parser.add_argument("--on_boards", type=int, default=20, help="recordings that QEMU runs")
    args = parser.parse_args()
    path = arguments.find_checkpoint(args.load_pt_file)
    network, cfg, _ = checkpoint.load_network(path)
    if not isinstance(network, Network):
        raise InputError(f"{path}: a TTFS network, which benchmarks.ttfs_events measures")
    network = (quantised if args.quantise else Network.folded)(network)
    data = cfg.data.model_copy(update={"path": args.path_to_dataset or cfg.data.path})
    bins = Bins.of(data, "test")
    recordings = tasks.events.read_recordings(data, "test", bins)
    rows = range(len(recordings))
    recordings, _ = recordings.load(np.arange(len(rows)))
    code = embedded.code(network, bins.dt_ms, bins.T, bins.T_empty, int8=args.quantise == "int8")
    print(f"{path}: {code.constants_bytes:,} bytes of constants, {code.state_bytes:,} of state")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_code(code, folder)
        write_recordings(folder, recordings, rows)
        expected = decisions(network, recordings, rows, bins)
        with_spikes = []
        for row in tqdm(rows, "spikes", leave=False, disable=None):
            with_spikes += [*spikes(network, recordings, row, bins), expected[row]]
        for name, command in native_compilers().items():
            said = run_native(folder, command)[1:]
            same = sum(a == b for a, b in zip(said, expected, strict=True))
            said = run_native(folder, command, "-DSPIKES")[1:]
            apart = "all spikes equal" if said == with_spikes else "SPIKES DIFFER"
            print(f"{name}: {same} of {len(rows)} decisions equal; {apart} ({len(said) - len(rows):,})")
        if why := missing_for_arm():
            print(f"not run for Cortex-M: {why}")
            return
        few = np.linspace(0, len(recordings) - 1, args.on_boards).round().astype(int)
        write_recordings(folder, recordings, few)
        print(
            "| | flash (bytes) | RAM (bytes) | instructions to the decision | to the window's end | decisions equal |"
        )
        print("|---|---|---|---|---|---|")
        for board in BOARDS:
            size, *lines = run_on(board, folder)
            words = [line.split() for line in lines]
            same = sum(" ".join(word[:4]) == expected[row] for word, row in zip(words, few, strict=True))
            sizes = (flash_bytes(board, folder), int(size.split()[1]))
            counted = (statistics.median(int(word[k]) for word in words) for k in (4, 5))
            cells = [board.name, *(f"{number:,.0f}" for number in (*sizes, *counted)), f"{same} of {len(few)}"]
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    cli.run(main)
