"""Make event files in the published layouts: `python -m datasets.prepare --help`."""

import os
import subprocess
import sys
from pathlib import Path

MAKEABLE = ("digits", "planes")  # sets that need no files of the user's
REPOSITORY = Path(__file__).resolve().parent.parent.parent


def make_if_missing(path: Path, dataset_name: str, options: str | None) -> None:
    """Where `path` is missing and the set can be made, make it there: `python -m datasets.prepare <name> <options>`.

    In a process of its own, whose workers need not load all that a training program has loaded. If it fails it has said
    why, and this program ends with its exit code.
    """
    if path.exists() or options is None or dataset_name not in MAKEABLE:
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
