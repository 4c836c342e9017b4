"""Make event files in the layout of the Spiking Heidelberg Digits: `python -m datasets.prepare --help`."""

from pathlib import Path

from snn.errors import InputError

MAKEABLE = ("digits",)  # sets that need no files of the user's


def make_if_missing(path: Path, dataset_name: str, options: str | None) -> None:
    """Where `path` is missing and the set can be made, make it there: `python -m datasets.prepare <name> <options>`."""
    if path.exists() or options is None or dataset_name not in MAKEABLE:
        return
    from datasets.prepare.__main__ import main  # only now: nothing else needs speech and cochlea

    print(f"{path} is missing: making the data set {dataset_name} (once)")
    try:
        main([dataset_name, "--out", str(path.parent), *options.split()])
    except SystemExit:  # argparse has said what is wrong
        raise InputError(f"data.prepare = '{options}': not the options of python -m datasets.prepare") from None
