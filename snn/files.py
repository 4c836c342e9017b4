"""Atomic writes of files."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent  # the folder that holds this package


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a path beside this one, to fill; it moves there when it is complete, and until then the old file stays.

    It may become a folder instead, if there is none at `path`.
    OSError names `path` if it is about either of the two.
    """
    part = path.parent / f".{path.name}.{os.getpid()}"
    _remove(part)  # of a killed process with this number, which in a container is always the same
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        if error.filename not in (None, str(part)):
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        _remove(part)


def _remove(part: Path) -> None:
    with suppress(OSError):  # it has moved, or was never there
        shutil.rmtree(part) if part.is_dir() else part.unlink()


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file at once or not at all."""
    with whole(path) as part:
        part.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
