"""Make event files in the published layouts: `python -m datasets.prepare --help`."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from datasets import hdf5

PROVENANCE = "provenance"  # HDF5 attribute: a JSON object of the parameters the file was made with
MAKEABLE = ("digits", "planes")  # sets that need no files of the user's
REPOSITORY = Path(__file__).resolve().parent.parent.parent


def visible(paths: Iterable[Path]) -> list[Path]:
    """The paths in order, without hidden ones: macOS writes a file ._NAME of its own beside a NAME."""
    return sorted(path for path in paths if not path.name.startswith("."))


def make_if_missing(path: Path, dataset_name: str, options: str | None) -> None:
    """Where `path` is missing and the set can be made, make it there: `python -m datasets.prepare <name> <options>`.

    In a process of its own, whose workers need not load all that a training program has loaded. If it fails it has said
    why, and this program ends with its exit code. A set that is there stays; a line says if it was made otherwise.
    """
    if options is None or dataset_name not in MAKEABLE:
        return
    if path.exists():
        for word, wanted, made in _differences(path, options):
            print(
                f"warning: {path} was made with {word} {made}, data.prepare says {wanted}; another data.path, or none "
                "of its files, makes it anew",
                file=sys.stderr,
            )
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


def _differences(path: Path, options: str) -> list[tuple[str, str, str]]:
    """(word, value in the options, value the file was made with) where the two differ."""
    try:
        provenance = dict(json.loads(hdf5.File(path).attribute(PROVENANCE) or "{}"))  # without one it is not ours
    except (TypeError, ValueError):  # damaged: whoever reads the events finds what else is
        return []
    found = []
    for word, wanted in pairwise(options.split()):
        made = str(provenance.get(word.removeprefix("--"), wanted))
        if word.startswith("--") and made != wanted:
            found.append((word, wanted, made))
    return found
