"""Make event files: `python -m datasets.prepare --help`."""

from __future__ import annotations

import argparse

from datasets.prepare import digits, wav
from snn.cli import run


def main(arguments: list[str] | None) -> None:
    """Run the subcommand that `arguments` name; None: those of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.prepare",
        description="Make event files in the layout of the Spiking Heidelberg Digits.",
    )
    subparsers = parser.add_subparsers(required=True, metavar="SOURCE")
    for source in (digits, wav):
        source.add_parser(subparsers)
    args = parser.parse_args(arguments)
    args.run(args)


if __name__ == "__main__":
    run(lambda: main(None))
