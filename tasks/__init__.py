"""The kinds of networks that train.py trains and test.py tests, one file each. Add a row to KINDS for another kind."""

import first_spike  # noqa: F401 - makes Python find our datasets even beside Hugging Face's
from snn.schema import AnyConfig
from tasks import events, images
from tasks.kind import Kind

KINDS = (events.KIND, images.KIND)


def kind_of(cfg: AnyConfig) -> Kind:
    """Return the kind of network that a configuration describes."""
    return next(kind for kind in KINDS if isinstance(cfg, kind.config))
