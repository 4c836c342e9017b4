"""Messages name the next step to take; faults that once ended in a traceback, or went unnoticed, give one line."""

import struct
from pathlib import Path

import h5py
import numpy as np
import pytest

from datasets import readers
from datasets.prepare import dvsgesture
from datasets.recordings import sorted_by_time
from snn import arguments, checkpoint, yaml12
from snn.errors import InputError
from tests.conftest import REPOSITORY, assert_one_line, make_events, write_shd
from tests.originals import GESTURES_HEADER, packet, write_gestures
from tests.programs import TRAIN, TRAIN_IMAGES, metrics

CASES = REPOSITORY.parent / "shared" / "cases"


# labels


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([1, 2, 3] * 2, 3, "recording 2 has the label 3, outside 0..2; labels begin at 1: subtract 1"),
        ([1, 2, 3] * 2, 4, "class 0 has no recording; labels begin at 1: subtract 1, and set data.num_classes .* to 3"),
        ([5, 6, 7] * 2, 3, "labels begin at 5: subtract 5"),
        ([0, 2, 5] * 2, 3, "there are 3 classes with labels up to 5: number them 0..2"),
        ([0, 2, 5] * 2, 6, "class 1 has no recording; there are 3 classes .* number them 0..2, and set .* to 3"),
        ([0, 1, 2] * 2, 2, "recording 2 has the label 2, outside 0..1; set data.num_classes .* labels go up to 2"),
        ([0, 1, 2] * 2, 5, "class 3 has no recording; set data.num_classes .* labels go up to 2"),
        ([-1, 0, 1] * 2, 3, "has the label -1, outside 0..2; number the classes from 0"),
    ],
)
def test_labels_say_how_to_number_them(tmp_path, labels, classes, message):
    path = write_shd(tmp_path / "x.h5", **(make_events(6, 3, 40, 0) | {"labels": labels}))
    with pytest.raises(InputError, match=message.replace("..", r"\.\.").replace(r"\.\.*", "..*")):
        readers.read("shd", path, "train", 40, classes)


# files that lead to other files


def linked(path: Path, kind: str) -> Path:
    """Return a file whose content is in another file, behind links."""
    raw = path.with_suffix(".raw")
    write_shd(raw, **make_events(60, 3, 40, 0))
    with h5py.File(raw) as source, h5py.File(path, "w", libver="latest") as file:
        if kind == "groups":
            file["spikes"], file["labels"] = (h5py.ExternalLink(raw.name, f"/{name}") for name in ("spikes", "labels"))
        elif kind == "big":
            file["padding"] = np.zeros(200_000)  # lengths would be read from these bytes
            file["spikes"], file["labels"] = (h5py.ExternalLink(raw.name, f"/{name}") for name in ("spikes", "labels"))
        elif kind == "nowhere":
            file["spikes"], file["labels"] = h5py.ExternalLink("no.h5", "/spikes"), source["labels"][()]
        elif kind == "soft":
            file["there"], file["labels"] = h5py.ExternalLink(raw.name, "/"), source["labels"][()]
            file["spikes"] = h5py.SoftLink("/there/spikes")
        elif kind == "raw bytes":
            source.copy("spikes", file)
            file.create_dataset("labels", (60,), "i8", external=str(path.with_suffix(".bin")))
        elif kind == "inside":
            source.copy("spikes", file, "elsewhere")
            source.copy("labels", file)
            file["spikes"] = h5py.SoftLink("/elsewhere")
        else:
            for name in ("spikes/times", "spikes/units", "labels"):
                layout = h5py.VirtualLayout((60,), source[name].dtype)
                layout[:] = h5py.VirtualSource(raw.name, name, (60,), source[name].dtype)
                file.create_virtual_dataset(name, layout)
    if kind == "virtual, nowhere":
        raw.unlink()
    return path


@pytest.mark.parametrize("kind", ["groups", "big", "nowhere", "soft", "raw bytes"])
@pytest.mark.parametrize("ask", [readers.read, readers.look])
def test_external_links_are_not_read(tmp_path, kind, ask):
    with pytest.raises(
        InputError, match="lies in another file, and external links are not read; copy it into this one"
    ):
        ask("shd", linked(tmp_path / "x.h5", kind), "train", 40, 3)


@pytest.mark.parametrize("kind", ["inside", "virtual"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_links_within_a_file_and_virtual_data_are_read(tmp_path, kind, in_memory):
    recordings = readers.read("shd", linked(tmp_path / "x.h5", kind), "train", 40, 3, in_memory=in_memory)
    expected = readers.read("shd", tmp_path / "x.raw", "train", 40, 3)
    loaded, _ = recordings.load(np.arange(60))
    for name in ("offsets", "times", "channels", "labels"):
        assert np.array_equal(getattr(loaded, name), getattr(expected, name))


def test_virtual_data_without_its_parts_are_refused(tmp_path):
    """The C library would return empty lists in their place."""
    with pytest.raises(InputError, match=r"/spikes/times is virtual, and its part .*x\.raw does not exist"):
        readers.read("shd", linked(tmp_path / "x.h5", "virtual, nowhere"), "train", 40, 3)


def test_virtual_data_of_nothing_are_refused(tmp_path):
    path = linked(tmp_path / "x.h5", "virtual")
    with h5py.File(path, "a") as file:
        del file["labels"]
        file.create_virtual_dataset("labels", h5py.VirtualLayout((60,), "i8"))
    with pytest.raises(InputError):
        readers.read("shd", path, "train", 40, 3)


# hidden files and invalid events


APPLE_DOUBLE = b"\0\x05\x16\x07\0\x02\0\0Mac OS X        " + bytes(96)


def test_files_that_macos_adds_are_left_out(tmp_path):
    for user in (23, 24):
        write_gestures(tmp_path / "gestures", f"user{user}_lab", [*range(1, 12)], user)
    for name in ("._user23_lab.aedat", "._user23_lab_labels.csv"):
        (tmp_path / "gestures" / name).write_bytes(APPLE_DOUBLE)
    dvsgesture.convert_dvsgesture(tmp_path / "gestures", tmp_path / "out", 1)


def test_invalid_events_of_aedat_are_left_out(tmp_path):
    random = np.random.default_rng(0)
    x, y, p = random.integers(0, (128, 128, 2), (200, 3)).T.astype(np.uint32)
    valid, times_us = random.integers(0, 2, 200).astype(np.uint32), np.sort(random.integers(0, 10**6, 200))
    x[valid == 0] += 128  # an invalid address is nobody's pixel
    words = np.stack([x << 17 | y << 2 | p << 1 | valid, times_us], 1).astype("<u4")
    path = tmp_path / "user01_lab.aedat"
    path.write_bytes(GESTURES_HEADER + packet(1, words[:90].tobytes(), 8) + packet(1, words[90:].tobytes(), 8))
    events = dvsgesture.read_aedat(path)
    assert events.times_us.tolist() == times_us[valid == 1].tolist()
    assert np.array_equal(events.data, np.stack([x, y, p], 1)[valid == 1])
    assert events.invalid == 200 - valid.sum()
    words[:, 0] &= ~np.uint32(1)
    path.write_bytes(GESTURES_HEADER + packet(1, words.tobytes(), 8))
    with pytest.raises(InputError, match="all of its 200 events are marked invalid"):
        dvsgesture.read_aedat(path)


def test_a_conversion_says_how_many_were_invalid(tmp_path, capsys):
    for user in (23, 24):
        write_gestures(tmp_path / "in", f"user{user}_lab", [*range(1, 12)], user)
    path = tmp_path / "in" / "user23_lab.aedat"
    header = struct.Struct("<HHIIIIII").size
    content = bytearray(path.read_bytes())
    first = content.index(packet(1, bytes(33 * 8), 8)[:header]) + header  # the packet of the first gesture
    content[first] &= 0xFE
    path.write_bytes(content)
    dvsgesture.convert_dvsgesture(tmp_path / "in", tmp_path / "out", 1)
    train, test = capsys.readouterr().out.splitlines()
    assert train.endswith("; 1 events marked invalid are left out")
    assert "invalid" not in test


# names that hide one another


@pytest.mark.parametrize("kind", ["folder of data", "file of data", "both are runs"])
def test_data_do_not_hide_a_run_of_their_name(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/best.pt").touch()
    if kind == "file of data":
        Path("mine").touch()
    else:
        Path("mine").mkdir()
        Path("mine", "mine_train.h5").touch()
    if kind == "both are runs":
        Path("mine/last.pt").touch()
    found = arguments.find_checkpoint(Path("mine"))
    assert found == Path("mine/best.pt" if kind == "both are runs" else "runs/mine/best.pt")
    assert arguments.find_checkpoint(Path("runs/mine")) == arguments.find_checkpoint(Path("mine.pt")) == Path(
        "runs/mine/best.pt"
    ) or (kind == "both are runs")


# schedules


@pytest.mark.usefixtures("shd_folder")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--lr_decay --lr 1e-2", "after epoch 2 lr goes from 0.005 to 0.00854"),
        ("--lr_decay --lr 1e-2 --set loss.fs.D_final=32", " and D goes from "),
        ("", None),
    ],
)
def test_a_run_that_goes_on_for_longer_says_where_its_curves_jump(program, words, said):
    assert program(f"{TRAIN} {words} --epochs 2 --save_name x").returncode == 0
    same = program(f"{TRAIN} {words} --epochs 2 --save_name x --resume")
    assert "another schedule" not in same.stderr
    longer = program(f"{TRAIN} {words} --epochs 8 --save_name x --resume")
    assert longer.returncode == 0
    assert ("train.epochs = 8 gives another schedule over the epochs than 2 did" in longer.stderr) == bool(said)
    assert said is None or said in longer.stderr


@pytest.mark.usefixtures("toy_file")
def test_a_ttfs_run_says_it_as_well(program):
    words = f"{TRAIN_IMAGES} --lr_decay --set data.augment=[] --set ttfs.layers=16F --save_name x"
    assert program(f"{words} --epochs 1").returncode == 0
    assert "after epoch 1 lr goes from 0.005 to 0.0" in program(f"{words} --epochs 3 --resume").stderr


# one line instead of a traceback


@pytest.mark.parametrize("text", ["a: " + "[" * 500, "[" * 1000 + "]" * 1000, "{a: " * 1000 + "}" * 1000, "- " * 5000])
def test_yaml_that_is_nested_too_deep(tmp_path, text):
    with pytest.raises(InputError, match="x: not valid YAML"):
        yaml12.parse(text, "x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a:\n  - [1, 2\nb: 3\n", "while parsing a flow sequence, line 2, column 5: expected ',' or ']'"),
        ("a: b: c", "mapping values are not allowed here, line 1, column 5"),
        ("a: 1\na: 2", "the key 'a' occurs twice, line 1 and after"),
        ("a: \0", "unacceptable character #x0000: special characters are not allowed, position 3"),
    ],
)
def test_yaml_that_is_not_valid_names_line_and_column(text, words):
    with pytest.raises(InputError) as refusal:
        yaml12.parse(text, "x")
    assert str(refusal.value).startswith(f"x: not valid YAML: {words}")
    assert "<" not in str(refusal.value).replace("<block", "")
    assert "\n" not in str(refusal.value)


@pytest.mark.usefixtures("toy_file")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--set ttfs.layers=P2", "ttfs.layers: P2: the network needs a layer of neurons that spike, such as 400F"),
        ("--set ttfs.layers=P2-A2", "ttfs.layers: P2-A2: the network needs a layer of neurons that spike"),
        (
            "--set ttfs.layers=16C3-P2 --set ttfs.encoder=direct",
            "besides pools and the layer that a direct encoder takes",
        ),
        ("--set train.device=meta", "train.device = meta: cannot be used here"),
    ],
)
def test_ttfs_words_that_are_one_line(program, words, message):
    assert_one_line(program(f"{TRAIN_IMAGES} --epochs 1 {words}"), message)


@pytest.mark.usefixtures("shd_folder")
@pytest.mark.parametrize(
    ("words", "is_refused"),
    [
        ("--T 1 --batch-size 53", True),  # 54 recordings to train on
        ("--T 1 --batch-size 1", True),
        ("--T 1 --batch-size 52", False),
        ("--T 2 --batch-size 53", False),
        ("--T 1 --T_empty 1 --batch-size 53", False),
        ("--T 1 --batch-size 53 --set network.batch_norm=false", False),
    ],
)
def test_a_batch_of_one_value_under_batch_norm(program, words, is_refused):
    result = program(f"{TRAIN} --epochs 1 {words}")
    if is_refused:
        assert_one_line(result, "one of 54 training recordings is a batch by itself", "train.batch_size")
    else:
        assert result.returncode == 0, result.stderr


@pytest.mark.usefixtures("shd_folder")
def test_a_device_without_numbers(program):
    assert_one_line(program(f"{TRAIN} --set train.device=meta"), "train.device = meta: cannot be used here")


# streaming


def shuffled(events: dict) -> dict:
    random = np.random.default_rng(5)
    orders = [random.permutation(len(times)) for times in events["times"]]
    return events | {
        name: [np.asarray(row)[order] for row, order in zip(events[name], orders, strict=True)]
        for name in ("times", "units")
    }


@pytest.mark.parametrize("in_memory", [True, False])
def test_events_in_order(tmp_path, in_memory):
    events = make_events(6, 3, 40, 0)
    events["times"][2] = np.zeros(60)  # all at one time: they stay as they are
    path = write_shd(tmp_path / "x.h5", **shuffled(events))
    recordings = sorted_by_time(readers.read("shd", path, "train", 40, 3, in_memory=in_memory))
    loaded, places = recordings.load(np.array([4, 2]))
    raw = readers.read("shd", path, "train", 40, 3)
    for r, place in zip((4, 2), places, strict=True):
        own, given = (slice(*of.offsets[k : k + 2]) for of, k in ((loaded, place), (raw, r)))
        order = np.argsort(raw.times[given], kind="stable")
        assert np.array_equal(loaded.times[own], raw.times[given][order])
        assert np.array_equal(loaded.channels[own], raw.channels[given][order])


def test_unsorted_events_are_streamed_in_order(program, tmp_path, shd_folder):
    assert program(f"{TRAIN} --epochs 2 --lr 5e-3 --save_name x").returncode == 0
    seen = []
    for change in (dict, shuffled):
        write_shd(shd_folder / "shd_test.h5", **change(make_events(24, 3, 40, 1)))
        tested = program("test.py --load_pt_file x --streaming")
        assert tested.returncode == 0, tested.stderr
        seen.append(metrics(tmp_path / "runs" / "x")["streaming"])
        assert seen[-1]["differ_from_batches"] == 0
    assert seen[0]["fs_accuracy"] == seen[1]["fs_accuracy"]
    assert seen[0]["to_decision"]["events"] == seen[1]["to_decision"]["events"]


@pytest.mark.slow
@pytest.mark.usefixtures("shd_folder")
def test_images_are_streamed(program, tmp_path):
    words = '--set data.channels=null --set data.sensor={"height":4,"width":5} --set network.layers=[4C3,P2]'
    assert program(f"{TRAIN} --epochs 1 --save_name x {words}".replace("--set data.channels=40", "")).returncode == 0
    tested = program("test.py --load_pt_file x --streaming")
    assert tested.returncode == 0, tested.stderr
    seen = metrics(tmp_path / "runs" / "x")
    assert seen["streaming"]["differ_from_batches"] == seen["streaming"]["without_events"] == 0
    assert seen["streaming"]["whole_window"]["synaptic operations"] == pytest.approx(
        seen["cost"]["whole_window"]["synaptic operations"]
    )


# checkpoints


def test_nothing_is_saved_that_cannot_be_loaded(program, tmp_path, monkeypatch, shd_folder):
    """A learned value outside its range ends training with one line, and the checkpoint before can be tested."""
    from snn.neurons import SpikingNeuron

    assert program(f"{TRAIN} --epochs 1 --save_name x").returncode == 0
    steps = []

    def spoil(self) -> None:
        steps.append(1)
        if len(steps) > 4 and hasattr(self, "a"):
            self.a.data.fill_(2.0)

    monkeypatch.setattr(SpikingNeuron, "clamp_values", spoil)
    broken = program(f"{TRAIN} --epochs 3 --save_name x --resume")
    assert_one_line(broken, "not written, because it could not be loaded", "learned value a is 2", "a smaller train.lr")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    checkpoint.load(tmp_path / "runs" / "x" / "last.pt", for_resume=True)
    assert program("test.py --load_pt_file x").returncode == 0


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases of users are not here")
@pytest.mark.parametrize(
    ("case", "classes", "message"),
    [
        ("h5_labels_1_to_3", 3, "labels begin at 1: subtract 1"),
        ("h5_labels_1_to_3", 4, "labels begin at 1: subtract 1"),
        ("h5_external_link", 3, "external links are not read"),
    ],
)
def test_cases_of_users(case, classes, message):
    with pytest.raises(InputError, match=message):
        readers.read("shd", CASES / case / "mine_train.h5", "train", 30, classes)
