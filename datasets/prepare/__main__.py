"""Make event files: `python -m datasets.prepare --help`."""

from __future__ import annotations

from snn.cli import OneLineParser, end_at_ctrl_c, run

if __name__ == "__main__":
    end_at_ctrl_c()

# isort: split
from datasets.prepare import digits, dvsgesture, dvsplane, events, heidelberg, ntidigits, planes, wav


def main() -> None:
    """Parse the command line and run the subcommand it names."""
    parser = OneLineParser(
        prog="python -m datasets.prepare",
        description="Make event files in the published layouts.",
    )
    subparsers = parser.add_subparsers(required=True, metavar="SOURCE")
    for source in (digits, planes, wav, events, heidelberg, ntidigits, dvsgesture, dvsplane):
        source.add_parser(subparsers)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    run(main)
