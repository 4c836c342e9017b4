"""Who may import whom, and what the README promises."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

# module -> the modules of ours it may import (a name covers what lies below it); train.py and test.py may import all
ALLOWED = {
    "snn": set(),
    "snn.errors": set(),
    "snn.config": {"snn.errors"},
    "snn.coding": set(),
    "snn.ops.reference": {"snn.errors"},
    "snn.ops": {"snn.errors", "snn.ops"},
    "snn.neurons": {"snn.errors", "snn.ops"},
    "snn.network": {"snn.config", "snn.neurons"},
    "snn.loss": {"snn.config", "snn.coding", "snn.network"},
    "snn.evaluation": {"snn.coding", "snn.network"},
    "snn.health": {"snn.network"},
    "snn.report": {"snn.coding", "snn.network"},
    "snn.checkpoint": {"snn.errors", "snn.config", "snn.network"},
    "snn.cli": {"snn.errors", "snn.config"},
    "snn.team": set(),
    "datasets": {"snn.errors", "datasets"},
    "datasets.prepare": {"snn.errors", "datasets.prepare"},
    "datasets.prepare.__main__": {"snn.errors", "snn.cli", "datasets.prepare"},
}


def modules() -> dict[str, Path]:
    paths = [path for package in ("snn", "datasets") for path in (REPOSITORY / package).rglob("*.py")]
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
    return {name for name in names if name.split(".")[0] in ("snn", "datasets", "train", "test")}


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


def readme() -> str:
    return (REPOSITORY / "README.md").read_text()


def test_readme_names_what_is_there():
    for path in re.findall(r"`((?:configs|snn|datasets|tests|benchmarks)/[\w./]*)`", readme()):
        assert (REPOSITORY / path).exists(), path
    for path in re.findall(r"\]\(((?!http)[\w./]+)\)", readme()):
        assert (REPOSITORY / path).exists(), path


def test_readme_commands_run_in_their_smoke_form(tmp_path):
    """Every command of the README's code blocks, each on the smoke configuration, in a copy of the repository."""
    commands = [
        line.split("#")[0].strip()
        for block in re.findall(r"```bash\n(.*?)```", readme(), re.DOTALL)
        for line in block.splitlines()
        if line.split("#")[0].strip()
    ]
    assert commands[:2] == ["bash run.sh", "bash tests/run.sh"]
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    for name in tracked.stdout.splitlines():
        if (REPOSITORY / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, tmp_path / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # python3 is the one that runs the tests
    for command in commands:
        smoke = smoke_form(command)
        if smoke is None:
            continue
        result = subprocess.run(
            ["bash", "-c", smoke], cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True
        )
        assert result.returncode == 0, f"{smoke}\n{result.stdout}\n{result.stderr}"
        if command == "bash run.sh":
            assert "validation FS accuracy" in result.stdout
        if command.startswith("bash run_test.sh"):
            assert re.search(r"accuracy +[\d.]+ % +[\d.]+ %", result.stdout)


def smoke_form(command: str) -> str | None:
    """A README command made small; None where it needs what is not here, and is only checked to exist."""
    words = command.split()
    if command == "bash run.sh":
        return "bash run.sh configs/smoke.yaml"
    if command == "bash tests/run.sh":
        return "bash tests/run.sh tests/test_coding.py"
    if "runs/" in command:
        return re.sub(r"runs/\S+", "runs/digits_fs0.2_tau30_adlif/best.pt", command)
    if "shd" in command or "wav" in command or "recordings" in command:
        return f"{' '.join(words[: 3 if words[1] == '-m' else 2])} --help >/dev/null".replace(
            "bash run.sh", f"{sys.executable} train.py"
        )
    if "benchmarks" in command:
        return None
    return command
