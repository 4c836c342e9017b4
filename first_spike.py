"""For notebooks and other programs: after `import first_spike`, Python finds our `snn`, `datasets` and `tasks`.

If another package named `datasets` is there, such as Hugging Face's, it stays in use, and our modules are added to it.
"""

import sys
from importlib import import_module
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent
OWN = REPOSITORY / "datasets"

if not OWN.is_dir():
    raise ImportError(f"{REPOSITORY} has no datasets of ours: install the repository in its place, by pip install -e")
if str(REPOSITORY) not in sys.path:
    sys.path.append(str(REPOSITORY))
_places = import_module("datasets").__path__
if not any(Path(place).resolve() == OWN for place in _places):
    _places.append(str(OWN))
