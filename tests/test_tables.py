"""Tables: one wording and one rounding for the terminal and the page."""

import pytest

from snn import tables
from snn.report import Column, Subject, runs_table
from snn.tables import DASH, Table
from tests.networks import toy_config

NUMBERS = Table("Speed", ("", "one", "another"), [("a long name", "1", "22 %"), ("b", "333.5", DASH)])


def test_numbers_end_on_the_right_and_words_begin_on_the_left():
    assert NUMBERS.text().splitlines() == [
        "Speed",
        "               one  another",
        "a long name      1     22 %",
        "b            333.5        –",
    ]
    words = Table("", (), [("commit", "abc"), ("machine", "two words")], is_words=True)
    assert words.text().splitlines() == ["commit   abc", "machine  two words"]


def test_the_page_has_the_same_cells_with_nothing_taken_for_markup():
    html = NUMBERS._replace(rows=[("<b>", "1 & 2", DASH)]).html()
    assert '<caption>Speed</caption><thead><tr><th scope="col"></th><th scope="col">one</th>' in html
    assert '<td dir="auto">&lt;b&gt;</td><td dir="auto">1 &amp; 2</td><td dir="auto">–</td>' in html
    assert "words" not in html
    assert 'class="words"' in Table("", (), [("a", "b")], is_words=True).html()
    assert "<caption>" not in Table("", (), [("a", "b")]).html()


def test_tables_without_rows_are_left_out():
    assert tables.text([NUMBERS._replace(rows=[]), NUMBERS, NUMBERS]) == f"{NUMBERS.text()}\n\n{NUMBERS.text()}"


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (0.123456, "0.1235"), (70.0, "70"), (999.96, "1000"), (1234.5, "1,234"), (1e7, "10,000,000")],
)
def test_any_number_has_four_digits(value, words):
    assert tables.number(value) == words
    assert tables.number(value, "ms") == f"{words} ms"


def test_what_does_not_exist_is_a_dash():
    assert tables.number(None) == tables.number(None, "ms") == tables.percent(None) == DASH
    assert tables.mean_and_std([1.0, None], 2) == DASH


def test_runs_are_averaged_over_the_seeds_of_one_configuration(tmp_path):
    """A second checkpoint of the same seed begins a group of its own; a single network has no mean.

    The configurations of the trainings count, not the one that all are tested with, nor where their data were.
    """
    names = ("a/best.pt", "a/last.pt", "b/best.pt", "b/last.pt", "c/best.pt")
    configs = [toy_config(seed) for seed in (0, 0, 1, 1)] + [toy_config(2, dropout=0.5)]
    configs[2] = configs[2].model_copy(update={"data": configs[2].data.model_copy(update={"path": "elsewhere"})})
    accuracies = (80.0, 60.0, 82.0, 61.0, 90.0)
    tested = [
        (Subject(tmp_path / name, toy_config(7), cfg, {}, tmp_path), {"accuracy": accuracy, "delay": None})
        for name, cfg, accuracy in zip(names, configs, accuracies, strict=True)
    ]
    table = runs_table(tested, [Column("accuracy %", "accuracy", 1), Column("delay ms", "delay", 0)])
    assert table.head == ("run", "seed", "accuracy %", "delay ms")
    assert [row[:3] for row in table.rows[:5]] == [
        ["a", "0", "80.0"],
        ["a/last.pt", "0", "60.0"],
        ["b", "1", "82.0"],
        ["b/last.pt", "1", "61.0"],
        ["c", "2", "90.0"],
    ]
    name = "mean ± std, toy_fs0.2_tau5_adlif"
    assert table.rows[5:] == [[name, "2 seeds", "81.0 ± 1.4", DASH], [name, "2 seeds", "60.5 ± 0.7", DASH]]
