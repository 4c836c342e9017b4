"""Calls of the library's public surface, some with arguments that do not fit, give a result or one InputError."""

import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.entries import ENTRIES
from tests.programs import ONE_THREAD, count_outcomes


@pytest.mark.parametrize(
    ("seed", "cases", "options"),
    [
        pytest.param(1, 700, ["--guard"], marks=pytest.mark.slow),
        pytest.param(2, 20_000, ["--guard", "--neurons"], marks=pytest.mark.long),
    ],
    ids=["many", "most"],
)
def test_every_call_ends_in_a_result_or_one_error(seed, cases, options):
    """Call in a process that a wrong read or write ends: every array of a kernel lies beside a closed page."""
    outcomes = count_outcomes("tests.fuzz", seed, cases, ("result", "refused"), *options)
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
    words, variables = [sys.executable, "-c", script], os.environ | ONE_THREAD
    done = subprocess.run(words, cwd=REPOSITORY, env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stdout.count("not seen")) == (-signal.SIGSEGV, 1), done.stderr
