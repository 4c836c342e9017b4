"""Make event files: `python -m datasets.prepare --help`."""

from __future__ import annotations

import argparse

from datasets.prepare import digits, dvsgesture, dvsplane, ntidigits, planes, wav
from snn.cli import run
from snn.errors import InputError


class _Parser(argparse.ArgumentParser):
    """A wrong word is an InputError: one line."""

    def error(self, message: str) -> None:
        raise InputError(f"{self.prog}: {message}; --help lists the words")


def main() -> None:
    """Parse the command line and run the subcommand it names."""
    parser = _Parser(
        prog="python -m datasets.prepare",
        description="Make event files in the published layouts.",
    )
    subparsers = parser.add_subparsers(required=True, metavar="SOURCE")
    for source in (digits, planes, wav, ntidigits, dvsgesture, dvsplane):
        source.add_parser(subparsers)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    run(main)
