"""The allowed imports between modules, and the promises of the README."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from datasets.prepare import planes, wav
from tests.conftest import REPOSITORY, make_events, write_shd
from tests.originals import write_originals
from tests.programs import share_compiled

# module -> the modules of ours it may import (a name covers what lies below it); tasks, train.py and test.py may
# import all
ALLOWED = {
    "snn": set(),
    "snn.errors": set(),
    "snn.learned": {"snn.checks", "snn.errors", "snn.ops"},
    "snn.architecture": {"snn.errors"},
    "snn.yaml12": {"snn.errors"},
    "snn.output": set(),
    "snn.classes": {"snn.errors"},
    "snn.config": {  # the networks only when one is built
        "snn.architecture",
        "snn.cli",
        "snn.errors",
        "snn.losses",
        "snn.manual",
        "snn.network",
        "snn.neurons",
        "snn.ops",
        "snn.schema",
        "snn.ttfs.network",
    },
    "snn.schema": {"snn.errors"},
    "snn.settings": {"snn.config", "snn.errors", "snn.schema", "snn.yaml12"},
    "snn.manual": {"snn.cli", "snn.schema", "snn.settings"},
    "snn.coding": {"snn.checks", "snn.errors"},
    "snn.compiling": {"snn.files"},
    "snn.inputs": {"snn.checks", "snn.errors"},
    "snn.linear": {"snn.checks", "snn.errors", "snn.inputs", "snn.ops"},
    "snn.ops.surrogate": {"snn.checks"},
    "snn.ops.reference": {"snn.ops.surrogate"},
    "snn.ops.trace": {"snn.errors", "snn.ops.reference"},
    "snn.ops.printer": {"snn.errors", "snn.ops.reference", "snn.ops.trace"},
    "snn.ops.show": {"snn.cli", "snn.neurons", "snn.ops"},
    "snn.delays": {"snn.checks", "snn.errors", "snn.inputs", "snn.learned", "snn.linear", "snn.ops"},
    "snn.ops": {"snn.checks", "snn.errors", "snn.ops"},
    "snn.ops.compiled": {"snn.compiling"},
    "snn.neurons": {"snn.checks", "snn.errors", "snn.learned", "snn.neurons", "snn.norm", "snn.ops"},
    "snn.conv": {"snn.checks", "snn.errors", "snn.inputs", "snn.linear", "snn.ops"},
    "snn.network": {
        "snn.architecture",
        "snn.checks",
        "snn.config",
        "snn.conv",
        "snn.delays",
        "snn.errors",
        "snn.inputs",
        "snn.learned",
        "snn.linear",
        "snn.neurons",
        "snn.norm",
    },
    "snn.losses": {"snn.checks", "snn.coding", "snn.errors", "snn.losses", "snn.network", "snn.schema"},
    "snn.checks": {"snn.errors"},
    "snn.ops.sparse": {"snn.inputs", "snn.ops"},
    "snn.ops.sparse_conv": {"snn.checks", "snn.errors", "snn.inputs", "snn.ops"},
    "snn.ops.winograd": {"snn.ops"},
    "snn.ops.delays": {"snn.inputs", "snn.ops"},
    "snn.ops.synaptic": {"snn.inputs", "snn.ops"},
    "snn.replay": {"snn.errors"},
    "snn.files": set(),
    "snn.machine": {"snn.errors", "snn.files"},
    "snn.statistics": set(),
    "snn.tables": set(),
    "snn.runs": {"snn.errors", "snn.checkpoint", "snn.files", "snn.schema", "snn.settings"},
    "snn.report": {
        "snn.checkpoint",
        "snn.classes",
        "snn.machine",
        "snn.schema",
        "snn.evaluation",
        "snn.files",
        "snn.learned",
        "snn.lettering",
        "snn.network",
        "snn.pictures",
        "snn.settings",
        "snn.tables",
        "snn.yaml12",
    },
    "snn.ranges": {"snn.schema", "snn.errors", "snn.settings"},
    "snn.studies": {"snn.schema", "snn.errors", "snn.ranges", "snn.settings"},
    "snn.front": {
        "snn.schema",
        "snn.files",
        "snn.machine",
        "snn.pictures",
        "snn.ranges",
        "snn.report",
        "snn.settings",
        "snn.tables",
        "snn.yaml12",
    },
    "snn.evaluation": {
        "snn.checks",
        "snn.coding",
        "snn.errors",
        "snn.inputs",
        "snn.network",
        "snn.operations",
        "snn.statistics",
    },
    "snn.operations": {"snn.conv", "snn.inputs", "snn.network", "snn.ops"},
    "snn.ttfs.report": {"snn.pictures", "snn.report", "snn.tables", "snn.ttfs.evaluation"},
    "snn.health": {"snn.inputs", "snn.norm"},
    "snn.norm": {"snn.ops"},
    "snn.streaming": {
        "snn.checks",
        "snn.conv",
        "snn.errors",
        "snn.inputs",
        "snn.network",
        "snn.neurons",
        "snn.operations",
        "snn.ops",
    },
    "snn.hardware": set(),
    "snn.energy": {
        "snn.conv",
        "snn.inputs",
        "snn.hardware",
        "snn.linear",
        "snn.network",
        "snn.neurons",
        "snn.operations",
        "snn.ops",
    },
    "snn.quantise": {"snn.network", "snn.ttfs.network"},
    "snn.embedded": {
        "snn.checks",
        "snn.classes",
        "snn.delays",
        "snn.errors",
        "snn.network",
        "snn.embedded",
        "snn.ops",
        "snn.quantise",
        "snn.ttfs",
    },
    "snn.exchange": {"snn.conv", "snn.errors", "snn.linear", "snn.network", "snn.neurons", "snn.ops"},
    "snn.lettering": set(),
    "snn.pictures": {
        "snn.coding",
        "snn.evaluation",
        "snn.inputs",
        "snn.learned",
        "snn.lettering",
        "snn.network",
        "snn.tables",
    },
    "snn.checkpoint": {
        "snn.classes",
        "snn.config",
        "snn.errors",
        "snn.files",
        "snn.losses",
        "snn.settings",
        "snn.schema",
    },
    "snn.cli": {"snn.errors", "snn.output"},
    "snn.arguments": {
        "snn.architecture",
        "snn.cli",
        "snn.schema",
        "snn.errors",
        "snn.files",
        "snn.settings",
        "snn.yaml12",
    },
    "snn.team": {"snn.errors"},
    "snn.memory": set(),
    "snn.ttfs": {
        "snn.architecture",
        "snn.checks",
        "snn.config",
        "snn.errors",
        "snn.operations",
        "snn.ops",
        "snn.statistics",
        "snn.ttfs",
    },
    "datasets": {
        "datasets",
        "snn.checks",
        "snn.classes",
        "snn.config",
        "snn.errors",
        "snn.inputs",
        "snn.memory",
        "snn.ops.binning",
        "snn.ops.compiled",
    },
    "datasets.send": {"datasets", "snn.cli", "snn.errors"},
    "datasets.prepare": {
        "datasets.hdf5",
        "datasets.prepare",
        "snn.classes",
        "snn.compiling",
        "snn.errors",
        "snn.files",
        "snn.lettering",
        "snn.memory",
    },
    "datasets.prepare.__main__": {"snn.errors", "snn.cli", "datasets.prepare"},
}


def modules() -> dict[str, Path]:
    paths = [path for package in ("snn", "datasets") for path in sorted((REPOSITORY / package).rglob("*.py"))]
    paths = [path for path in paths if "__pycache__" not in path.parts]  # printed kernels
    return {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path for path in paths
    }


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # `from snn import config` imports snn.config
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    ours = ("snn", "datasets", "tasks", "train", "test", "tests", "compare", "search")
    return {name for name in names if name.split(".")[0] in ours}


def covers(rule: str, name: str) -> bool:
    return name == rule or name.startswith(rule + ".")


@pytest.mark.parametrize("module", modules())
def test_imports_go_one_way(module):
    rule = max((name for name in ALLOWED if covers(name, module)), key=len)
    for name in imports_of(modules()[module]):
        assert any(covers(allowed, name) for allowed in ALLOWED[rule]), f"{module} may not import {name}"


def test_backends_do_not_import_each_other_and_cupy_has_one_importer():
    for name, path in modules().items():
        text = path.read_text()
        if name != "snn.ops.cuda":
            assert not re.search(r"^\s*(import|from) cupy", text, re.MULTILINE), name
        if name in ("snn.ops.cpu", "snn.ops.cuda", "snn.ops.reference"):
            assert not {"snn.ops.cpu", "snn.ops.cuda"} & {i.rsplit(".", 1)[0] for i in imports_of(path)}, name


def test_tests_do_not_import_one_another():
    """A module beside them holds what two of them need."""
    for path in (REPOSITORY / "tests").rglob("*.py"):
        found = {name for name in imports_of(path) if name.startswith("tests.test_")}
        assert not found, f"{path.name} may not import {sorted(found)}"


def readme() -> str:
    return (REPOSITORY / "README.md").read_text()


def test_readme_names_what_is_there():
    for path in re.findall(r"`((?:configs|snn|datasets|tests|benchmarks)/[\w./]*)`", readme()):
        assert (REPOSITORY / path).exists(), path
    for path in re.findall(r"\]\(((?!http)[\w./]+)\)", readme()) + re.findall(r'src="([\w./]+)"', readme()):
        assert (REPOSITORY / path).exists(), path


def readme_commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", readme(), re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def smoke_form(command: str) -> str:
    """Return the same command for the smoke configuration, a small SHD pair, short WAV files and small originals."""
    forms = [
        (r"^bash run\.sh$", "bash run.sh configs/smoke.yaml"),
        (r"^bash run\.sh --(?!python)", "bash run.sh configs/smoke.yaml --"),
        (r"configs/adlif_(digits|shd)\.yaml", "configs/smoke.yaml"),
        (r"--path_to_dataset DIR", "--dataset_name shd --path_to_dataset shd --num_classes 3 --set data.channels=700"),
        (r"runs/NAME/best\.pt", "runs/digits_fs0.2_tau30_adlif/best.pt"),
        (r"runs/a runs/b", "runs/digits_fs0.2_tau30_adlif runs/digits_fs0.2_tau30_cuadlif"),
        (r"--epochs 20", "--epochs 1"),
        (r"some\.wav", "my_recordings/a_0.wav"),
        (
            r"configs/ttfs_mnist_mlp\.yaml",
            "configs/ttfs_mnist_mlp.yaml --epochs 1 --set data.layout=npz --path_to_dataset images --save_name images",
        ),
        (r"--recordings 1600", "--recordings 20"),
    ]
    for pattern, small in forms:
        command = re.sub(pattern, small, command)
    trains = re.search(r"(run\.sh|train\.py).*smoke\.yaml", command)
    return command + (" --epochs 1" if trains and "--epochs" not in command else "")


def in_this_process(command: str, folder: Path) -> str | None:
    """Return the words for `program` in place of a command that only starts Python; None if the command does more."""
    if words := re.match(r"bash run\.sh (configs/\S+)(.*)", command):
        return f"train.py --path_to_yaml {words[1]} {words[2]}"
    if words := re.match(r"bash run_test\.sh ([^-]\S*)?(.*)", command):
        newest = max(folder.glob("runs/*/best.pt"), key=lambda path: path.stat().st_mtime)
        return f"test.py --load_pt_file {words[1] or newest} {words[2]}"
    return command.removeprefix("python ") if command.startswith("python ") else None


@pytest.mark.slow
def test_readme_commands_run_in_their_smoke_form(program, tmp_path, monkeypatch):
    """Run every command of the README except the one that runs this test, in order, in a copy of the repository.

    The shell runs each script once. Everything else runs in this process, because starting torch takes seconds, and so
    does the cochlea in each process that it starts.
    """
    for module in (wav, planes):
        monkeypatch.setattr(module, "map_in_order", lambda function, tasks, *_: map(function, tasks))
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (REPOSITORY / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, tmp_path / name)
    share_compiled(tmp_path)
    smoke = tmp_path / "configs" / "smoke.yaml"
    text = smoke.read_text()
    assert "--voices 5" in text
    smoke.write_text(text.replace("--voices 5", "--processes 1 --voices 3"))
    for split in ("train", "test"):
        write_shd(tmp_path / "shd" / f"shd_{split}.h5", **make_events(30, 3, 700, 0))
    write_originals(tmp_path)
    (tmp_path / "images").mkdir()
    pixels, labels = np.random.default_rng(0).integers(0, 256, (60, 28, 28), np.uint8), np.arange(60) % 10
    np.savez(tmp_path / "images" / "mnist.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    bin_folder = tmp_path / ".venv" / "bin"  # what `source .venv/bin/activate` would find after the first command
    bin_folder.mkdir(parents=True)
    (bin_folder / "activate").write_text(f"export PATH={Path(sys.executable).parent}:$PATH\n")

    commands = readme_commands()
    assert commands.pop(1) == "bash tests/run.sh"
    assert commands[0] == "bash run.sh"
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    started = set()
    for command in commands:
        small = smoke_form(command)
        words = in_this_process(small, tmp_path)
        program_name = command.split()[1]
        if words and (command.startswith("python") or program_name in started):
            result = program(words)
        else:
            result = subprocess.run(
                ["bash", "-c", small], cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            started.add(program_name)
        assert result.returncode == 0, f"{small}\n{result.stdout}\n{result.stderr}"
        if command == "bash run.sh":
            assert "validation FS accuracy" in result.stdout
        if command.startswith("bash run_test.sh"):
            both = r" +[\d.]+ %" if "--simulate" not in command else ""  # FS and FR
            assert re.search(rf"accuracy +[\d.]+ %{both}", result.stdout)
