"""First-spike coded spiking neural networks. Import from the submodules: `from snn.neurons import AdLIF`.

Programs import this package first: it says which of the packages they need are missing.
"""

import sys
from importlib.util import find_spec

__version__ = "0.2.0"
PACKAGES = ("numpy", "torch", "numba", "h5py", "yaml", "pydantic", "tqdm", "spikingjelly")  # all programs need these


def _stop(why: str) -> None:
    print(f"error: {why}", file=sys.stderr)
    sys.exit(2)


def need(*packages: str, extra: str = "") -> None:
    """End the program with one line and exit code 2 if packages are missing; `extra` of pyproject.toml lists them."""
    if missing := [name for name in packages if find_spec(name) is None]:
        command = f"bash run.sh --python {extra}" if extra else "bash run.sh"
        _stop(
            f"{sys.executable} does not have {', '.join(missing)}: {command} installs what is missing into .venv; "
            "then source .venv/bin/activate"
        )


if sys.version_info < (3, 11) or sys.platform == "win32":
    _stop("first-spike needs Python 3.11 or newer on Linux or macOS; on Windows, WSL 2")
need(*PACKAGES)
