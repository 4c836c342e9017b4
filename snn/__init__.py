"""First-spike coded spiking neural networks. Import from the submodules: `from snn.neurons import AdLIF`.

Programs import it before anything that may be missing.
"""

import sys
from importlib.util import find_spec

PACKAGES = ("numpy", "torch", "numba", "h5py", "yaml", "pydantic", "tqdm", "spikingjelly")  # that all programs need


def _stop(why: str) -> None:
    print(f"error: {why}", file=sys.stderr)
    sys.exit(2)


if sys.version_info < (3, 11) or sys.platform == "win32":
    _stop("first-spike needs Python 3.11 or newer on Linux or macOS; on Windows, WSL 2")
if _missing := [name for name in PACKAGES if find_spec(name) is None]:
    _stop(
        f"{sys.executable} does not have {', '.join(_missing)}: bash run.sh installs what is missing into .venv; "
        "then source .venv/bin/activate"
    )
