"""First-spike coded spiking neural networks. Import from the submodules: `from snn.neurons import AdLIF`."""

import sys

if sys.version_info < (3, 11) or sys.platform == "win32":
    print("error: first-spike needs Python 3.11 or newer on Linux or macOS; on Windows, WSL 2", file=sys.stderr)
    sys.exit(2)
