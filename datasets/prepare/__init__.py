"""Make event files in the published layouts: `python -m datasets.prepare --help`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

MAKEABLE = ("digits", "planes")  # sets that need no files from the user
REPOSITORY = Path(__file__).resolve().parent.parent.parent


def visible(paths: Iterable[Path]) -> list[Path]:
    """Return the paths in order, without hidden ones: macOS writes its own file ._NAME beside a NAME."""
    return sorted(path for path in paths if not path.name.startswith("."))


def make_if_missing(path: Path, dataset_name: str, options: str | None) -> None:
    """Make the set if `path` is missing and the set can be made: `python -m datasets.prepare <name> <options>`.

    It is made in another process, whose workers need not load all that a training program has loaded. If that fails,
    it has printed why, and this program ends with its exit code. An existing set stays.
    """
    if options is None or dataset_name not in MAKEABLE or path.exists():
        return
    print(f"{path} is missing: making the data set {dataset_name} (once)", flush=True)
    command = [sys.executable, "-m", "datasets.prepare", dataset_name, "--out", str(path.parent), *options.split()]
    python_path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    try:
        code = subprocess.run(command, env=os.environ | {"PYTHONPATH": python_path}, check=False).returncode
    except KeyboardInterrupt:  # it reached the other process, too
        code = 130
    if code:
        sys.exit(code)


def warn_if_made_otherwise(path: Path, provenance: Callable[[], str | None], options: str) -> None:
    """Report options with which an existing set was not made, according to the provenance in its file."""
    try:
        made_with = dict(json.loads(provenance() or "{}"))  # without one it is not ours
    except (TypeError, ValueError):  # damaged: the reader of the events reports the rest
        return
    for word, wanted in pairwise(options.replace("=", " ").split()):
        made = str(made_with.get(word.removeprefix("--"), wanted))
        if word.startswith("--") and made != wanted:
            print(
                f"warning: {path} was made with {word} {made}, but data.prepare says {wanted}; to make it again, "
                "choose another data.path, or remove its files",
                file=sys.stderr,
            )
