"""Text output to a terminal or a file that may be closed, or whose encoding may lack some characters."""

import codecs
import io
import os
import sys

PLAIN = str.maketrans({"–": "-", "±": "+-", "τ": "tau", "θ": "theta", "α": "alpha", "λ": "lambda", "σ": "sigma"})


def _plainly(error: UnicodeEncodeError) -> tuple[str, int]:
    """Replace characters that an encoding lacks by ASCII: signs of our tables by other signs, the rest by \\u codes."""
    lacking = error.object[error.start : error.end]
    return lacking.translate(PLAIN).encode("ascii", "backslashreplace").decode("ascii"), error.end


def take_any_character() -> None:
    """Replace characters that the terminal or file cannot take (PYTHONIOENCODING, the locale) instead of failing."""
    codecs.register_error("plainly", _plainly)  # type: ignore[arg-type]  # used only to encode
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # some launchers have None or another type
            stream.reconfigure(errors="plainly")


def replace_closed_streams() -> None:
    """Open the null device in place of standard streams that were closed (2>&-).

    A progress bar fails without a stream, and the next file to be opened would get its number and what is meant for it,
    here and in the programs and processes that this one starts.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free
    sys.stdout, sys.stderr = sys.stdout or os.fdopen(1, "w"), sys.stderr or os.fdopen(2, "w")
