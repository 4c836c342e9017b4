"""Speech, digits, WAV folders and the command line that makes event files of them."""

import errno
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from threading import Thread

import h5py
import numpy as np
import pytest
from scipy.io import wavfile

from datasets import readers
from datasets.prepare import digits, make_if_missing, recordings, speech, wav, writer
from snn.errors import InputError
from tests.conftest import REPOSITORY, make_events, write_shd
from tests.programs import contents, prepare


def save_tone(path, frequency_hz=1000, duration_s=0.2, rate_hz=16_000, dtype=np.int16):
    """Save a tone. Each frequency is another sound: the same sound under two names is refused or reported."""
    wave = np.sin(2 * np.pi * frequency_hz * np.arange(round(duration_s * rate_hz)) / rate_hz)
    path.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(path, rate_hz, (wave * 20_000).astype(dtype))


def test_words_are_spoken_and_trimmed():
    audio, rate_hz = speech.synthesise("seven", "en", "f2", 50, 175)
    assert rate_hz == 22_050
    assert audio.dtype == np.float32
    assert 0.25 < len(audio) / rate_hz < 0.7
    peak = np.abs(audio).max()
    assert 0.05 < peak <= 1
    assert min(abs(audio[0]), abs(audio[-1])) > speech.SILENCE * peak
    slow, _ = speech.synthesise("seven", "en", "f2", 50, 100)
    assert len(slow) > 1.2 * len(audio)


def test_pitch_and_language_change_the_sound():
    def fundamental_hz(pitch):
        audio, rate_hz = speech.synthesise("no", "en", "f2", pitch, 100)
        middle = audio[len(audio) // 3 : 2 * len(audio) // 3]
        spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), n=rate_hz))  # bins of 1 Hz
        return 50 + spectrum[50:350].argmax()

    assert fundamental_hz(90) > 1.5 * fundamental_hz(10)
    english, german = (speech.synthesise("die", language, "m1", 50, 175)[0] for language in ("en", "de"))
    assert abs(len(english) - len(german)) > 100


@pytest.mark.parametrize(("language", "variant"), [("xx", "m1"), ("en", "nobody")])
def test_unknown_voices_are_refused(language, variant):
    with pytest.raises(InputError, match=r"choose from|use a code"):
        speech.synthesise("one", language, variant, 50, 175)


def test_ctrl_c_while_a_word_is_spoken_is_not_lost(monkeypatch):
    as_array, once = np.ctypeslib.as_array, iter([signal.SIGINT])  # a second one could end another test

    def interrupted(*part):
        for number in once:
            signal.raise_signal(number)
        return as_array(*part)

    monkeypatch.setattr(np.ctypeslib, "as_array", interrupted)
    with pytest.raises(KeyboardInterrupt):
        speech.synthesise("one", "en", "f2", 50, 175)


def test_a_word_after_ctrl_c_as_another_begins(monkeypatch):
    """The thread that speaks has started, but its executor does not know it yet and so does not wait for it."""
    start = Thread.start

    def interrupted(thread):
        start(thread)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):  # which keeps no frame, unlike pytest.raises
        patch.setattr(Thread, "start", interrupted)
        speech.synthesise("nineteen thousand " * 20, "en", "f2", 50, 80)
    audio, rate_hz = speech.synthesise("one", "en", "f2", 50, 175)
    assert 0.1 < len(audio) / rate_hz < 1


def test_voices_are_held_out_whole():
    train, test = digits.plan(seed=3, voices=12, utterances=2)
    assert len(train) == 10 * 20 * 2
    assert len(test) == 2 * 20 * 2
    assert not {u.voice for u in train} & {u.voice for u in test}
    assert len({u.voice for u in train}) == 10
    assert len({u.seed for u in train + test}) == len(train + test)
    for split in (train, test):
        assert np.all(np.bincount([u.label for u in split]) == len(split) / 20)
    assert len({(u.pitch, u.rate_words_per_min) for u in train}) > 300
    assert digits.plan(seed=4, voices=12, utterances=2)[0] != train


def test_every_voice_says_the_same_again():
    plan = digits.plan(seed=0, voices=104, utterances=1)
    everything = [utterance for split in plan for utterance in split if utterance.label % 5 == 0]
    spoken = digits.speak(everything)
    time.sleep(1)  # espeak-ng's own seed is the time in seconds
    again = digits.speak(everything)
    differ = {
        speech.variants()[utterance.voice]
        for utterance, (audio, _), (audio_again, _) in zip(everything, spoken, again, strict=True)
        if not np.array_equal(audio, audio_again)
    }
    assert len(spoken) == 104 * 4
    assert differ == set()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make a tiny `digits` by two processes."""
    folder = tmp_path_factory.mktemp("digits")
    done = prepare("digits", "--out", folder, "--voices", 2, "--utterances", 1, "--processes", 2)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress bar where there is no terminal
    return folder


def test_digits_have_the_layout_of_shd(made):
    assert sorted(path.name for path in made.iterdir()) == ["digits_test.h5", "digits_train.h5"]
    train, test = (contents(made / f"digits_{split}.h5") for split in ("train", "test"))
    for data in (train, test):
        assert data["labels"] == list(range(20))
        assert len(data["times"]) == len(data["units"]) == 20
        assert data["times"][0].dtype == np.float32
        assert data["units"][0].dtype == np.uint16
        assert [data["keys"][i] for i in (0, 9, 10, 19)] == ["zero", "nine", "null", "neun"]
        for times_s, units in zip(data["times"], data["units"], strict=True):
            assert 500 < len(times_s) == len(units) < 15_000
            assert np.all(np.diff(times_s) >= 0)
            assert units.max() < 700
    assert set(train["speakers"]).isdisjoint(test["speakers"])


@pytest.mark.slow
def test_digits_do_not_depend_on_the_number_of_processes(made, tmp_path):
    digits.make_digits(tmp_path, seed=0, voices=2, utterances=1, processes=1)
    for path in made.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_digits_are_made_once(made, monkeypatch):
    def fail(*_):
        raise AssertionError("made again")

    monkeypatch.setattr(digits, "map_in_order", fail)
    digits.make_digits(made, seed=0, voices=2, utterances=1, processes=1)
    for changed in ({"seed": 1}, {"voices": 3}, {"utterances": 2}):
        with pytest.raises(AssertionError, match="made again"):
            digits.make_digits(made, **({"seed": 0, "voices": 2, "utterances": 1, "processes": 1} | changed))


@pytest.mark.parametrize("changed", [{"voices": 1}, {"voices": 1000}, {"utterances": 0}, {"seed": -1}])
def test_digits_refuse_values_out_of_range(changed, tmp_path):
    with pytest.raises(InputError, match=r"is -?[0-9]+: choose"):
        digits.make_digits(tmp_path, **({"seed": 0, "voices": 2, "utterances": 1, "processes": 1} | changed))


def test_failed_writing_leaves_nothing(tmp_path):
    def recordings():
        yield np.zeros(3), np.zeros(3)
        raise KeyboardInterrupt

    path = tmp_path / "x.h5"
    path.write_bytes(b"older")
    with pytest.raises(KeyboardInterrupt):
        writer.write_events(path, recordings(), [0, 1], ["a", "b"], {}, None)
    assert [file.name for file in tmp_path.iterdir()] == ["x.h5"]
    assert path.read_bytes() == b"older"
    assert not writer.is_made(path, {})


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room cannot be taken here")
@pytest.mark.parametrize("kind", ["store", "cochlea", "camera"])
def test_a_full_disk_is_one_error(tmp_path, kind):
    """It comes while a file is begun, filled or finished. HDF5 would crash, so this is a process of its own."""
    script = (
        "import resource, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from datasets.prepare import store, writer\n"
        "from snn.errors import InputError\n"
        "times, data = np.arange(3000, dtype=np.uint32), np.zeros((3000, 3), np.uint16)\n"
        "def write(path, n):\n"
        "    if sys.argv[1] == 'cochlea':\n"
        "        return writer.write_events(path, [(times, times)] * n, [0] * n, ['a'], {}, None)\n"
        "    if sys.argv[1] == 'camera':\n"
        "        return writer.write_camera(path, 'train', [(times, data, 0)] * n, np.uint8, {})\n"
        "    with writer.new_file(path, {}) as file:\n"
        "        made = store.Store(file, 9000)\n"
        "        for _ in range(n):\n            made.append(times, times)\n"
        "        made.finish(['a'] * n, None, ['b'] * n, path)\n"
        "write(Path('whole.h5'), 60)\n"
        "size = Path('whole.h5').stat().st_size\n"
        "for limit in (300, 9_000, *range(20_000, size + 4000, 50_000)):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))\n"
        "    try:\n        write(Path('x.h5'), 60)\n"
        "    except InputError as error:\n        print(error)\n"
    )
    words = [sys.executable, "-c", script, kind]
    done = subprocess.run(
        words, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert set(lines) == {"x.h5 cannot be written (File too large): choose another folder for it"}
    assert len(lines) > 10
    assert [path.name for path in tmp_path.iterdir()] == ["whole.h5"]
    if kind != "camera":  # room that was not needed is given back
        assert (tmp_path / "whole.h5").stat().st_size < 60 * 3000 * 6 + 2**17


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_cannot_take_room_is_written_all_the_same(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    times = np.arange(5, dtype=np.float32)
    writer.write_events(tmp_path / "x.h5", [(times, times)], [0], ["a"], {}, None)
    assert len(readers.read("shd", tmp_path / "x.h5", "train", 5, 1)) == 1


def test_what_a_killed_process_left_is_removed(tmp_path):
    """An unfinished file of a running process stays."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    for number in (dead.pid, os.getppid(), "copy"):
        (tmp_path / f".x.h5.{number}").write_bytes(b"half")
    writer.write_events(tmp_path / "x.h5", [(np.zeros(3), np.zeros(3))], [0], ["a"], {}, None)
    left = {file.name for file in tmp_path.iterdir()}
    assert left == {"x.h5", f".x.h5.{os.getppid()}", ".x.h5.copy"}


def test_wav_folder_by_name(tmp_path):
    for label, frequency_hz in (("10", 500), ("9", 2000)):
        for i in range(3):
            save_tone(tmp_path / "in" / f"{label}_{i}.wav", frequency_hz + i)
    done = prepare("wav", tmp_path / "in", "--out", tmp_path / "tones", "--test-share", 0.34, "--processes", 1)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"python train.py --dataset_name tones --path_to_dataset {tmp_path / 'tones'} --num_classes 2" in done.stdout
    train, test = (contents(tmp_path / "tones" / f"tones_{split}.h5") for split in ("train", "test"))
    assert train["keys"] == test["keys"] == ["9", "10"]  # numerical order
    assert len(train["labels"]) == 4
    assert len(test["labels"]) == 2
    assert train["speakers"] is None
    centre = {label: np.median(units) for label, units in zip(train["labels"], train["units"], strict=True)}
    assert centre[0] < centre[1]  # 2000 Hz lies nearer the base


@pytest.mark.slow
def test_wav_folder_by_csv(program, tmp_path):
    for i, name in enumerate(("a.wav", "deep/b.wav", "c.wav", "d.wav", "unused.wav")):
        save_tone(tmp_path / name, 1000 + i)
    table = tmp_path / "labels.csv"
    table.write_text(
        "file,label,speaker,split\na.wav,yes,zoe,train\ndeep/b.wav,no,ann,train\nc.wav,yes,ann,test\n"
        "d.wav,no,zoe,Validation\n",
        "utf-8",
    )
    done = program(
        "-m datasets.prepare wav", tmp_path, "--out", tmp_path / "words", "--labels", table, "--processes", 1
    )
    assert done.returncode == 0, done.stderr
    assert "took 4 WAV; left out 1: 1 not in the table\n" in done.stdout
    train, validation, test = (
        contents(tmp_path / "words" / f"words_{split}.h5") for split in ("train", "validation", "test")
    )
    assert train["keys"] == validation["keys"] == ["no", "yes"]
    assert (validation["labels"], validation["speakers"]) == ([0], [1])
    assert train["labels"] == [1, 0]
    assert train["speakers"] == [1, 0]
    assert test["labels"] == [1]
    assert test["speakers"] == [0]


def test_wav_errors_before_any_recording_is_heard(tmp_path):
    def refuse(message, label_pattern=recordings.FILE_NAME_UP_TO_UNDERSCORE, label_csv=None, test_share=0.5):
        with pytest.raises(InputError, match=message):
            wav.convert_wavs(folder, tmp_path / "out", label_pattern, label_csv, test_share, seed=0, processes=1)

    folder = tmp_path / "in"
    refuse("there is no folder")
    folder.mkdir()
    (folder / "notes.txt").write_text("")
    refuse("holds no WAV, FLAC, OGG or MP3 files, but 1 .txt")
    save_tone(folder / "a_1.wav")
    save_tone(folder / "b_1.wav", 1100)
    refuse("has no group", label_pattern="(.)_")
    refuse("not a regular expression", label_pattern="(")
    refuse("does not match", label_pattern="(?P<label>a)_")
    refuse("change the split", test_share=0.1)
    refuse("between 0 and 1", test_share=2)
    table = tmp_path / "labels.csv"
    refuse("cannot be read as CSV", label_csv=table)
    for text, message in (
        ("", "needs the header"),
        ("name,label\na_1.wav,x\n", "needs the header"),
        ("file,label\nmissing.wav,x\n", "line 2: .*missing.wav does not exist"),
        ("file,label\na_1.wav,\n", "label is empty"),
        ("file,label,label\na_1.wav,x,y\n", "needs the header"),
        ("file,label\na_1.wav,x,y\n", "line 2: more cells than columns"),
        ("file,label\n\n.,x\n", "line 3: .* does not exist"),
        ("file,label,split\na_1.wav,x,dev\n", "write train or test"),
    ):
        table.write_text(text, "utf-8")
        refuse(message, label_csv=table)
    assert not (tmp_path / "out").exists()


def test_a_set_that_was_made_otherwise_is_used_with_a_warning(tmp_path, capsys):
    path = write_shd(tmp_path / "digits_train.h5", **make_events(6, 3, 40, 0))
    for provenance, options, said in (
        ('{"made_by": "digits", "seed": 0, "voices": 5}', "--voices 5 --processes 2", ""),
        (
            '{"made_by": "digits", "seed": 0, "voices": 5}',
            "--seed 0 --voices 100",
            "with --voices 5, but data.prepare says 100",
        ),
        (
            '{"made_by": "digits", "seed": 0, "voices": 5}',
            "--seed=0 --voices=100",
            "with --voices 5, but data.prepare says 100",
        ),
        ("[1", "--voices 100", ""),
    ):
        with h5py.File(path, "a") as file:
            file.attrs["provenance"] = provenance
        make_if_missing(path, "digits", options)  # it is there, and stays
        readers.read("shd", path, "train", 40, 3, options=options)
        assert said in (line := capsys.readouterr().err)
        assert line.count("\n") == bool(said)


def test_wrong_words_are_one_line(program):
    done = program("-m datasets.prepare digits --bogus 3")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "unrecognized arguments: --bogus" in done.stderr


def test_command_line_reports_one_line(program, tmp_path):
    """The exit code is 2 and there is no traceback, even if a worker process finds the fault."""
    folder, out = tmp_path / "in", tmp_path / "out"
    save_tone(folder / "b_1.wav")
    (folder / "a_1.wav").write_bytes(b"not a WAV file at all")
    silent = folder / "a_1.wav"
    for message in ("cannot be read", "silent"):
        done = program("-m datasets.prepare wav", folder, "--out", out, "--test-share", 0.5, "--processes", 1)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert "a_1.wav" in done.stderr
        assert message in done.stderr
        wavfile.write(silent, 16_000, np.zeros(8000, np.int16))
    assert not out.exists()


def test_help_names_the_sources(program):
    done = program("-m datasets.prepare --help")
    assert done.returncode == 0
    assert "digits" in done.stdout
    assert "wav" in done.stdout
    assert "events" in done.stdout
