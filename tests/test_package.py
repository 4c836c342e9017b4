"""The installed library: `snn` and nothing else, and the lines of README.md and docs/library.md that use it."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

import snn
from snn import checkpoint, settings
from snn.network import Network
from tests.conftest import REPOSITORY
from tests.programs import share_compiled


def run(*words: object, folder: Path) -> str:
    done = subprocess.run([*map(str, words)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """Copy the repository, because a build leaves folders behind."""
    folder = tmp_path_factory.mktemp("package") / "checkout"
    listed = run("git", "ls-files", "-co", "--exclude-standard", folder=REPOSITORY).splitlines()
    for name in filter(lambda name: (REPOSITORY / name).is_file(), listed):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, folder / name)
    printed = folder / "snn" / "ops" / "__pycache__" / "printed"  # modules that a run leaves there
    printed.mkdir(parents=True)
    (printed / "own.py").touch()
    return folder


@pytest.fixture(scope="module")
def wheel(checkout) -> Path:
    """Build as pip does, without pip, which takes its time."""
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    run(sys.executable, "-c", build, checkout.parent, folder=checkout)
    (found,) = checkout.parent.glob("*.whl")
    return found


def environment(folder: Path, what: tuple, borrowed: bool = True) -> Path:
    """Return the Python of a new virtual environment with `what`; it borrows the rest from that of the tests."""
    run(sys.executable, "-m", "venv", *(["--without-pip"] if borrowed else []), folder, folder=folder.parent)
    python = folder / "bin" / "python"
    words: tuple = ("-m", "pip", "install", "--quiet")
    if borrowed:
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        run(sys.executable, "-m", "pip", "--python", python, *words[2:], "--no-deps", *what, folder=folder)
    else:
        run(python, *words, *what, folder=folder)
    return python


LIST = """
import sys
from importlib.metadata import distribution
from importlib.util import find_spec
import snn
print(distribution("first-spike").version == snn.__version__, snn.__file__)
ours = ("datasets", "tests", "tasks", "train", "test", "benchmarks", "first_spike")
print(*(name for name in ours if find_spec(name)))
"""


def installed(python: Path, folder: Path) -> Path:
    """Return where snn is installed, and check that no other module of ours is."""
    said, others = run(python, "-c", LIST, folder=folder).split("\n")[:2]
    is_same, place = said.split(" ", 1)
    assert is_same == "True"
    assert set(others.split()) <= {"test"}  # of Python
    return Path(place).parent


def snippets(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (REPOSITORY / page).read_text(encoding="utf-8"), re.DOTALL)


def try_snippets(python: Path, folder: Path) -> None:
    """Run the lines of the pages in a folder with a run and the configurations, but nothing else of the checkout."""
    torch.manual_seed(0)
    cfg = settings.load(REPOSITORY / "configs" / "adlif_shd.yaml")
    cfg = cfg.model_copy(update={"data": cfg.data.model_copy(update={"pool": 5})})  # as the default of run.sh has
    run_folder = folder / "runs" / "NAME"
    run_folder.mkdir(parents=True)
    checkpoint.save(
        run_folder / "best.pt", cfg, Network(cfg.network, cfg.data.shape, cfg.data.num_classes), epoch=1, validation={}
    )
    shutil.copytree(REPOSITORY / "configs", folder / "configs")
    readme, library = snippets("README.md"), snippets("docs/library.md")
    assert len(readme) == 2
    assert len(library) == 4
    of_notebook = library.pop().replace("/path/to/first-spike", str(REPOSITORY))
    texts = (*readme, *library, of_notebook)
    # in one process, as importing torch takes seconds
    shown = run(python, "-c", f"for text in {texts!r}: exec(text, dict()); print('end')", folder=folder).split("end\n")
    assert shown[0].startswith("Decision(label=")
    assert shown[2].startswith("Decision(label=")
    assert shown[3].startswith("tensor([")


@pytest.mark.slow
def test_a_wheel_is_the_library_alone_and_the_pages_lines_run_on_it(wheel, tmp_path, monkeypatch):
    """Unpack it, which is what pip does with it; a long test installs it."""
    with ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    python = Path(sys.executable)
    place = installed(python, tmp_path)
    assert place == tmp_path / "site" / "snn"
    assert (place / "py.typed").is_file()
    sources = {path.relative_to(REPOSITORY / "snn") for path in (REPOSITORY / "snn").rglob("*") if path.is_file()}
    sources = {path for path in sources if "__pycache__" not in path.parts}
    found = {path.relative_to(place) for path in place.rglob("*") if path.is_file()}
    assert sources == {path for path in found if "__pycache__" not in path.parts}
    assert not list(place.rglob("printed"))
    share_compiled(place.parent)
    try_snippets(python, tmp_path)


@pytest.mark.long
def test_an_editable_installation_finds_the_library_alone(checkout, tmp_path):
    python = environment(tmp_path / "venv", ("--no-build-isolation", "--editable", checkout))
    assert installed(python, tmp_path) == checkout / "snn"


@pytest.mark.long  # it downloads torch and CUDA's libraries: some GB
def test_a_wheel_brings_what_it_needs_into_an_empty_environment(wheel, tmp_path):
    python = environment(tmp_path / "venv", (wheel,), borrowed=False)
    installed(python, tmp_path)
    try_snippets(python, tmp_path)
    shutil.rmtree(tmp_path / "venv")


def test_lists_of_packages_say_nothing_twice():
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        content = tomllib.load(file)
    assert content["project"]["dynamic"] == ["version", "dependencies"]
    extras = content["project"]["optional-dependencies"]
    assert {"gpu", "export", "report", "test"} <= extras.keys()
    required = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    lines = [text for line in required if (text := line.partition("#")[0].strip())]
    names = [re.match(r"[\w-]+", line)[0] for line in (*lines, *(line for extra in extras.values() for line in extra))]
    assert len(names) == len(set(names))
    assert snn.__version__.count(".") == 2
