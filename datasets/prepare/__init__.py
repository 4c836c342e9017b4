"""Make event files in the published layouts: `python -m datasets.prepare --help`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

MAKEABLE = ("digits", "planes")  # sets that need no files of the user's
REPOSITORY = Path(__file__).resolve().parent.parent.parent


def visible(paths: Iterable[Path]) -> list[Path]:
    """The paths in order, without hidden ones: macOS writes a file ._NAME of its own beside a NAME."""
    return sorted(path for path in paths if not path.name.startswith("."))


def make_if_missing(path: Path, dataset_name: str, options: str | None) -> None:
    """Where `path` is missing and the set can be made, make it there: `python -m datasets.prepare <name> <options>`.

    In a process of its own, whose workers need not load all that a training program has loaded. If it fails it has said
    why, and this program ends with its exit code. A set that is there stays.
    """
    if options is None or dataset_name not in MAKEABLE or path.exists():
        return
    print(f"{path} is missing: making the data set {dataset_name} (once)", flush=True)
    command = [sys.executable, "-m", "datasets.prepare", dataset_name, "--out", str(path.parent), *options.split()]
    python_path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    try:
        code = subprocess.run(command, env=os.environ | {"PYTHONPATH": python_path}, check=False).returncode
    except KeyboardInterrupt:  # it has had it too
        code = 130
    if code:
        sys.exit(code)


def warn_if_made_otherwise(path: Path, provenance: Callable[[], str | None], options: str) -> None:
    """Say which of these options a set that is there was made without, by what its file holds as its provenance."""
    try:
        made_with = dict(json.loads(provenance() or "{}"))  # without one it is not ours
    except (TypeError, ValueError):  # damaged: whoever reads the events finds what else is
        return
    for word, wanted in pairwise(options.split()):
        made = str(made_with.get(word.removeprefix("--"), wanted))
        if word.startswith("--") and made != wanted:
            print(
                f"warning: {path} was made with {word} {made}, data.prepare says {wanted}; another data.path, or none "
                "of its files, makes it anew",
                file=sys.stderr,
            )
