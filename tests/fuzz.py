"""Calls of the library's public surface, made by number: python -m tests.fuzz SEED FIRST LAST [--guard] [--neurons]

Case k calls entry k modulo the number of entries as a notebook would, with arguments that fit, or some that do not. It
prints a line for each case: its number, its entry, and "result", "refused" (by one InputError), or the fault. If a
compiled kernel reads or writes memory that is not its own, this process may die, and the caller knows at which case.
With --guard it must die: each array that a kernel takes ends, or begins, at a page that nothing may touch. With
--neurons every neuron is compiled, not one alone.
"""

import signal
import sys
import warnings
from pathlib import Path

import torch

from snn.errors import InputError
from snn.neurons import NEURONS
from tests.draw import Draw
from tests.entries import COMPILED, ENTRIES
from tests.guard import Guard

SECONDS = 60  # of the processor, a case; a kernel may have to be compiled in it


def outcome_of(seed: int, k: int) -> tuple[str, str]:
    """Return the name of the case's entry, and how its call ended."""
    function = ENTRIES[k % len(ENTRIES)]
    torch.manual_seed(k)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # ends this process, even within C
    try:
        function(Draw(seed, k))
        return function.__name__, "result"
    except InputError:
        return function.__name__, "refused"
    except Exception as error:
        trace = error.__traceback__
        while trace.tb_next:
            trace = trace.tb_next
        place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        return function.__name__, f"{type(error).__name__} at {place}: {' '.join(str(error).split())[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
    seed, first, last = map(int, sys.argv[1:4])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if "--neurons" in sys.argv:
        COMPILED[:] = NEURONS
    guard = Guard() if "--guard" in sys.argv else None
    if guard:
        guard.wrap()
    for k in range(first, last):
        print(f"{k}: {': '.join(outcome_of(seed, k))}", flush=True)
    print(f"guarded arrays: {guard.arrays if guard else 0}", file=sys.stderr)


if __name__ == "__main__":
    main()
