"""Helpers for several tests: small event files in the true layouts, and programs run as a user runs them."""

import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.util import get_temp_dir
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

from snn import pictures

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGURATIONS = sorted(p for p in (REPOSITORY / "configs").glob("*.yaml") if not p.stem.endswith("_search"))
LONGEST = ("readme_commands", "every_call_ends")
# On a port of its own: tests run beside each other. Two processes would need a GPU each; their tests are the CPU's.
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ON_CPU = "--set train.device=cpu"

if "PYTEST_XDIST_WORKER" in os.environ:  # tests run in parallel: one thread each, or they would wait for one another
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests first, so that none of them runs alone at the end."""
    items.sort(key=lambda item: not any(name in item.name for name in LONGEST))


USUAL = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.default_int_handler,  # it ends a test as Ctrl-C does, so that what it has started ends, too
    signal.SIGPROF: signal.SIG_DFL,
    signal.SIGCHLD: signal.SIG_DFL,
}


@contextmanager
def usual_signals() -> Iterator[None]:
    """Handle signals as in a terminal. Programs in the background of a shell, and their children, ignore some."""
    before = {number: signal.signal(number, handler) for number, handler in USUAL.items()}
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, USUAL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@pytest.fixture(autouse=True, scope="session")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Set the signals, and make one temporary folder for what killed programs leave; it is removed at the end."""
    tmp_path_factory.getbasetemp()  # which stays, for a look at what failed
    get_temp_dir()  # of multiprocessing, which removes it at exit and would not find it in the folder below
    with (
        usual_signals(),
        tempfile.TemporaryDirectory(prefix="tests-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        Path(folder).chmod(0o755)  # a database server runs there as another user
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(autouse=True)
def heard_signals(session: None) -> Iterator[None]:
    """Begin each test with the usual signals, even if another test changed them."""
    with usual_signals():
        yield


@pytest.fixture
def launch() -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a process as subprocess.Popen does; it and its children end with the test, however the test ends."""
    started: list[subprocess.Popen] = []

    def start(words: list, **options: object) -> subprocess.Popen:
        started.append(subprocess.Popen(words, start_new_session=True, **options))
        return started[-1]

    yield start
    for process in started:
        with process:  # closes its pipes
            if process.poll() is None:
                process.terminate()  # torchrun passes it on
                with suppress(subprocess.TimeoutExpired):
                    process.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def write_shd(path: Path, times: list, units: list, labels: list, speakers: list | None = None) -> Path:
    """Write a file in the layout of SHD."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, rows, dtype in (("times", times, np.float32), ("units", units, np.uint16)):
            dataset = file.create_dataset(f"spikes/{name}", (len(rows),), h5py.vlen_dtype(dtype))
            for r, row in enumerate(rows):
                dataset[r] = np.asarray(row, dtype)
        file["labels"] = np.asarray(labels, np.int64)
        if speakers is not None:
            file["extra/speaker"] = np.asarray(speakers, np.int64)
    return path


def make_events(n: int, num_classes: int, channels: int, seed: int) -> dict:
    """Make recordings whose classes differ in which channels fire when: they are easy to learn."""
    random = np.random.default_rng(seed)
    times, units, labels = [], [], []
    for r in range(n):
        label = r % num_classes
        centre = (label + 0.5) * channels / num_classes
        unit = np.clip(random.normal(centre, channels / 20, 60), 0, channels - 1).astype(np.uint16)
        times.append(np.sort(random.uniform(0.0, 0.18, 60)))
        units.append(unit)
        labels.append(label)
    return {"times": times, "units": units, "labels": labels, "speakers": [r % 5 for r in range(n)]}


def nmnist_bytes(x, y, polarity, times_us) -> bytes:
    """Encode the original format byte by byte: x, y, then 24 bits, the highest for polarity and the rest for time."""
    events = zip(x, y, polarity, times_us, strict=True)
    return b"".join(bytes([a, b]) + ((int(p) << 23) | int(t)).to_bytes(3, "big") for a, b, p, t in events)


def write_nmnist(folder: Path, per_digit: int, seed: int) -> None:
    """Write a small N-MNIST, Train and Test; the places of the events depend on the digit."""
    random = np.random.default_rng(seed)
    for split in ("Train", "Test"):
        for digit in range(10):
            (folder / split / str(digit)).mkdir(parents=True)
            for k in range(per_digit):
                n = 200
                x = np.clip(random.normal(5 + 6 * (digit % 5), 1.5, n), 0, 33).astype(int)
                y = np.clip(random.normal(8 + 16 * (digit // 5), 1.5, n), 0, 33).astype(int)
                content = nmnist_bytes(x, y, random.integers(0, 2, n), np.sort(random.integers(0, 300_000, n)))
                (folder / split / str(digit) / f"{k:05d}.bin").write_bytes(content)


@pytest.fixture
def shd_folder(tmp_path: Path) -> Path:
    """shd_train.h5 (60 recordings) and shd_test.h5 (24) of 3 classes on 40 channels."""
    folder = tmp_path / "shd"
    write_shd(folder / "shd_train.h5", **make_events(60, 3, 40, 0))
    write_shd(folder / "shd_test.h5", **make_events(24, 3, 40, 1))
    return folder


TINY = (
    "--set data.channels=40 --num_classes 3 --T 20 --hidden_size 16 16 --neuron2 20 20 1 --batch-size 16 "
    "--test-batch-size 16 --seed 1"
)


def unpainted(figure: plt.Figure) -> bytes:
    """Stand in for `pictures.png`: the figure is made but not painted, which takes seconds per report."""
    plt.close(figure)
    return b"\x89PNG, not painted"


@pytest.fixture
def program(tmp_path: Path, monkeypatch, capfd, request):
    """Run a script, or -m and a module, in a folder of its own: program("train.py --epochs 1") -> CompletedProcess.

    Further arguments are passed on unchanged, for instance paths with blanks.
    It runs in this process, from its first line to its exit code, because starting torch takes seconds. Pictures are
    painted for a test that is marked so.
    """
    if request.node.get_closest_marker("painted") is None:
        monkeypatch.setattr(pictures, "png", unpainted)

    def run(command: str, *more: object) -> subprocess.CompletedProcess:
        script, *words = [*command.split(), *map(str, more)]
        monkeypatch.chdir(tmp_path)
        module = words.pop(0) if script == "-m" else None
        monkeypatch.setattr(sys, "argv", [module or script, *words])
        capfd.readouterr()
        code = 0
        try:
            if module:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(str(REPOSITORY / script), run_name="__main__")
        except SystemExit as end:
            code = end.code
        return subprocess.CompletedProcess(command, code, *capfd.readouterr())

    return run


def assert_one_line(result: subprocess.CompletedProcess, *parts: str) -> None:
    """Check that a program ended with a user's error: exit code 2 and one line that holds `parts`."""
    assert result.returncode == 2, result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    lines = [l for l in result.stderr.strip().splitlines() if not l.startswith(("compiling", "warning: "))]
    assert len(lines) == 1, result.stderr
    for part in parts:
        assert part in lines[0]


@pytest.fixture
def poisoned():
    """Fill memory from torch.empty with NaN, so that code that reads memory before it writes it is found."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def toy_images(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Make images of a bright square in one of three places, in noise."""
    random = np.random.default_rng(seed)
    x, y = random.integers(0, 60, (n, 12, 12), np.uint8), np.arange(n) % 3
    for image, label in zip(x, y, strict=True):
        image[4 * label : 4 * label + 4, 2:10] = 220
    return x, y


@pytest.fixture
def toy_file(tmp_path: Path) -> Path:
    """Write data/toy.npz: 90 and 30 images of 3 classes."""
    path = tmp_path / "data" / "toy.npz"
    path.parent.mkdir()
    arrays = {}
    for seed, (split, n) in enumerate((("train", 90), ("test", 30))):
        arrays[f"x_{split}"], arrays[f"y_{split}"] = toy_images(n, seed)
    np.savez(path, **arrays)
    return path


@pytest.fixture
def convert(tmp_path: Path, monkeypatch, capsys):
    """Convert the sounds of tmp_path/in in this process and return its output; the files are in tmp_path/out.

    The cochlea is left out, because it is slow.
    """
    from datasets.prepare import wav  # few tests need it

    def run(**words: object) -> str:
        monkeypatch.setattr(wav, "map_in_order", lambda function, tasks, *_: map(function, tasks))
        monkeypatch.setattr(wav, "cochlea", lambda audio, *_: (np.array([0.1], np.float32), np.zeros(1, np.uint16)))
        wanted = {"label_pattern": None, "label_csv": None, "test_share": 0.5, "seed": 0, "processes": 1} | words
        wav.convert_wavs(tmp_path / "in", tmp_path / "out", **wanted)
        return capsys.readouterr().out

    return run


@pytest.fixture
def four(tmp_path: Path) -> Path:
    """Make a folder whose subfolder `in` has two sounds of each of two classes."""
    from tests.originals import save_sound

    for i, name in enumerate(("low_0", "low_1", "high_0", "high_1")):
        save_sound(tmp_path / "in" / f"{name}.wav", i)
    return tmp_path


def write_both_kinds(folder: Path) -> Path:
    """Write recordings and images of 3 classes, for both kinds of networks; return their folder."""
    write_shd(folder / "shd" / "shd_train.h5", **make_events(60, 3, 40, 0))
    random, y = np.random.default_rng(0), np.arange(60) % 3
    (folder / "toy").mkdir()
    np.savez(folder / "toy" / "toy.npz", x_train=random.integers(0, 256, (60, 12, 12), np.uint8), y_train=y)
    return folder


@pytest.fixture
def both_kinds(tmp_path: Path) -> Path:
    """Folder of recordings and images, for runs that are interrupted."""
    return write_both_kinds(tmp_path)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], dict[str, bytes]]:
    """State after three epochs of these recordings without a fault."""
    from tests.programs import EVENTS, run_here, state  # which imports this file

    folder = write_both_kinds(tmp_path_factory.mktemp("uninterrupted"))
    run_here(folder, f"{EVENTS} --epochs 3 --save_name x")
    return state(folder / "runs" / "x")
