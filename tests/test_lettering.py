"""Class names in pictures and on the page: any script, any length, any number of them."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import font_manager
from matplotlib import pyplot as plt

from snn import lettering as letters
from snn import pictures, report
from snn.lettering import LONGEST, columns, lettering, why_numbers

HINDI, IN_STIX_ALONE = "नमस्ते", "ᶁ"
LONG = [f"a long name of a class whose end alone tells which it is, {k}" for k in range(12)]


@pytest.fixture
def bare_system(monkeypatch):
    """Simulate a system that has only the fonts of matplotlib."""
    own = [entry for entry in font_manager.fontManager.ttflist if "mpl-data" in entry.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    letters._fonts.cache_clear()
    yield
    letters._fonts.cache_clear()


@pytest.mark.usefixtures("bare_system")
def test_a_name_that_no_font_can_draw_is_a_number_and_the_reader_is_told():
    names = ("low", HINDI, "")
    assert lettering(names).names == ("low", None, None)
    assert pictures.class_ticks(3, names)["labels"] == ["low", "1", "2"]
    assert pictures.class_name(1, lettering(names).names) == "class 1"
    assert "1 of 3 class names" in why_numbers(names)
    assert report.class_words(names) == why_numbers(names)


def test_nothing_is_said_where_all_names_can_be_drawn():
    assert why_numbers(("low", "é", IN_STIX_ALONE)) == why_numbers(None) == report.class_words(("0", "1")) == ""


@pytest.mark.usefixtures("bare_system")
def test_a_font_that_has_the_character_is_found():
    drawn = lettering(("low", IN_STIX_ALONE))
    assert drawn.names == ("low", IN_STIX_ALONE)
    assert drawn.fonts[-1] == "STIXGeneral"


def test_a_font_installed_since_matplotlib_last_looked_is_found(monkeypatch):
    path = next(entry.fname for entry in font_manager.fontManager.ttflist if entry.fname.endswith("STIXGeneral.ttf"))
    manager = SimpleNamespace(ttflist=[], addfont=lambda path: manager.ttflist.append(found[path]))
    found = {path: next(entry for entry in font_manager.fontManager.ttflist if entry.fname == path)}
    monkeypatch.setattr(font_manager, "fontManager", manager)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [path])
    assert [entry.name for entry in letters._known_fonts()] == ["STIXGeneral"]


@settings(deadline=None, derandomize=True, database=None)  # a busy machine may take any time for an example
@given(st.lists(st.text(), min_size=1, max_size=12))
def test_names_are_short_and_tell_classes_apart(names):
    drawn = [name for name in lettering(names).names if name is not None]
    assert all(columns(name) <= LONGEST + len(": 11") + 2 for name in drawn)  # with a number, isolated
    assert all(name.isprintable() or "\u2068" in name for name in drawn)
    assert len(set(drawn)) == len(drawn)


def test_long_names_keep_both_ends():
    drawn = lettering(LONG).names
    assert drawn[3].startswith("a long")
    assert drawn[3].endswith(" 3")
    assert len(set(drawn)) == len(LONG)
    assert lettering(["x" * 40 + k + "y" * 40 for k in "ab"]).names == ("0: xxxxxxxx…yyyyyyyy", "1: xxxxxxxx…yyyyyyyy")


def test_a_name_read_from_the_right_is_isolated():
    assert lettering(["שלום"]).names == ("\u2068שלום\u2069",)


def drawings(names: list[str]) -> dict[str, plt.Figure]:
    """Return the pictures that show all classes, with made-up results."""
    classes, T = len(names), 10
    target = torch.arange(2 * classes) % classes
    samples = SimpleNamespace(
        output_spikes=torch.zeros(2 * classes, classes),
        fs_right=torch.zeros(2 * classes, T),
        first_step=torch.arange(2 * classes) % T + 1,
        target=target,
        fs_label=target.flip(0),
    )
    confusion = np.eye(classes, dtype=int)
    return {
        "latencies": pictures.draw_latencies(samples, 5.0, names),
        "confusion": pictures.draw_confusion(confusion, "first spike", names),
    }


def test_the_picture_of_delays_counts_a_spike_in_any_step():
    T = 101  # no whole number of bins, which have 3 steps
    zeros = torch.zeros(T, dtype=torch.int64)
    samples = SimpleNamespace(
        output_spikes=torch.zeros(T, 1),
        fs_right=torch.zeros(T, T),
        first_step=torch.arange(1, T + 1),
        target=zeros,
        fs_label=zeros,
    )
    figure = pictures.draw_latencies(samples, 5.0, None)
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == T
    plt.close(figure)


def overlaps(figure: plt.Figure) -> list[tuple[str, str]]:
    """Return the labels of an axis that overlap their neighbours."""
    figure.canvas.draw()
    found = []
    for axis in figure.axes:
        for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
            shown = [label for label in labels if label.get_text()]
            boxes = [label.get_window_extent() for label in shown]
            pairs = zip(shown, shown[1:], boxes, boxes[1:], strict=False)
            found += [(a.get_text(), b.get_text()) for a, b, one, other in pairs if one.overlaps(other)]
    return found


@pytest.mark.filterwarnings("error")  # warnings of missing glyphs, and of a layout that does not fit
@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("$x^{k}_{{0}}$ {k}", 12),
        ("a long name of a class, {k}", 12),
        ("a long name of a class, {k}", 40),
        ("数字 {k}", 40),
        (HINDI + " {k}", 100),
    ],
)
def test_names_are_drawn_apart(name, classes):
    names = [name.replace("{k}", str(k)) for k in range(classes)]
    for figure in drawings(names).values():
        assert overlaps(figure) == []
        assert figure.get_size_inches()[1] < 12
        plt.close(figure)


def test_many_classes_have_numbers_and_the_page_says_so():
    names = [f"word {k}" for k in range(100)]
    assert pictures.class_ticks(100, names)["labels"][:3] == ["0", "5", "10"]
    assert pictures.class_ticks(40, names[:40])["labels"] == names[:40]
    assert "the table gives the names" in report.class_words(names)


@pytest.mark.slow
def test_thousands_of_classes_can_be_painted():
    for figure in drawings([str(k) for k in range(2000)]).values():
        figure.savefig(io.BytesIO(), dpi=20)
        assert max(figure.get_size_inches()) * pictures.DPI < 2**16
        plt.close(figure)


def test_the_page_has_names_as_text_in_any_script_beside_their_numbers():
    names = ["你好", HINDI, "مرحبا", "x" * 300]
    rows = [("1", "50 %")] * 4
    table = report.class_table(names, ("images", "accuracy"), rows)
    assert [row[:2] for row in table.rows] == [(name, str(k)) for k, name in enumerate(names)]
    html = report.render("t", "", [], [report.Section("Classes", tables=[table])])
    for name in names:
        assert f'<td dir="auto">{name}</td>' in html
    assert report.class_table(["0", "1", "2", "3"], ("images", "accuracy"), rows).head == (
        "class",
        "images",
        "accuracy",
    )


def test_runs_in_one_picture_have_their_names():
    curves = {"time_ms": [1, 2], "events": [1, 2]}
    curves |= {f"{code}_accuracy_over_{over}": [0, 1] for code in ("fs", "fr") for over in ("time", "events")}
    runs = ["_digits_fs0.2_tau30_adlif", "_digits_fs0.2_tau30_cuadlif", "训练"]
    figure = pictures.draw_anytime(dict.fromkeys(runs, curves))
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts[:2] == [f"first spike: {runs[0]}", f"firing rate: {runs[0]}"]
    assert len(texts) == 6
    plt.close(figure)
