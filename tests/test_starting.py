"""The programs start anywhere: in read-only folders, with any encoding, under python -OO; if not, they say why."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from snn import cli
from tests.conftest import ON_CPU, REPOSITORY, TINY

SOURCES = [
    path
    for folder, pattern in ((".", "*.py"), ("snn", "**/*.py"), ("datasets", "**/*.py"), ("benchmarks", "*.py"))
    for path in (REPOSITORY / folder).glob(pattern)
]


def run(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a program of ours in a process of its own, because only a new process reads the environment."""
    first, *words = command.split()
    script = [first] if first.startswith("-") else [str(REPOSITORY / first)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment
    return subprocess.run([sys.executable, *script, *words], cwd=folder, env=environment, capture_output=True)


# A kernel beside whose file nothing can be kept: __pycache__ is a file.
KERNEL = "from snn.compiling import kernel\n@kernel\ndef number():\n    return 1\nprint(number())\n"


def run_kernel(folder: Path, **environment: str) -> tuple[str, str]:
    (folder / "own.py").write_text(KERNEL)
    (folder / "__pycache__").touch()
    result = run(
        f"{folder / 'own.py'}", folder, NUMBA_CACHE_DIR="", HOME="/proc/none", XDG_CACHE_HOME="", **environment
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == b"1\n"
    return result.stdout.decode(), result.stderr.decode()


def test_a_kernel_is_kept_in_the_temporary_directory_where_nothing_else_can_be_written(tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    place = temporary / f"first-spike-{os.getuid()}"
    _, said = run_kernel(tmp_path, TMPDIR=str(temporary))
    assert said == f"compiling a CPU kernel (number); this happens once; the result is kept in {place}\n"
    assert place.stat().st_mode & 0o777 == 0o700
    assert run_kernel(tmp_path, TMPDIR=str(temporary))[1] == ""  # from disk


@pytest.mark.parametrize("spoil", [lambda place: place.chmod(0o777), lambda place: (place.rmdir(), place.touch())])
def test_a_kernel_is_not_kept_where_others_may_write_it(tmp_path, spoil):
    place = tmp_path / f"first-spike-{os.getuid()}"
    place.mkdir()
    spoil(place)
    _, said = run_kernel(tmp_path, TMPDIR=str(tmp_path))
    assert len(said.splitlines()) == 1
    assert "set NUMBA_CACHE_DIR to a writable one" in said
    assert not place.is_dir() or not list(place.iterdir())


def test_a_kernel_is_kept_where_the_user_says(tmp_path):
    (tmp_path / "own.py").write_text(KERNEL)
    said = run(str(tmp_path / "own.py"), tmp_path, NUMBA_CACHE_DIR="here").stderr.decode()
    assert f"is kept in {tmp_path / 'here'}" in said
    assert list((tmp_path / "here").rglob("*.nbi"))


def test_code_for_other_types_that_is_kept_under_a_wrong_name_is_not_run(tmp_path):
    """Two processes that compile a kernel at once may leave it there. Each then compiles it again, once."""
    (tmp_path / "own.py").write_text(
        "import numpy as np\nfrom snn.compiling import kernel\n"
        "@kernel\ndef total(x):\n    s = 0.0\n    for v in x:\n        s += v\n    return s\n"
        "for kind in ('f8', 'i8'):\n    print(total(np.ones(8, kind)))\n"
    )

    def compiled() -> int:
        result = run(str(tmp_path / "own.py"), tmp_path, NUMBA_CACHE_DIR="here")
        assert result.stdout.split() == [b"8.0", b"8.0"], result.stderr
        return result.stderr.count(b"compiling")

    assert compiled() == 2
    first, second = sorted((tmp_path / "here").rglob("*.nbc"))
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    assert [compiled(), compiled()] == [2, 0]


def test_one_place_chooses_where_kernels_are_kept():
    for path in SOURCES:
        if path.name != "compiling.py":
            assert not re.search(r"cache=True|CACHE_DIR", path.read_text(encoding="utf-8")), path


def test_train_starts_without_docstrings_or_unicode(tmp_path):
    result = run(f"-OO {REPOSITORY}/train.py --help", tmp_path, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"taum taus theta" in result.stdout


def test_help_does_not_wait_for_torch(tmp_path):
    """Importing it takes seconds."""
    result = run(f"-X importtime {REPOSITORY}/train.py --help", tmp_path)
    assert result.returncode == 0
    assert re.search(rb"\| +snn\.arguments\n", result.stderr)
    assert not re.search(rb"\| +(torch|numba|numpy|matplotlib)\n", result.stderr)


def test_a_process_without_jit_is_told_so_once(tmp_path):
    result = run("-m snn.ops.show AdLIF", tmp_path, NUMBA_DISABLE_JIT="1")
    assert result.returncode == 0, result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert b"warning: NUMBA_DISABLE_JIT is set" in result.stderr


def test_training_does_without_the_packages_of_the_report(tmp_path):
    """It also does not load torch._dynamo, which takes a second, before it must."""
    (tmp_path / "own.py").write_text(
        "import sys\nsys.modules.update(matplotlib=None, jinja2=None)\nimport train\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    result = run(f"{tmp_path / 'own.py'}", tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("module", [pytest.param("snn.config", marks=pytest.mark.slow), "datasets.prepare"])
def test_a_module_starts_without_docstrings_or_unicode(tmp_path, module):
    result = run(f"-OO -m {module} --help", tmp_path, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.slow
@pytest.mark.usefixtures("shd_folder")
def test_a_run_and_its_test_without_docstrings_or_unicode(tmp_path):
    """Use a name that ASCII lacks, and silent outputs, whose delays are dashes."""
    words = f"{TINY} --neuron2 20 20 1000 {ON_CPU} --path_to_dataset shd --dataset_name shd --epochs 1 --save_name ö"
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONOPTIMIZE": "2"}
    trained = run(f"train.py --path_to_yaml {REPOSITORY}/configs/adlif_shd.yaml {words}", tmp_path, **environment)
    assert trained.returncode == 0, trained.stderr
    tested = run("test.py --load_pt_file ö", tmp_path, **environment)
    assert tested.returncode == 0, tested.stderr
    assert re.search(rb"t_d50 +-", tested.stdout)
    assert rb"runs/\xf6/test" in tested.stdout


@pytest.mark.parametrize(
    ("text", "plain"), [("92.3 ± 1 – τ", b"92.3 +- 1 - tau"), ("你 \udcff", rb"\u4f60 \udcff"), ("plain", b"plain")]
)
def test_characters_that_a_stream_lacks(monkeypatch, tmp_path, text, plain):
    with open(tmp_path / "out", "w", encoding="ascii") as file:
        monkeypatch.setattr(sys, "stdout", file)
        cli.run(lambda: print(text, end=""))
    assert (tmp_path / "out").read_bytes() == plain


def test_streams_that_are_closed(tmp_path):
    """The next file to be opened does not get their numbers, here and in a child, and a progress bar finds a stream."""
    (tmp_path / "child.py").write_text("with open('its', 'w') as file:\n    file.write(str(file.fileno() > 2))\n")
    (tmp_path / "own.py").write_text(
        "import subprocess, sys\nfrom snn import cli\nfrom tqdm import tqdm\n\n"
        "def main():\n    with open('out', 'w') as file:\n        file.write(str([*tqdm([file.fileno() > 2])]))\n"
        "    print(1, file=sys.stderr)\n    subprocess.run([sys.executable, 'child.py'], check=True)\n\ncli.run(main)\n"
    )
    command = ["sh", "-c", 'exec "$0" own.py <&- >&- 2>&-', sys.executable]
    assert subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}).returncode == 0
    assert [(tmp_path / name).read_text() for name in ("out", "its")] == ["[True]", "True"]


def test_text_files_are_read_and_written_as_utf8_whatever_the_locale():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
            is_text = name in ("read_text", "write_text")
            if name == "open" and node.args and isinstance(node.args[0], ast.Constant):  # path.open(mode)
                is_text = "b" not in str(node.args[0].value)
            if is_text:
                assert "encoding" in [word.arg for word in node.keywords], f"{path}:{node.lineno}"


def test_no_program_needs_its_assertions_or_docstrings():
    for path in SOURCES:
        if path.parent.name != "benchmarks":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree)), path
            assert "__doc__." not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize("system", ["sys.platform = 'win32'", "sys.version_info = (3, 10, 13)"])
def test_a_system_that_is_not_supported_is_told_so_in_one_line(tmp_path, system):
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; {system}; import snn"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stderr == ("error: first-spike needs Python 3.11 or newer on Linux or macOS; on Windows, WSL 2\n")


WITHOUT = """
import runpy, sys
sys.modules[{!r}] = None
for sys.argv in {!r}:
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
sys.exit(code)
"""


def run_without(package: str, *commands: str) -> subprocess.CompletedProcess:
    """Run programs one after another in a process where a package is missing; the code is that of the last."""
    program = WITHOUT.format(package, [command.split() for command in commands])
    return subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("program", "package", "extra"),
    [
        ("test.py", "matplotlib", "report"),
        ("compare.py", "jinja2", "report"),
        ("demo.py", "matplotlib", "report"),
    ],
)
def test_a_missing_extra_is_named_in_one_line(program, package, extra):
    result = run_without(package, program)
    assert result.returncode == 2
    assert f"does not have {package}: bash run.sh --python {extra} installs what is missing" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_only_the_format_nir_needs_nir():
    """Try all formats in one process, because starting torch takes seconds."""
    formats = ("onnx", "c", "html", "nir")
    result = run_without("nir", *(f"export.py --load_pt_file nowhere --format {name}" for name in formats))
    assert result.returncode == 2
    *others, last = result.stderr.splitlines()
    assert ["nowhere: no such checkpoint" in line for line in others] == [True] * 3
    assert "does not have nir: bash run.sh --python export installs what is missing" in last


@pytest.mark.parametrize(
    "words", [["train.py"], ["test.py"], ["compare.py"], ["export.py"], ["demo.py"], ["-m", "datasets.prepare"]]
)
def test_missing_packages_are_named_in_one_line(words):
    result = subprocess.run([sys.executable, "-S", *words], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 2
    assert re.fullmatch(r"error: \S+ does not have numpy, torch, .*: bash run.sh installs .*\n", result.stderr)


# A script that run.sh finds on PATH in place of Python, and that answers as told.
OLD = 'case "$*" in --version) echo Python 3.10.13;; *) exit 1;; esac'
NO_VENV = """case "$*" in
  *version_info*) ;;
  "-m venv"*) mkdir -p "$3/bin"; echo ensurepip is not available; exit 1 ;;
  *) exit 1 ;;
esac"""
PIP_FAILS = """case "$*" in
  *version_info* | *--version) ;;
  "-m venv"*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  *"pip install"*) printf "$WORDS" >&2; exit 1 ;;
  *) exit 1 ;;
esac"""
OFFLINE = "WARNING: Retrying (Retry(total=0)): x\\nERROR: No matching distribution found for torch\\n"


def run_sh(folder: Path, python3: str | None, code: int = 2, words: str = "", **environment: str) -> list[str]:
    """Run a copy of run.sh with only this python3; return the lines it prints."""
    for name in ("run.sh", "requirements.txt", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, folder / name)
    tools = folder / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "uname", "grep", "tail", "tr", "rm", "mkdir", "cp"):
        (tools / name).symlink_to(shutil.which(name))
    for name, text in {"python3": python3, "uname": environment.pop("uname", None)}.items():
        if text:
            (tools / name).unlink(missing_ok=True)
            (tools / name).write_text(f"#!{shutil.which('bash')}\n{text}\n")
            (tools / name).chmod(0o755)
    result = subprocess.run(
        [tools / "bash", "run.sh", *words.split()],
        cwd=folder,
        env={"PATH": str(tools), **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    return [line for line in result.stderr.splitlines() if not line.startswith("installing the packages")]


@pytest.mark.parametrize(
    ("python3", "environment", "said"),
    [
        (OLD, {}, "needs Python 3.11 or newer, and found only Python 3.10.13"),
        (None, {}, "needs Python 3.11 or newer, and found only none"),
        (NO_VENV, {}, "apt install python3-venv"),
        (PIP_FAILS, {"WORDS": OFFLINE}, "cannot reach its package index"),
        (PIP_FAILS, {"WORDS": "ERROR: No space left on device\\n"}, "ERROR: No space left on device"),
        (OLD, {"uname": "echo MINGW64_NT-10.0"}, "WSL 2"),
    ],
)
def test_run_sh_says_in_one_line_why_it_does_not_start(tmp_path, python3, environment, said):
    (line,) = run_sh(tmp_path, python3, **environment)
    assert line.startswith("run.sh: ")
    assert said in line
    assert python3 is not NO_VENV or not (tmp_path / ".venv").exists()  # half made, it would be in the way


def test_run_sh_leaves_a_broken_venv_to_its_owner(tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(tmp_path / "gone")
    (line,) = run_sh(tmp_path, 'case "$*" in *version_info*) ;; *) exit 1;; esac')
    assert f"rm -r {tmp_path}/.venv" in line
    assert (tmp_path / ".venv").exists()


@pytest.mark.parametrize(
    ("extras", "required", "found"),
    [
        ("", 'numpy>=2 # numbers\n\nno-such-package>=1; sys_platform == "plan9"\n', True),
        ("", "numpy>=2\nno-such-package>=1\n", False),
        ("report", "numpy>=2\n", True),
        ("report other", "numpy>=2\n", False),
    ],
)
def test_run_sh_asks_for_the_packages_of_this_system_and_of_the_extras(tmp_path, extras, required, found):
    """run.sh prints the first Python where that has the packages; otherwise it makes a .venv, which here it may not."""
    shutil.copy(REPOSITORY / "run.sh", tmp_path / "run.sh")
    (tmp_path / "requirements.txt").write_text(required)
    (tmp_path / "pyproject.toml").write_text(
        '[project.optional-dependencies]\nreport = ["jinja2>=3"]\nother = ["no-such-package"]\ngpu = []\n'
    )
    (tmp_path / ".venv").symlink_to(tmp_path / "gone")
    command, environment = (
        ["bash", str(tmp_path / "run.sh"), "--python", *extras.split()],
        os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
    )
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == (0 if found else 2), result.stderr
    assert ("python" in result.stdout) == found


def test_run_test_sh_takes_a_checkpoint_in_either_form(tmp_path):
    """It hands the words on to test.py, and looks for the newest run only if they name none."""
    shutil.copy(REPOSITORY / "run_test.sh", tmp_path)
    (tmp_path / "run.sh").write_text("echo echo\n")
    for words in ("a.pt --show", "--load_pt_file a.pt --show", "--load_pt_file=a.pt --show"):
        command = ["bash", str(tmp_path / "run_test.sh"), *words.split()]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        (line,) = result.stdout.replace("=", " ").splitlines()
        assert line == f"{tmp_path}/test.py --load_pt_file a.pt --show"


def test_cuda_packages_are_for_linux_alone():
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        gpu = tomllib.load(file)["project"]["optional-dependencies"]["gpu"]
    assert all("sys_platform == 'linux'" in line for line in gpu)
    assert "cuda" not in (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").lower()


# Python for run.sh, without packages: it answers for torch's index as told, and notes what pip is to install
NOTING = """case "$*" in
  *version_info* | *--version) ;;
  "-m venv"*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  *urlopen*) exit $UNREACHABLE ;;
  *"pip install"*) echo "$* $(tr '\n' ' ')" >> "$NOTED" ;;
  "- "*) echo torch; echo numpy; exit 1 ;;
  *) exit 1 ;;
esac"""


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="of a machine without a GPU")
@pytest.mark.parametrize(
    ("unreachable", "uname", "from_torch"), [("0", None, True), ("1", None, False), ("0", "echo Darwin", False)]
)
def test_without_a_gpu_torch_comes_from_its_own_index_where_that_answers(tmp_path, unreachable, uname, from_torch):
    noted = tmp_path / "noted"
    words = {"uname": uname} if uname else {}
    run_sh(tmp_path, NOTING, code=1, UNREACHABLE=unreachable, NOTED=str(noted), **words)
    *first, rest = noted.read_text().splitlines()
    assert rest.endswith("-r /dev/stdin torch numpy ")
    assert "--index-url" not in rest
    options = "--quiet --no-compile --disable-pip-version-check --index-url https://download.pytorch.org/whl/cpu"
    assert [line.split("pip install ")[1] for line in first] == [f"{options} -r /dev/stdin torch "] * from_torch


def test_an_extra_that_is_not_known_is_refused(tmp_path):
    python3 = NOTING.replace('"- "*) echo torch; echo numpy; exit 1', f'"- "*) exec {sys.executable} "$@"')
    noted = tmp_path / "noted"
    (line,) = run_sh(tmp_path, python3, words="--python exprot", UNREACHABLE="1", NOTED=str(noted))
    assert "lacks one of the extras exprot" in line
    assert not (tmp_path / ".venv").exists()
    assert not noted.exists()


NOTEBOOK = (
    "import first_spike, datasets; from datasets.binning import Bins; from datasets import readers; import snn.config"
)


@pytest.mark.parametrize(
    ("other", "first"), [(None, ""), ("x = 1", "import datasets; "), ("from datasets import arrow; x = arrow.x", "")]
)
def test_a_notebook_finds_our_datasets_beside_another_package_of_that_name(tmp_path, other, first):
    if other:
        (tmp_path / "datasets").mkdir()
        (tmp_path / "datasets" / "__init__.py").write_text(other)
        (tmp_path / "datasets" / "arrow.py").write_text("x = 2")
    program = f"import sys; {first}sys.path.append({str(REPOSITORY)!r}); {NOTEBOOK}; print(Bins, datasets.__file__)"
    environment = os.environ | {"PYTHONPATH": ""}
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert (str(tmp_path).encode() in result.stdout) == bool(other)


CTRL_C = """
import runpy, signal, sys

class CtrlC:
    def find_spec(self, name, *_):
        if name == {!r}:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, CtrlC())
sys.argv = {!r}
run = runpy.run_module if len(sys.argv) > 1 else runpy.run_path
run(sys.argv[-1], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("words", "package"),
    [
        (["train.py"], "pydantic.main"),
        (["train.py"], "numpy._core"),
        (["test.py"], "numpy._core"),
        (["compare.py"], "numpy._core"),
        (["export.py"], "numpy._core"),
        (["demo.py"], "numpy._core"),
        (["search.py"], "pydantic.main"),
        (["search.py"], "numpy._core"),
        (["-m", "datasets.prepare"], "numpy._core"),
        (["-m", "datasets.send"], "numpy._core"),
    ],
)
def test_ctrl_c_while_a_package_is_imported_is_one_line(words, package):
    command = [sys.executable, "-c", CTRL_C.format(package, words)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "interrupted\n")


def test_a_library_users_ctrl_c_stays_as_it_is():
    """Only programs end at it; and once they run, it is an exception again."""
    program = (
        "import signal; import first_spike, train, datasets.send; from snn import cli\n"
        "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)\n"
        "cli.end_at_ctrl_c(); print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)\n"
        "cli.run(lambda: print(signal.getsignal(signal.SIGINT) is signal.default_int_handler))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.stdout.split() == ["True", "False", "True"], result.stderr
