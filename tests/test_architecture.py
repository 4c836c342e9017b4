"""Layer lists as words."""

import pytest

from snn.architecture import Conv, Full, Pool, parse
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
    with pytest.raises(InputError, match="'P2': nothing but fully connected"):
        parse(["10F", "P2"])
