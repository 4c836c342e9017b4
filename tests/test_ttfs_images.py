"""Images: torchvision's layouts, .npz files and first events, their faults, and augmentation."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import images
from snn.errors import InputError
from tests.conftest import write_shd
from tests.make import image_data

CPU = torch.device("cpu")


def write_npz(path: Path, shape: tuple = (6, 5), n: int = 12, classes: int = 3, **changes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "test"):
        arrays[f"x_{split}"] = random.integers(0, 256, (n, *shape), np.uint8)
        arrays[f"y_{split}"] = np.arange(n) % classes
    arrays |= changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def read_npz(folder: Path, shape: tuple = (1, 6, 5), split: str = "train") -> images.Images:
    return images.read(image_data("npz", folder, "toy", shape, 3), split)


def test_npz(tmp_path):
    path = write_npz(tmp_path / "toy.npz")
    got = read_npz(tmp_path, split="test")
    with np.load(path) as file:
        assert np.array_equal(got.pixels[:, 0], file["x_test"])
        assert np.array_equal(got.labels, file["y_test"])
    (x, y), (rest, _) = images.batches(*got.tensors(CPU), np.arange(3, 12), 7)
    assert x.dtype == torch.float32
    assert torch.equal(x, torch.from_numpy(got.pixels[3:10]) / 255)
    assert y.tolist() == got.labels[3:10].tolist()
    assert len(rest) == 2


def test_npz_with_colours_last_or_first(tmp_path):
    write_npz(tmp_path / "last" / "toy.npz", (6, 5, 3))
    last = read_npz(tmp_path / "last", (3, 6, 5))
    write_npz(tmp_path / "first" / "toy.npz", (3, 6, 5))
    first = read_npz(tmp_path / "first", (3, 6, 5))
    with np.load(tmp_path / "last" / "toy.npz") as file:
        assert np.array_equal(last.pixels[:, 1], file["x_train"][..., 1])
    with np.load(tmp_path / "first" / "toy.npz") as file:
        assert np.array_equal(first.pixels[:, 1], file["x_train"][:, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": None}, "has no array x_train"),
        ({"y_train": np.arange(12) % 3 - 1}, "image 0 has the label -1, outside 0..2"),
        ({"y_train": np.arange(11) % 3}, "12 images and y_train 11 labels"),
        ({"y_train": np.zeros(12)}, "y_train holds float64, not whole numbers"),
        ({"x_train": np.full((12, 6, 5), 1.5)}, "x_train goes from 1.5 to 1.5; pixels must be"),
        ({"x_train": np.full((12, 6, 5), np.nan)}, "x_train goes from nan to nan; pixels must be"),
        ({"x_train": np.full((12, 6, 5), -0.5)}, "x_train goes from -0.5 to -0.5; pixels must be"),
        ({"x_train": np.full((12, 6, 5), "x")}, "x_train holds <U1, not numbers"),
        ({"x_train": np.zeros((12, 6, 4), np.uint8)}, "the images have shape"),
        ({"x_train": np.zeros((0, 6, 5), np.uint8), "y_train": np.zeros(0, int)}, "x_train holds 0 images"),
    ],
)
def test_bad_npz(tmp_path, changes, message):
    write_npz(tmp_path / "toy.npz", **changes)
    with pytest.raises(InputError, match=message):
        read_npz(tmp_path)


def test_missing_and_damaged_npz(tmp_path):
    with pytest.raises(InputError, match=r"toy\.npz: not found"):
        read_npz(tmp_path)
    path = write_npz(tmp_path / "toy.npz")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"toy\.npz: not a readable \.npz file"):
        read_npz(tmp_path)


def write_mnist(folder: Path, x: np.ndarray, y: np.ndarray) -> None:
    """Write torchvision's layout of MNIST, with two equal splits."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        for kind, array, magic in (("images-idx3", x, 0x803), ("labels-idx1", y, 0x801)):
            head = struct.pack(f">{1 + array.ndim}i", magic, *array.shape)
            (raw / f"{split}-{kind}-ubyte").write_bytes(head + array.astype(np.uint8).tobytes())


def test_torchvision_mnist(tmp_path):
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (9, 28, 28), np.uint8), np.arange(9)
    write_mnist(tmp_path, x, y)
    data = image_data("torchvision", tmp_path, "mnist", (1, 28, 28), 10)
    images.fetch_if_missing(data)  # nothing to fetch
    got = images.read(data, "test")
    assert np.array_equal(got.pixels[:, 0], x)
    assert np.array_equal(got.labels, y)


def test_torchvision_that_cannot_be_fetched(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    def no_network(self):
        raise OSError("no route to host")

    monkeypatch.setattr(CIFAR10, "download", no_network)
    data = image_data("torchvision", tmp_path, "cifar10", (3, 32, 32), 10)
    with pytest.raises(InputError, match=r"CIFAR10 is missing or incomplete.*cannot be fetched \(no route to host\)"):
        images.fetch_if_missing(data)
    with pytest.raises(InputError, match="CIFAR10 is missing or incomplete"):
        images.read(data, "train")
    with pytest.raises(InputError, match="sets here are mnist, fmnist, cifar10, cifar100"):
        images.read(data.model_copy(update={"dataset_name": "imagenet"}), "train")


def test_first_events(tmp_path):
    """A pixel's first event counts, wherever it is in the list; events past the window do not."""
    shape = (2, 2, 2)
    write_shd(
        tmp_path / "toy_train.h5",
        [[0.05, 0.02, 0.01, 0.3], [0.1, 0.0]],
        [[3, 3, 7, 0], [1, 5]],
        [0, 1],
    )
    got = images.read(image_data("shd", tmp_path, "toy", shape, 2, window_ms=100.0), "train")
    expected = np.zeros((2, 8))
    expected[0, 3], expected[0, 7], expected[1, 5] = 0.8, 0.9, 1.0
    np.testing.assert_allclose(got.pixels.reshape(2, 8), expected, atol=1e-6)
    with pytest.raises(InputError, match=r"data\.window_ms is missing"):
        images.read(image_data("shd", tmp_path, "toy", shape, 2), "train")
    with pytest.raises(InputError, match=r"layout = npz: data\.window_ms has no effect"):
        images.read(image_data("npz", tmp_path, "toy", shape, 2, window_ms=100.0), "train")
    write_shd(tmp_path / "late_train.h5", [[0.5]], [[0]], [0])
    with pytest.raises(InputError, match="0 % of the events fall into the first 100 ms"):
        images.read(image_data("shd", tmp_path, "late", shape, 1, window_ms=100.0), "train")


def test_crop_moves_each_image_by_its_own_shift():
    torch.manual_seed(0)
    x = torch.randint(1, 255, (50, 3, 16, 16), dtype=torch.uint8)
    out = images.crop(x, 2)
    padded = torch.nn.functional.pad(x, [2] * 4)
    shifts = set()
    for one, source in zip(out, padded, strict=True):
        found = [(i, j) for i in range(5) for j in range(5) if torch.equal(one, source[:, i : i + 16, j : j + 16])]
        assert len(found) == 1
        shifts |= set(found)
    assert len(shifts) > 15


def test_flip_and_cutout():
    torch.manual_seed(0)
    x = torch.randint(1, 255, (60, 3, 16, 16), dtype=torch.uint8)
    flipped = images.flip(x)
    same, mirrored = (flipped == x).flatten(1).all(1), (flipped == x.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 15 < same.sum() < 45
    cut = images.cutout(x)
    hole = (cut == 0).all(1)
    assert torch.equal(cut[:, 0] == 0, hole)
    assert torch.equal(torch.where(hole.unsqueeze(1), 0, x), cut)
    sizes = hole.flatten(1).sum(1)
    assert sizes.max() == 64
    assert sizes.min() >= 16


def test_autoaugment():
    torch.manual_seed(0)
    x = torch.randint(0, 255, (20, 3, 32, 32), dtype=torch.uint8)
    out = images.autoaugment(x)
    assert out.shape == x.shape
    assert out.dtype == torch.uint8
    assert (out != x).flatten(1).any(1).sum() > 10
    for unfit in (x.float(), x[:, :2]):
        with pytest.raises(InputError, match="1 or 3 channels, stored as bytes"):
            images.autoaugment(unfit)


def test_augmented_batches_follow_the_seed(tmp_path):
    write_npz(tmp_path / "toy.npz", (16, 16))
    got = read_npz(tmp_path, (1, 16, 16))
    changes = images.augmentations(("crop", "flip", "cutout"), 2)
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(next(images.batches(*got.tensors(CPU), np.arange(12), 12, augment=changes))[0])
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert 0 <= runs[0].min() <= runs[0].max() <= 1
