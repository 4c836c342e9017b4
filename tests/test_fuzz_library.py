"""Calls of the library's public surface, some with arguments that do not fit, give a result or one InputError."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter

import pytest

from tests.conftest import REPOSITORY
from tests.entries import ENTRIES

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *words], cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("seed", "cases"),
    [pytest.param(1, 700, marks=pytest.mark.slow), pytest.param(2, 20_000, marks=pytest.mark.long)],
    ids=["many", "most"],
)
def test_every_call_ends_in_a_result_or_one_error(seed, cases):
    """Call in a process that a wrong read or write ends: every array of a kernel lies beside a closed page."""
    outcomes, first = Counter(), 0
    while first < cases:
        done = run("-m", "tests.fuzz", *map(str, (seed, first, cases)), "--guard")
        lines = re.findall(r"^(\d+): (\w+): (.*)$", done.stdout, re.MULTILINE)
        assert lines or done.returncode < 0, done.stderr  # it began
        for k, name, outcome in lines:
            outcomes[name, outcome if outcome in ("result", "refused") else f"case {k}: {outcome}"] += 1
        first += len(lines)
        if done.returncode:
            died = signal.Signals(-done.returncode).name if done.returncode < 0 else done.stderr[-500:]
            outcomes["any", f"case {first}: the process died of {died}"] += 1
            first += 1
    assert {what: number for what, number in outcomes.items() if what[1] not in ("result", "refused")} == {}
    assert outcomes.total() == cases
    for entry in ENTRIES:  # each was called both ways
        assert outcomes[entry.__name__, "result"] > 0
        assert outcomes[entry.__name__, "refused"] > 0


def test_the_guard_sees_a_wrong_read():
    """Give a kernel a channel just past the weights: only the guard notices."""
    script = """
import numpy as np
from snn.ops import sparse
from tests.guard import Guard
room, out = np.ones((2, 3, 64), np.float32), np.zeros((1, 64), np.float32)  # what lies behind W_SCL may be read
entries = np.array([0, 1]), np.array([3], np.uint32), np.ones(1, np.float32)
for guarded in (False, True):
    if guarded:
        Guard(at_end=1.0).wrap()
    sparse.product_rows(*entries, room[:1], out, 0, 1)
    print("not seen", flush=True)
"""
    done = run("-c", script)
    assert (done.returncode, done.stdout.count("not seen")) == (-signal.SIGSEGV, 1), done.stderr
