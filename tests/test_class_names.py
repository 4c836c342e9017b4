"""Class names, not numbers, match classes wherever two of these meet: training file, test file, checkpoint, test."""

import json
from pathlib import Path

import h5py
import nir
import numpy as np
import pytest
import torch

from datasets import images, readers
from snn import checkpoint, config
from snn.classes import Named, numbers_in, tidied
from snn.embedded import ttfs
from snn.errors import InputError
from snn.ttfs.network import TTFSNetwork
from tests.conftest import REPOSITORY, TINY, assert_one_line, make_events, write_shd
from tests.make import image_data
from tests.programs import metrics

TRAIN = f"train.py --path_to_yaml {REPOSITORY}/configs/adlif_shd.yaml --dataset_name shd {TINY} --lr 5e-3"
NAMES, OTHER_ORDER, OTHER_SET = ("null", "eins", "zwei"), ("zwei", "null", "eins"), ("null", "eins", "drei")
PERMUTATIONS = [p for p in np.ndindex(3, 3, 3) if sorted(p) == [0, 1, 2]]


def write_named(path: Path, names: tuple[str, ...] | None, n: int, seed: int) -> Path:
    """Write the same recordings of the same words, however the file numbers them; other words count as zwei."""
    events = make_events(n, 3, 40, seed)
    if names is not None:
        number = {name if name in NAMES else "zwei": k for k, name in enumerate(names)}
        events["labels"] = [number[NAMES[label]] for label in events["labels"]]
    write_shd(path, **events)
    if names is not None:
        with h5py.File(path, "a") as file:
            file["extra/keys"] = np.array([name.encode() for name in names])
    return path


def write_pair(folder: Path, train: tuple[str, ...] | None, test: tuple[str, ...] | None) -> None:
    write_named(folder / "shd_train.h5", train, 60, 0)
    write_named(folder / "shd_test.h5", test, 24, 1)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Make folders of the same recordings: `own` and `turned`, `turned_test` only at test, `other` and `nameless`."""
    write_pair(tmp_path / "own", NAMES, NAMES)
    write_pair(tmp_path / "turned", OTHER_ORDER, OTHER_ORDER)
    write_pair(tmp_path / "turned_test", NAMES, OTHER_ORDER)
    write_pair(tmp_path / "other", OTHER_SET, OTHER_SET)
    write_pair(tmp_path / "nameless", None, None)
    return tmp_path


def samples(run: Path) -> dict:
    with np.load(run / "test" / "samples.npz") as file:
        return dict(file)


@pytest.mark.parametrize("order", PERMUTATIONS)
def test_labels_take_the_numbers_of_their_names(tmp_path, order):
    path = write_named(tmp_path / "x.h5", tuple(NAMES[k] for k in order), 12, 0)
    recordings = readers.read("shd", path, "train", 40, 3, classes=Named(NAMES, "x.pt"))
    assert recordings.labels.tolist() == make_events(12, 3, 40, 0)["labels"]
    assert recordings.class_names == NAMES


def test_names_that_only_look_otherwise_are_the_same():
    assert tidied(["fu\u0308nf ", " Ja", "no\r\nway\x1b[2J"]) == ("fünf", "Ja", "no way [2J")
    assert numbers_in(Named(("a", "a"), "x"), Named(("a", "a"), "y")).tolist() == [0, 1]
    with pytest.raises(InputError, match="y: two classes have the name 'a'"):
        numbers_in(Named(("a", "a", "b"), "x"), Named(("b", "a", "a"), "y"))
    with pytest.raises(InputError, match=r"y: its classes differ from those of x: only y has 'c' and only x has 'b'"):
        numbers_in(Named(("a", "b"), "x"), Named(("a", "c"), "y"))


def test_two_classes_of_one_name_are_refused(tmp_path):
    path = write_named(tmp_path / "x.h5", NAMES, 12, 0)
    with h5py.File(path, "a") as file:
        file["extra/keys"][...] = np.array([b"a", b"b", b" a"])
    with pytest.raises(InputError, match=r"x\.h5: extra/keys: two classes have the name 'a'; rename one of them"):
        readers.read("shd", path, "train", 40, 3)


def test_train_resume_continue_test_report_and_compare(program, folders):
    """Train with each numbering: files of both numberings give the same results; files with other words are refused."""
    for name, folder in (("a", "own"), ("b", "turned")):
        trained = program(f"{TRAIN} --path_to_dataset {folder} --epochs 12 --save_name {name}")
        assert trained.returncode == 0, trained.stderr
        assert "refuse" not in trained.stderr
    run = folders / "runs" / "a"
    assert checkpoint.load(run / "best.pt")[1]["class_names"] == NAMES

    seen = []
    for folder in ("own", "turned_test"):
        assert program(f"test.py --load_pt_file a --path_to_dataset {folder}").returncode == 0
        seen.append((metrics(run), samples(run)))
    (one, first), (other, second) = seen
    assert one["fs_accuracy"] > 60  # otherwise the order would not matter
    assert one["class_names"] == other["class_names"] == list(NAMES)
    for name in ("fs_accuracy", "fr_accuracy", "by_class", "confusion", "samples_of"):
        assert one[name] == other[name], name
    assert all(np.array_equal(first[name], second[name]) for name in first)

    # two networks that number their classes differently, tested together on one file and compared
    tested = program("test.py --load_pt_file a b --path_to_dataset own")
    assert tested.returncode == 0, tested.stderr
    assert metrics(folders / "runs" / "b")["class_names"] == list(OTHER_ORDER)
    compared = program("compare.py a b")
    assert compared.returncode == 0, compared.stderr
    right = (samples(folders / "runs" / "b")["fs_label"] == samples(folders / "runs" / "b")["target"]).sum()
    table = (folders / "compare.html").read_text().partition("Correct decisions by class")[2]
    counts = [int(row.split("</td>")[3].rpartition(">")[2]) for row in table.split("<tr>")[2:5]]
    assert sum(counts) == right

    refused = program("test.py --load_pt_file a --path_to_dataset other")
    assert_one_line(refused, "other/shd_test.h5", "only other/shd_test.h5 has 'drei'", "runs/a/best.pt")
    assert_one_line(program(f"{TRAIN} --path_to_dataset other --load_pt_file a --save_name c"), "has 'drei'", "'zwei'")
    assert_one_line(program(f"{TRAIN} --path_to_dataset other --epochs 13 --save_name a --resume"), "'drei'", "last.pt")
    nameless = program("test.py --load_pt_file a --path_to_dataset nameless")
    assert "names no classes, so its labels are taken as the numbers in runs/a/best.pt" in nameless.stderr

    # a run continues, and another begins from its weights, on files that number the words differently
    for words in (
        "--epochs 13 --save_name a --resume",
        "--epochs 1 --lr 1e-30 --weight_decay 0 --load_pt_file a --save_name d",
    ):
        went_on = program(f"{TRAIN} --path_to_dataset turned {words}")
        assert went_on.returncode == 0, went_on.stderr
    assert checkpoint.load(folders / "runs" / "d" / "best.pt")[1]["class_names"] == NAMES
    log = [json.loads(line) for line in (folders / "runs" / "d" / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["validation_fs_accuracy"] > 60


def test_a_run_goes_on_to_the_same_bits_on_a_file_of_another_order(program, folders):
    for name, words in (
        ("whole", "own --epochs 2"),
        ("part", "own --epochs 1"),
        ("part", "turned --epochs 2 --resume"),
    ):
        assert program(f"{TRAIN} --save_name {name} --path_to_dataset {words}").returncode == 0
    whole, part = (checkpoint.load(folders / "runs" / name / "last.pt")[1]["network"] for name in ("whole", "part"))
    assert all(torch.equal(whole[name], part[name]) for name in whole)


def test_exports_name_the_classes_and_count_on_files_of_any_order(program, folders):
    assert program(f"{TRAIN} --path_to_dataset turned --epochs 1 --save_name x").returncode == 0
    exported = program("export.py --load_pt_file x --format nir --approximate --path_to_dataset own")
    assert exported.returncode == 0, exported.stderr
    assert json.loads(nir.read(folders / "runs" / "x" / "best.nir").metadata["class_names"]) == list(OTHER_ORDER)
    refused = program("export.py --load_pt_file x --format nir --approximate --path_to_dataset other")
    assert_one_line(refused, "other/shd_train.h5", "'drei'")


def test_training_says_that_the_test_file_has_other_classes(program, folders):
    write_pair(folders / "shd", NAMES, OTHER_SET)
    trained = program(f"{TRAIN} --path_to_dataset shd --epochs 1")
    assert (
        "warning: test.py will refuse the test data: shd/shd_test.h5: its classes differ from those of"
        in trained.stderr
    )


def test_images_have_names_too(tmp_path):
    x, y = np.zeros((6, 4, 4), np.uint8), np.arange(6) % 3
    np.savez(tmp_path / "x.npz", x_train=x, y_train=y, x_test=x, y_test=y, class_names=np.array(OTHER_ORDER))
    data = image_data("npz", tmp_path, "x", (1, 4, 4), 3)
    read = images.read(data, "test", Named(NAMES, "x.pt"))
    assert [NAMES[label] for label in read.labels] == [OTHER_ORDER[label] for label in y]
    assert read.class_names == NAMES
    with pytest.raises(InputError, match=r"only x\.pt has 'drei'"):
        images.read(data, "test", Named(OTHER_SET, "x.pt"))
    np.savez(tmp_path / "x.npz", x_train=x, y_train=y, class_names=np.arange(3))
    with pytest.raises(InputError, match="class_names holds int64"):
        images.read(data, "train")


@pytest.mark.parametrize("names", [None, NAMES[:1], NAMES])
def test_each_class_has_a_name_in_c(names):
    """main.c looks it up by the number of the class; a file may name fewer, or more."""
    network = TTFSNetwork(config.TTFS(layers="4F"), (1, 2, 2), 2)
    expected = (*(names or ()), *("class 0", "class 1")[len(names or ()) :])[:2]
    named = ", ".join(f'"{name}"' for name in expected)
    assert f"#define NETWORK_CLASS_NAMES {{{named}}}" in ttfs.code(network, names).files["network.h"]


def test_a_checkpoint_whose_names_are_none(tmp_path, program, folders):
    assert program(f"{TRAIN} --path_to_dataset own --epochs 1 --save_name x").returncode == 0
    path = folders / "runs" / "x" / "best.pt"
    cfg, content = checkpoint.load(path)
    network = torch.nn.Module()
    network.state_dict, network.check_values = lambda: content["network"], lambda where: None
    checkpoint.save(path, cfg, network, epoch=1, class_names=[1, 2, 3])
    assert_one_line(program("test.py --load_pt_file x"), "class_names are not names")
