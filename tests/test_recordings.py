"""The preparation takes, leaves out or refuses the files of a folder of recordings."""

import os
import re

import numpy as np
import pytest
import soundfile

from datasets.prepare import recordings, wav
from snn.errors import InputError
from tests.conftest import REPOSITORY
from tests.originals import RATE_HZ, save_sound
from tests.programs import converted

CASES = REPOSITORY.parent / "shared" / "cases"


# formats that libsndfile reads


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
    """A bad recording gives one line with the file and the reason, or is left out and named."""
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
    with pytest.raises(InputError, match=r"none\.wav cannot be read as WAV, .*the file does not exist"):
        wav.read_audio(tmp_path / "none.wav")


# the contents of a folder


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


def test_order_of_names():
    assert recordings.sorted_names(["b", "10", "9", "09", "b", "a"]) == ["09", "9", "10", "a", "b"]
    assert len(recordings.sorted_names(["7" * 5000, "8" * 5000])) == 2  # more digits than Python reads as a number


def test_all_bad_and_skipped(tmp_path, convert):
    BAD["silent"][0](save_sound(tmp_path / "in" / "a_1.wav"))
    with pytest.raises(InputError, match="has no recording for the train file"):
        convert(skip_bad=True)


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
    files = {split: converted(tmp_path, split) for split in recordings.SPLITS}
    assert {split: len(file["labels"]) for split, file in files.items()} == {"train": 12, "validation": 3, "test": 3}
    assert all(file["keys"] == ["no", "up", "yes"] for file in files.values())
    speakers = [file["speakers"] for file in files.values()]
    assert speakers == ([None] * 3 if pattern else [[0, 1, 2, 3] * 3, [4] * 3, [5] * 3])


def test_speech_commands_without_lists_by_speaker(tmp_path, commands, convert):
    for name in recordings.LISTS.values():
        (commands / name).unlink()
    assert "speakers are in both files; --test-by speaker" in convert(test_share=0.3)
    said = convert(test_share=0.3, test_by="speaker")
    train, test = (set(converted(tmp_path, split)["speakers"]) for split in ("train", "test"))
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
    with pytest.raises(InputError, match="--test-by is for a split that is drawn, but the recordings have one already"):
        convert(of_a_draw=["--test-by"])
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
        (lambda folder: (folder / "testing_list.txt").write_text("/\n"), ".* has no recording for the test file"),
        (lambda folder: (folder / "testing_list.txt").write_text(""), ".* has no recording for the test file"),
    ],
    ids=["one list", "a stranger", "in both lists", "no text", "a root", "empty"],
)
def test_speech_commands_that_are_refused(commands, convert, change, message):
    change(commands)
    with pytest.raises(InputError, match=message):
        convert()
