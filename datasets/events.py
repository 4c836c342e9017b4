"""Earlier names of what lies in recordings.py, binning.py, window.py and splits.py."""

from datasets.binning import Bins, batches  # noqa: F401
from datasets.binning import bin_dense as frames  # noqa: F401
from datasets.binning import bin_events as counts  # noqa: F401
from datasets.recordings import WHOLE, AnyRecordings, Recordings, StoredRecordings, check_array, check_index  # noqa: F401
from datasets.recordings import downsampled as as_seen  # noqa: F401
from datasets.recordings import sorted_by_time as in_order  # noqa: F401
from datasets.recordings import subset as chosen  # noqa: F401
from datasets.splits import hold_out, say_unseen  # noqa: F401
from datasets.window import HALVES, check_first_times  # noqa: F401
