"""Atomic writes of files."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent  # the folder that holds this package


def write_whole(path: Path, content: str | bytes) -> None:
    """Write to a temporary file beside path and move it there; the old file stays until the new one is complete."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
