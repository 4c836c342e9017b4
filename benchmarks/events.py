"""When does work that follows the events pay? The input layer of configs/adlif_shd.yaml: 12,800 rows, 700 to 256.

    python -m benchmarks.events [--json FILE] [--rounds 9]

Forward and weight gradient at several shares of active inputs, event-driven and dense in turns; medians. "from dense"
is a hidden layer's case: its input arrives as spikes in a dense tensor and is searched for them first. The share at
which that is no longer faster is the rule in snn/linear.py.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from benchmarks.kernels import medians, processor
from snn.events import Events
from snn.memory import keep_freed_memory
from snn.ops import sparse

ROWS, INPUTS, OUTPUTS = 12_800, 700, 256
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


def contenders(share: float) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    x_RC = (torch.rand(ROWS, INPUTS) < share).float()
    W_NC, gy_RN = torch.randn(OUTPUTS, INPUTS), torch.randn(ROWS, OUTPUTS)
    given = Events(*sparse.compress(x_RC, sparse.row_counts(x_RC)), (ROWS, 1, INPUTS))

    def event_driven(events: Events) -> None:
        entries = (events.offsets, events.channels, events.counts)
        sparse.product(*entries, W_NC)
        sparse.weight_gradient(*entries, gy_RN, INPUTS)

    def from_dense() -> None:
        event_driven(Events(*sparse.compress(x_RC, sparse.row_counts(x_RC)), (ROWS, 1, INPUTS)))

    def dense() -> None:
        F.linear(x_RC, W_NC)
        gy_RN.T @ x_RC

    return {"events": lambda: event_driven(given), "from dense": from_dense, "dense": dense}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (9)")
    arguments = parser.parse_args()
    keep_freed_memory()  # as train.py does; it helps every contender
    print(f"{ROWS} rows, {INPUTS} to {OUTPUTS}, float32, {processor()}, {torch.get_num_threads()} threads")
    print("active    events   from dense   dense (ms, forward + weight gradient)")
    rows = []
    for share in SHARES:
        ms = medians(contenders(share), arguments.rounds, "cpu")
        rows.append({"share": share, "milliseconds": ms})
        times = "".join(f"{ms[name]:8.1f} ({ms['dense'] / ms[name]:4.1f}x)" for name in ("events", "from dense"))
        print(f"{100 * share:5.0f} %{times}{ms['dense']:8.1f}")
    if arguments.json:
        result = {"device": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__, "rows": rows}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
