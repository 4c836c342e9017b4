"""Layer lists as words."""

import pytest

from snn.architecture import Conv, Full, Pool, parse, shapes
from snn.errors import InputError


def test_every_word():
    assert parse("64C3 32C5S2 P2 A3 512F 256R".split()) == (
        Conv(64, 3, 1),
        Conv(32, 5, 2),
        Pool(2, is_average=False),
        Pool(3, is_average=True),
        Full(512, is_recurrent=False),
        Full(256, is_recurrent=True),
    )
    assert parse([]) == ()


@pytest.mark.parametrize("word", ["64", "C3", "64c3", "0C3", "P0", "64C3S0", "F", "64C4", "64C3 ", ""])
def test_what_is_no_word_is_named(word):
    with pytest.raises(InputError, match=f"layer '{word}'"):
        parse(["64C3", word])


def test_order():
    with pytest.raises(InputError, match="'P2': only fully connected"):
        parse(["10F", "P2"])


def test_shapes_of_the_published_networks():
    """Find the paper's flat sizes, 8192 and 8064: a stride rounds up, and a pool leaves out partial windows."""
    gesture = shapes(["64C3", "128C3", "P2", "128C3", "P2", "128R"], (2, 32, 32))
    assert gesture[-2:] == [(128, 8, 8), (128,)]
    plane = shapes(["32C5S2", "64C3", "P2", "128C3", "P2", "256R"], (2, 60, 76))
    assert plane == [(32, 30, 38), (64, 30, 38), (64, 15, 19), (128, 15, 19), (128, 7, 9), (256,)]
    assert shapes(["16F"], (2, 5, 5)) == [(16,)]
