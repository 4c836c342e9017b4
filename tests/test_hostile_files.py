"""Damaged and strange files of every layout: read correctly or refused in one line, in bounded time and memory."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter

import pytest

from datasets.prepare.parallel import map_in_order
from snn.errors import InputError
from tests import hostile
from tests.conftest import REPOSITORY


def fuzz(seed: int, cases: int) -> Counter:
    """The outcomes of so many damaged files. Reading takes place in a process of its own, made anew when one dies."""
    outcomes, first = Counter(), 0
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    while first < cases:
        words = [sys.executable, "-m", "tests.hostile", *map(str, (seed, first, cases))]
        done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
        lines = re.findall(r"^\d+: (.*?): (.*)$", done.stdout, re.MULTILINE)
        assert lines or done.returncode < 0, done.stderr  # it began
        for k, (layout, outcome) in enumerate(lines):
            told = outcome in ("correct", "refused")
            outcomes[layout, outcome if told else f"case {first + k}: {outcome}"] += 1
        first += len(lines)
        if done.returncode:
            died = signal.Signals(-done.returncode).name if done.returncode < 0 else done.stderr[-500:]
            outcomes["any", f"case {first}: the process died of {died}"] += 1
            first += 1
    return outcomes


@pytest.mark.parametrize(
    ("seed", "cases"), [(0, 300), pytest.param(1, 5040, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_damaged_files(seed, cases):
    outcomes = fuzz(seed, cases)
    wrong = {what: outcome for what, outcome in outcomes.items() if what[1] not in ("correct", "refused")}
    assert not wrong
    assert sum(outcomes.values()) == cases
    for layout in hostile.LAYOUTS:  # damage may lie where it does not matter, or give other events
        assert outcomes[layout, "correct"] > 0
        assert outcomes[layout, "refused"] > cases / len(hostile.LAYOUTS) / 8


def test_a_process_of_the_preparation_that_dies():
    """As of a MATLAB file of which SciPy crashes: it ends, and says so."""
    with pytest.raises(InputError, match=r"planes: a process died, .* at recording 0 \(11\) or one of the next"):
        list(map_in_order(signal.raise_signal, [int(signal.SIGSEGV)], 1, "planes"))
