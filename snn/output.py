"""Text to a terminal or a file that may not take every character."""

import codecs
import io
import sys

PLAIN = str.maketrans({"–": "-", "±": "+-", "τ": "tau", "θ": "theta", "α": "alpha", "λ": "lambda", "σ": "sigma"})


def _plainly(error: UnicodeEncodeError) -> tuple[str, int]:
    """Characters that an encoding lacks, in ASCII: signs of our tables by others, the rest as \\u and a number."""
    lacking = error.object[error.start : error.end]
    return lacking.translate(PLAIN).encode("ascii", "backslashreplace").decode("ascii"), error.end


def take_any_character() -> None:
    """No character ends a program whose terminal or file does not take it (PYTHONIOENCODING, the locale)."""
    codecs.register_error("plainly", _plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None or another under some launchers
            stream.reconfigure(errors="plainly")
