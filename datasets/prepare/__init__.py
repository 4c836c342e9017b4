"""Make event files in the layout of the Spiking Heidelberg Digits: `python -m datasets.prepare --help`."""

from pathlib import Path

MAKEABLE = ("digits",)  # sets that need no files of the user's


def make_if_missing(path: Path, dataset_name: str, options: str | None) -> None:
    """Where `path` is missing and the set can be made, make it there: `python -m datasets.prepare <name> <options>`."""
    if path.exists() or options is None or dataset_name not in MAKEABLE:
        return
    from datasets.prepare.__main__ import main  # only now: nothing else needs speech and cochlea

    print(f"{path} is missing: making the data set {dataset_name} (once)")
    main([dataset_name, "--out", str(path.parent), *options.split()])
