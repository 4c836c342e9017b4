"""The kinds of networks that train.py trains and test.py tests, in a file each. A further kind is a row of KINDS."""

import first_spike  # noqa: F401 - finds our datasets, beside Hugging Face's too
from snn.config import AnyConfig
from tasks import events, images
from tasks.kind import Kind

KINDS = (events.KIND, images.KIND)


def kind_of(cfg: AnyConfig) -> Kind:
    """The kind of a configuration."""
    return next(kind for kind in KINDS if isinstance(cfg, kind.config))
