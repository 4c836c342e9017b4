"""Recordings of events: readers of the published file layouts, and batches of them binned into counts."""

import snn.errors  # noqa: F401 - first, because importing snn reports missing packages
