"""Files that are there whole or not at all."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent  # the folder that holds this package


def write_whole(path: Path, content: str | bytes) -> None:
    """Write by way of a temporary file beside it: what was there before stays until all of the new is written."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
