"""Labels and splits of a folder of recordings: from a table, drawn, and where one sound has two names."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from datasets.prepare import recordings, writer
from snn.errors import InputError
from tests.conftest import REPOSITORY
from tests.originals import save_sound
from tests.programs import contents, converted

CASES = REPOSITORY.parent / "shared" / "cases"
GOOD = ["low_0.wav,low,train", "low_1.wav,low,test", "high_0.wav,high,train", "high_1.wav,high,test"]


def write_table(tmp_path, rows, header="file,label,split"):
    table = tmp_path / "table.csv"
    table.write_text("\n".join([header, *rows]), "utf-8")
    return table


@pytest.mark.parametrize(
    ("rows", "header"),
    [
        (GOOD, "file,label,split"),
        ([row.replace("low,", "low ,").replace(",high", ",  high") for row in GOOD], "file, label, split"),
        ([row.replace(",train", ",TRAIN") for row in GOOD], "File,Label,Split"),
        ([row.replace(",", ";") for row in GOOD], "file;label;split"),
        ([row.replace("low_0", "./../in/low_0") + "," for row in GOOD], "file,label,split,"),
        (["", *GOOD, ""], "file,label,split"),
    ],
    ids=["plain", "blanks", "capitals", "semicolons", "paths", "empty lines"],
)
def test_tables_that_mean_the_same(four, convert, rows, header):
    convert(label_csv=write_table(four, rows, header))
    for split in ("train", "test"):
        assert (converted(four, split)["labels"], converted(four, split)["keys"]) == ([1, 0], ["high", "low"])


def test_names_have_one_spelling(four, convert):
    """Use a label in two Unicode forms, and a file whose name macOS wrote in the other form."""
    (four / "in" / "low_0.wav").rename(four / "in" / "gru\u0308n.wav")
    rows = ["gr\u00fcn.wav,gr\u00fcn,train", "low_1.wav,gru\u0308n ,test", *GOOD[2:]]
    convert(label_csv=write_table(four, rows))
    assert converted(four, "test")["keys"] == ["gr\u00fcn", "high"]
    assert "not used: room" in convert(
        label_csv=write_table(four, [f"{row},1" for row in rows], "file,label,split,room")
    )


def test_classes_that_look_alike_and_classes_that_are_not_tested(four, convert):
    said = convert(label_csv=write_table(four, [GOOD[0], GOOD[1], GOOD[2], "high_1.wav,High,train"]))
    assert "these count as different classes: High, high\n" in said
    assert "there is no test recording of the class High, high\n" in said
    assert "class" not in convert(label_csv=write_table(four, GOOD)).splitlines()[0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*GOOD, "low_0.wav,low,test"], r"line 6: .*low_0\.wav is in line 2 already"),
        ([*GOOD, "./low_0.wav,low,train"], r"line 6: .*low_0\.wav is in line 2 already; drop"),
        ([*GOOD, "low_0.wav,high,train"], r"line 6: .* is in line 2 already: as 'low' and as 'high'"),
        (
            ["low_0.wav,low,train", "high_0.wav,high,test"],
            r"the class 'high' has no recording for training, but .*high_0\.wav is for test",
        ),
        (["low_0.wav,low,train", *GOOD[1:2], "high_0.wav,high,validation"], r"'high' .* is for validation"),
        ([GOOD[0].replace("low,", "\u3000,")], "the label is empty"),
        (["a" * 5000 + ".wav,low,train"], "line 2: .* does not exist"),
        ([GOOD[0].replace("low,", "l\0w,")], "(characters that cannot be stored|cannot be read as CSV)"),
    ],
    ids=["in both", "twice", "two labels", "test alone", "validation alone", "blank", "long name", "control character"],
)
def test_tables_that_are_refused(four, convert, rows, message):
    with pytest.raises(InputError, match=message):
        convert(label_csv=write_table(four, rows))


def test_a_speaker_is_a_subject(four, convert):
    header = "file,label,split,subject,speaker"
    convert(label_csv=write_table(four, [f"{row},a,a" for row in GOOD], header))
    with pytest.raises(InputError, match="line 5: the subject is 'x' and the speaker 'y', which should be the same"):
        convert(label_csv=write_table(four, [*(f"{row},a,a" for row in GOOD[:3]), f"{GOOD[3]},x,y"], header))


@pytest.mark.skipif(not CASES.exists(), reason="needs ../shared/cases")
@pytest.mark.parametrize("name", ["value_spaces", "twice", "test_only_class"])
def test_shared_tables(four, convert, name):
    table = CASES / "csv" / "tables" / f"{name}.csv"
    if name == "value_spaces":
        assert "2 classes (high, low)" in convert(label_csv=table)
    else:
        with pytest.raises(InputError, match=r"in line 2 already|class 'high'"):
            convert(label_csv=table)


# one sound under two names


def test_one_sound_under_two_names(four, convert):
    """The format does not matter; copies stay in one split and are reported."""
    soundfile.write(four / "in" / "low_7.flac", *soundfile.read(four / "in" / "low_1.wav"))
    split_of = set()
    for seed in range(6):
        said = convert(seed=seed)
        assert "1 recording exists under another name too: " in said
        split_of |= set(re.findall(r"\d train|\d test", said))
    assert split_of == {"2 test", "3 train", "3 test", "2 train"}


def test_one_sound_with_two_labels(four, convert):
    path = four / "in" / "high_7.wav"
    path.write_bytes((four / "in" / "low_0.wav").read_bytes())
    with pytest.raises(InputError, match=r"2 of 5 .*high_7\.wav \(high\) is the same sound as .*low_0\.wav \(low\)"):
        convert()
    save_sound(four / "in" / "low_2.wav", 8)
    save_sound(four / "in" / "high_2.wav", 9)
    assert "left out 2: 2 bad" in convert(skip_bad=True)


def test_one_sound_in_training_and_test(four, convert):
    """The copy for training is left out."""
    (four / "in" / "low_2.wav").write_bytes((four / "in" / "low_1.wav").read_bytes())
    save_sound(four / "in" / "low_3.wav", 9)
    table = write_table(four, [*GOOD, "low_2.wav,low,train", "low_3.wav,low,train"])
    with pytest.raises(InputError, match=r"1 of 6 .*low_2\.wav \(train\) is the same sound as .*low_1\.wav \(test\)"):
        convert(label_csv=table)
    assert "left out: " in convert(label_csv=table, skip_bad=True)
    assert (len(converted(four, "train")["labels"]), len(converted(four, "test")["labels"])) == (3, 2)


def test_every_class_keeps_a_training_recording():
    """This holds even if many classes are so rare that no seed alone would do."""
    members = [recordings.Recording(Path(f"{i}.wav"), str(i // 2), str(i % 7)) for i in range(200)]
    for groups in ([str(i) for i in range(200)], [member.speaker for member in members]):
        drawn = recordings.draw_split(members, groups, 0.4, seed=0)
        splits = recordings.by_split(drawn, Path("in"))
        assert len(splits["test"]) == pytest.approx(80, abs=9)
    assert recordings.shared_speakers(splits) == []


def test_what_is_drawn_does_not_depend_on_copies_there_are_none_of():
    """The split of sets that were prepared before stays as it was."""
    members = [recordings.Recording(Path(f"{i}.wav"), "a") for i in range(50)]
    drawn = recordings.draw_split(members, [str(i) for i in range(50)], 0.2, seed=3)
    order = np.random.default_rng(3).permutation(50)
    assert [i for i, recording in enumerate(drawn) if recording.split == "test"] == sorted(order[:10].tolist())


def test_more_speakers_than_16_bits_hold(tmp_path):
    for speaker in (65_535, 65_536):
        events = np.zeros(1, np.float32), np.zeros(1, np.uint16)
        writer.write_events(tmp_path / "x.h5", [events], [0], ["a"], {}, [speaker])
        assert contents(tmp_path / "x.h5")["speakers"] == [speaker]
