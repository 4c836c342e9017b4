"""For notebooks and other programs: `import first_spike` has Python find our `snn`, `datasets` and `tasks`.

Another package named `datasets`, such as Hugging Face's, may be there and in use: it finds our modules beside its own.
"""

import sys
from importlib import import_module
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent
OWN = REPOSITORY / "datasets"

if not OWN.is_dir():
    raise ImportError(f"{REPOSITORY} has no datasets of ours: install the repository by pip install -e, where it stays")
if str(REPOSITORY) not in sys.path:
    sys.path.append(str(REPOSITORY))
_places = import_module("datasets").__path__
if not any(Path(place).resolve() == OWN for place in _places):
    _places.append(str(OWN))
