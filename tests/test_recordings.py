"""A folder of recordings in the preparation: files are taken, left out or refused, and an interrupted run goes on."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from datasets.prepare import parallel, recordings, wav, writer
from datasets.prepare.journal import Journal
from snn.errors import InputError
from tests.conftest import REPOSITORY
from tests.originals import RATE_HZ, save_sound
from tests.programs import contents

CASES = REPOSITORY.parent / "shared" / "cases"


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """Convert tmp_path/in in this process, which is fast, and return what was said; the files are in tmp_path/out."""

    def run(**words):
        monkeypatch.setattr(wav, "map_in_order", lambda function, tasks, *_: map(function, tasks))
        monkeypatch.setattr(wav, "cochlea", lambda audio, *_: (np.array([0.1], np.float32), np.zeros(1, np.uint16)))
        wanted = {"label_pattern": None, "label_csv": None, "test_share": 0.5, "seed": 0, "processes": 1} | words
        wav.convert_wavs(tmp_path / "in", tmp_path / "out", **wanted)
        return capsys.readouterr().out

    return run


def out(tmp_path, split):
    return contents(tmp_path / "out" / f"out_{split}.h5")


def write_table(tmp_path, rows, header="file,label,split"):
    table = tmp_path / "table.csv"
    table.write_text("\n".join([header, *rows]), "utf-8")
    return table


# what libsndfile reads


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((f"x.{suffix}", {}) for suffix in ("wav", "flac", "ogg", "mp3", "aiff", "w64", "rf64")),
        ("x.wav", {"subtype": "PCM_24"}),
        ("x.wav", {"subtype": "FLOAT"}),
        ("x.wav", {"subtype": "PCM_U8"}),
        ("x.wav", {"format": "WAVEX"}),
        ("x.opus", {"format": "OGG", "subtype": "OPUS"}),
    ],
)
def test_formats(tmp_path, name, how):
    path = save_sound(tmp_path / name, **how)
    audio, rate_hz = wav.read_audio(path)
    assert (rate_hz, audio.dtype, audio.ndim) == (RATE_HZ, np.float32, 1)
    assert len(audio) == 1200
    assert 0.2 < np.abs(audio).max() < 0.6
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])  # as a download that broke off
    with pytest.raises(InputError, match=re.escape(str(path))):
        wav.read_audio(path)


def test_channels_are_averaged(tmp_path):
    both = np.stack([np.full(1000, 0.5), np.full(1000, 0.25)], axis=1)
    soundfile.write(tmp_path / "x.wav", both, 8000)
    np.testing.assert_array_equal(wav.read_audio(tmp_path / "x.wav")[0], np.full(1000, 0.375, np.float32))


def test_a_size_that_the_writer_did_not_know_is_no_damage(tmp_path):
    """Write a file as ffmpeg does to a pipe, and a chunk of odd size without its padding."""
    path = save_sound(tmp_path / "x.wav")
    content = bytearray(path.read_bytes())
    path.write_bytes(content[:4] + b"\xff" * 4 + content[8:40] + b"\xff" * 4 + content[44:])
    assert len(wav.read_audio(path)[0]) == 1200
    path.write_bytes(content[:4] + (len(content) - 7).to_bytes(4, "little") + content[8:])
    assert len(wav.read_audio(path)[0]) == 1200


def sound_of(samples, rate_hz=8000):
    return lambda path: soundfile.write(path, np.asarray(samples, np.float32), rate_hz, subtype="FLOAT")


BAD = {
    "of length zero": (sound_of([]), "lasts 0 ms"),
    "short": (sound_of(np.ones(400)), "lasts 50 ms"),
    "silent": (sound_of(np.zeros(4000)), "silent or not finite"),
    "not finite": (sound_of([0.5, np.nan] * 500), "silent or not finite"),
    "empty": (lambda path: path.write_bytes(b""), "damaged, or of another format"),
    "text": (lambda path: path.write_text("404 not found"), "damaged, or of another format"),
    "long": (sound_of(np.ones(1201), 2), "lasts more than 600 s"),
    "fast": (sound_of(np.ones(1200), 2_000_000), "2000000 Hz"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_recordings(tmp_path, convert, kind):
    """One line with the file and the reason; or it is left out, and named."""
    write, reason = BAD[kind]
    for i in range(4):
        save_sound(tmp_path / "in" / f"{'ab'[i % 2]}_{i}.wav", i)
    write(tmp_path / "in" / "b_9.wav")
    with pytest.raises(
        InputError, match=f"1 of 5 recordings cannot be used: .*in/b_9.wav.*{reason}.*--skip-bad"
    ) as one:
        convert()
    assert "\n" not in str(one.value)
    assert not (tmp_path / "out").exists()
    said = convert(skip_bad=True)
    assert "took 4 WAV; left out 1: 1 bad\n" in said
    assert re.search(f"left out: .*in/b_9.wav.*{reason}", said)


def test_all_bad_recordings_are_found_at_once(tmp_path, convert):
    for i in range(9):
        BAD["silent"][0](save_sound(tmp_path / "in" / f"a_{i}.wav", i))
    with pytest.raises(InputError, match=r"9 of 9 recordings .*a_0.wav.*a_4.wav.*; and 4 more") as refusal:
        convert()
    assert "a_5" not in str(refusal.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"none\.wav cannot be read as WAV, .*no such file"):
        wav.read_audio(tmp_path / "none.wav")


# what a folder holds


def test_what_is_left_out_is_counted(tmp_path, convert):
    folder = tmp_path / "in"
    for i in range(4):
        save_sound(folder / f"{'ab'[i % 2]}_{i}.{('wav', 'wav', 'FLAC', 'mp3')[i]}", i)
    for name in (".DS_Store", "._a_0.wav", "notes.txt", "more.txt", "LICENSE", "a_5.m4a"):
        (folder / name).write_bytes(b"\0\5\26\7")
    (folder / ".git").mkdir()
    save_sound(folder / ".git" / "c_1.wav")
    (folder / "a_gone.wav").symlink_to("nowhere")
    (folder / "d_1.wav").mkdir()
    os.mkfifo(folder / "e_1.wav")
    said = convert(seed=1)
    assert (
        "took 2 WAV, 1 FLAC, 1 MP3; left out 9: 3 hidden, 2 .txt, 1 .m4a, 1 broken link, 1 special file, "
        "1 without a suffix\n" in said
    )
    assert "4 recordings of 2 classes (a, b)" in said


def test_linked_folders_are_followed_once(tmp_path):
    folder = tmp_path / "in"
    save_sound(folder / "real" / "a_1.wav")
    save_sound(tmp_path / "store" / "deep" / "b_1.wav")
    (folder / "elsewhere").symlink_to(tmp_path / "store")
    (folder / "again").symlink_to("real")  # sorts before what it leads to
    (folder / "real" / "round").symlink_to("..")
    (tmp_path / "store" / "up").symlink_to(tmp_path)  # to what holds the folder itself
    (folder / "a_2.wav").symlink_to(save_sound(tmp_path / "single.wav", 1))
    (folder / "loop").symlink_to("loop")
    files, left_out = recordings.files_below(folder)
    names = [path.relative_to(folder).as_posix() for path in files]
    assert names == ["a_2.wav", "elsewhere/deep/b_1.wav", "real/a_1.wav"]
    assert left_out == {"linked folder that was read already": 3, "broken link": 1}


def test_classes_from_file_names_say_so_where_there_are_folders(tmp_path, convert):
    for i in range(4):
        save_sound(tmp_path / "in" / f"{('yes', 'no')[i % 2]}" / f"{'ab'[i // 2]}_{i}.wav", i)
    assert "not from the folders (no, yes); --label-pattern '(?P<label>[^/]+)/' uses the folders" in convert()
    assert "classes (no, yes)" in convert(label_pattern=recordings.FOLDER)
    save_sound(tmp_path / "in" / "yes" / "plain.wav", 9)
    with pytest.raises(InputError, match=r"plain.wav does not match .* the folder as the class: --label-pattern"):
        convert()


# Speech Commands

SPEAKERS = "0a7c2a8d 1b88bf70 2aca1e72 3b4f8f24 5e1b34a6 9e6bb505".split()


@pytest.fixture
def commands(tmp_path):
    folder = tmp_path / "in"
    for k, word in enumerate(("yes", "no", "up")):
        for i, speaker in enumerate(SPEAKERS):
            save_sound(folder / word / f"{speaker}_nohash_0.wav", 10 * k + i)
    save_sound(folder / "_background_noise_" / "running_tap.wav", 99)
    for name, i in (("validation_list.txt", 4), ("testing_list.txt", 5)):
        (folder / name).write_text("".join(f"{word}/{SPEAKERS[i]}_nohash_0.wav\n" for word in ("yes", "no", "up")))
    (folder / "README.md").write_text("")
    (folder / "LICENSE").write_text("")
    return folder


@pytest.mark.parametrize("pattern", [None, recordings.FOLDER])
def test_speech_commands(tmp_path, commands, convert, pattern):
    said = convert(label_pattern=pattern)
    assert "took 18 WAV; left out 3: 1 .md, 1 in _background_noise_, 1 without a suffix" in said
    assert "split by testing_list.txt and validation_list.txt" in said
    files = {split: out(tmp_path, split) for split in recordings.SPLITS}
    assert {split: len(file["labels"]) for split, file in files.items()} == {"train": 12, "validation": 3, "test": 3}
    assert all(file["keys"] == ["no", "up", "yes"] for file in files.values())
    speakers = [file["speakers"] for file in files.values()]
    assert speakers == ([None] * 3 if pattern else [[0, 1, 2, 3] * 3, [4] * 3, [5] * 3])


def test_speech_commands_without_lists_by_speaker(tmp_path, commands, convert):
    for name in recordings.LISTS.values():
        (commands / name).unlink()
    assert "speakers are in both files; --test-by speaker" in convert(test_share=0.3)
    said = convert(test_share=0.3, test_by="speaker")
    train, test = (set(out(tmp_path, split)["speakers"]) for split in ("train", "test"))
    assert (len(train), len(test), train & test) == (4, 2, set())
    assert "--test-by" not in said
    with pytest.raises(InputError, match="no speakers are known"):
        convert(label_pattern=recordings.FOLDER, test_by="speaker")


def test_speech_commands_in_a_folder_below_and_as_flac(tmp_path, commands, convert):
    for path in commands.glob("[!_]*/*.wav"):
        soundfile.write(path.with_suffix(".flac"), *soundfile.read(path))
        path.unlink()
    commands.rename(tmp_path / "v2")
    commands.mkdir()
    (tmp_path / "v2").rename(commands / "v2")
    assert "12 train, 3 test, 3 validation" in convert()
    (commands / "v2" / "up" / "9e6bb505_nohash_0.flac").unlink()
    (tmp_path / "out" / "out_train.h5").unlink()
    assert "1 of the 6 recordings they list are not there" in convert()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "testing_list.txt").unlink(), "needs one testing_list.txt"),
        (lambda folder: save_sound(folder / "up" / "mine.wav", 70), "mine.wav does not match the label pattern"),
        (
            lambda folder: (folder / "testing_list.txt").write_bytes((folder / "validation_list.txt").read_bytes()),
            "yes/5e1b34a6_nohash_0.wav is in validation_list.txt too",
        ),
        (lambda folder: (folder / "testing_list.txt").write_bytes(b"\xff\xfe\0"), "cannot be read as a list"),
        (lambda folder: (folder / "testing_list.txt").write_text(""), ".* has no recording for the test file"),
    ],
    ids=["one list", "a stranger", "in both lists", "no text", "empty"],
)
def test_speech_commands_that_are_refused(commands, convert, change, message):
    change(commands)
    with pytest.raises(InputError, match=message):
        convert()


# labels and splits


@pytest.fixture
def four(tmp_path):
    for i, name in enumerate(("low_0", "low_1", "high_0", "high_1")):
        save_sound(tmp_path / "in" / f"{name}.wav", i)
    return tmp_path


GOOD = ["low_0.wav,low,train", "low_1.wav,low,test", "high_0.wav,high,train", "high_1.wav,high,test"]


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
        assert (out(four, split)["labels"], out(four, split)["keys"]) == ([1, 0], ["high", "low"])


def test_names_have_one_spelling(four, convert):
    """A label in two Unicode forms; and a file that macOS wrote in the other form."""
    (four / "in" / "low_0.wav").rename(four / "in" / "gru\u0308n.wav")
    rows = ["gr\u00fcn.wav,gr\u00fcn,train", "low_1.wav,gru\u0308n ,test", *GOOD[2:]]
    convert(label_csv=write_table(four, rows))
    assert out(four, "test")["keys"] == ["gr\u00fcn", "high"]
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


@pytest.mark.skipif(not CASES.exists(), reason="needs ../shared/cases")
@pytest.mark.parametrize("name", ["value_spaces", "twice", "test_only_class"])
def test_shared_tables(four, convert, name):
    table = CASES / "csv" / "tables" / f"{name}.csv"
    if name == "value_spaces":
        assert "2 classes (high, low)" in convert(label_csv=table)
    else:
        with pytest.raises(InputError, match=r"in line 2 already|class 'high'"):
            convert(label_csv=table)


@pytest.mark.skipif(not CASES.exists(), reason="needs ../shared/cases")
@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("c_gsc/in", "3 classes (no, up, yes)"),
        ("wav_hidden/in", "took 8 WAV; left out 5: 5 hidden"),
        ("wav_other_formats/in", "took 8 WAV; left out 3: 3 bad"),
        ("wav_zero_length", "took 4 WAV; left out 2: 1 bad, 1 without a suffix"),
    ],
)
def test_shared_folders(tmp_path, convert, case, said):
    (tmp_path / "in").symlink_to(CASES / case)
    assert said in convert(skip_bad=True, test_share=0.3)


# one sound under two names


def test_one_sound_under_two_names(four, convert):
    """It is one sound in whatever format; copies stay in one split, and are said."""
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
    """The copy for training goes."""
    (four / "in" / "low_2.wav").write_bytes((four / "in" / "low_1.wav").read_bytes())
    save_sound(four / "in" / "low_3.wav", 9)
    table = write_table(four, [*GOOD, "low_2.wav,low,train", "low_3.wav,low,train"])
    with pytest.raises(InputError, match=r"1 of 6 .*low_2\.wav \(train\) is the same sound as .*low_1\.wav \(test\)"):
        convert(label_csv=table)
    assert "left out: " in convert(label_csv=table, skip_bad=True)
    assert (len(out(four, "train")["labels"]), len(out(four, "test")["labels"])) == (3, 2)


def test_every_class_keeps_a_training_recording():
    """Also where many classes are rare and no seed would do by itself."""
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


def test_order_of_names():
    assert recordings.sorted_names(["b", "10", "9", "09", "b", "a"]) == ["09", "9", "10", "a", "b"]
    assert len(recordings.sorted_names(["7" * 5000, "8" * 5000])) == 2  # more digits than Python reads as a number


def test_more_speakers_than_16_bits_hold(tmp_path):
    for speaker in (65_535, 65_536):
        events = np.zeros(1, np.float32), np.zeros(1, np.uint16)
        writer.write_events(tmp_path / "x.h5", [events], [0], ["a"], {}, [speaker])
        assert contents(tmp_path / "x.h5")["speakers"] == [speaker]


def test_all_bad_and_skipped(tmp_path, convert):
    BAD["silent"][0](save_sound(tmp_path / "in" / "a_1.wav"))
    with pytest.raises(InputError, match="has no recording for the train file"):
        convert(skip_bad=True)


# interrupted conversions


def test_a_conversion_goes_on_where_it_was_interrupted(four, convert, monkeypatch):
    heard = []

    def interrupted(audio, rate_hz, seed):
        if len(heard) == 2:
            raise KeyboardInterrupt
        heard.append(seed)
        return np.array([seed[1]], np.float32), np.array([seed[1]], np.uint16)

    monkeypatch.setattr(wav, "map_in_order", lambda function, tasks, *_: map(function, tasks))
    with monkeypatch.context() as patched:
        patched.setattr(wav, "cochlea", interrupted)
        with pytest.raises(KeyboardInterrupt, match="2 of 4 recordings are kept; the same command continues"):
            wav.convert_wavs(four / "in", four / "out", None, None, 0.5, 0, 1)
    (journal,) = (four / "out").iterdir()
    with journal.open("ab") as file:  # and was killed while it wrote
        file.write(journal.read_bytes()[-100:-40])
    with pytest.raises(InputError, match=r"out\.unfinished holds .*\(seed 0, now 1\): repeat that command"):
        convert(seed=1)
    assert "2 of 4 recordings were converted before: continuing" in convert()
    times = [float(row[0]) for split in ("train", "test") for row in out(four, split)["times"]]
    assert times == pytest.approx([0, 1, 0.1, 0.1])
    assert sorted(path.name for path in (four / "out").iterdir()) == ["out_test.h5", "out_train.h5"]
    monkeypatch.setattr(wav, "write_events", None)  # what is complete is not made again
    assert "4 recordings of 2 classes" in convert()


def test_a_journal_that_ended_within_its_first_line_begins_anew(tmp_path):
    Journal(tmp_path / "x", {"seed": 1})._file.close()
    content = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(content[:5])
    assert len(Journal(tmp_path / "x", {"seed": 1})) == 0
    assert (tmp_path / "x").read_bytes() == content


@pytest.mark.parametrize("cut", [1, 40, 130, 200, 330])
def test_a_journal_keeps_whole_results(tmp_path, cut):
    path, plan = tmp_path / "x.unfinished", {"seed": 1}
    results = [(np.arange(n, dtype=np.float32), np.arange(n, dtype=np.uint16)) for n in (3, 0, 5)]
    journal = Journal(path, plan)
    for result in results:
        journal.append(*result)
    with pytest.raises(InputError, match="another process is writing it"):
        Journal(path, plan)
    journal._file.close()
    path.write_bytes(path.read_bytes()[:-cut])
    again = Journal(path, plan)
    assert len(again) == 2
    for result in results[2:]:
        again.append(*result)
    for got, want in zip(again, results, strict=True):
        assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(got, want, strict=True))
    again.remove()
    assert not path.exists()


@pytest.mark.parametrize("notes", ["my notes\n", "my notes", "[1]\n", "\0" * 20_000])
def test_a_journal_of_something_else(tmp_path, notes):
    path = tmp_path / "x.unfinished"
    path.write_text(notes)
    with pytest.raises(InputError, match="is not an unfinished conversion"):
        Journal(path, {})
    assert path.read_text() == notes
    with pytest.raises(InputError, match="cannot be written"):
        Journal(path / "below", {})


def test_a_full_disk_leaves_what_is_done(tmp_path):
    """In a process of its own, whose files may not grow beyond 1,000 bytes."""
    script = (
        "import resource, sys, numpy, pathlib; from datasets.prepare.journal import Journal\n"
        "from snn.cli import run\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "def main():\n"
        "    journal = Journal(pathlib.Path(sys.argv[1]), {})\n"
        "    for _ in range(9):\n        journal.append(numpy.zeros(40))\n"
        "run(main)\n"
    )
    words = [sys.executable, "-c", script, str(tmp_path / "x.unfinished")]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "x.unfinished cannot be written (File too large): finished work is kept" in done.stderr
    assert len(Journal(tmp_path / "x.unfinished", {})) == 1


# processes


def test_no_thread_outlives_the_work():
    """One that did said "Exception ignored in: threading ... Bad file descriptor" as the program ended."""

    def threads():
        return {thread for thread in threading.enumerate() if type(thread).__name__ != "TMonitor"}  # tqdm's

    before = threads()
    assert list(parallel.map_in_order(abs, range(-9, 0), 2, "x")) == list(range(9, 0, -1))
    assert threads() <= before
    some = parallel.map_in_order(abs, range(-9, 0), 2, "x")
    assert next(some) == 9
    some.close()
    assert threads() <= before


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, time\n"
        "from datasets.prepare.parallel import map_in_order\n"
        "def task(_):\n    time.sleep(0.05)\n    return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    for pid in map_in_order(task, range(10000), 1, 'x'):\n        print(pid, flush=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    parent = subprocess.Popen(
        [sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    worker = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker lives on")
