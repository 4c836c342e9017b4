"""Images for networks that spike once: torchvision's sets, .npz files, or the first event of each pixel.

Pixels are kept as they are stored, and turned into numbers in [0, 1] batch by batch.
"""

import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets import readers
from datasets.labels import as_named, check_labels, check_type
from datasets.layouts import LAYOUTS, Split
from datasets.readers import RECORDINGS_AT_ONCE
from datasets.recordings import AnyRecordings, Recordings
from datasets.window import check_first_times
from snn import config
from snn.classes import Named, all_different, tidied
from snn.errors import InputError
from snn.ops.compiled import kernel

if TYPE_CHECKING:
    from torchvision.datasets import VisionDataset

TORCHVISION = {"mnist": "MNIST", "fmnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
Augment = Callable[[Tensor], Tensor]  # of a batch


@dataclass(frozen=True)
class Images:
    """A set of n images with their labels."""

    pixels: np.ndarray  # (n, C, H, W) uint8, or float32 in [0, 1]
    labels: np.ndarray  # (n,) int64
    where: str  # the file or folder, for messages
    class_names: tuple[str, ...] | None = None  # if the file has them
    files: np.ndarray | None = None  # (n,) the file that each window of events was cut from, if they were

    def __len__(self) -> int:
        return len(self.labels)

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return pixels and labels on a device; on the CPU they share memory with the arrays."""
        return torch.from_numpy(self.pixels).to(device), torch.from_numpy(self.labels).to(device)


def fetch_if_missing(data: config.Images) -> None:
    """Download one of torchvision's sets if it is missing."""
    if data.layout == "torchvision":
        _torchvision(data.folder, data.dataset_name, train=True, download=True)


def read(data: config.Images, split: Split | Literal["validation"], classes: Named | None = None) -> Images:
    """Read the images of one split, of shape data.shape (C, H, W) and with labels in 0..data.num_classes-1.

    Only recordings of events have a split for validation. A training set must have an image of every class. `classes`
    as in `readers.read`; `data.strict` refuses recordings of events that leave no event in an image.
    """
    _check_layout(data)
    as_if: Split = "train" if split == "train" else "test"
    if data.layout in LAYOUTS:
        path, units = _events_file(data, split), math.prod(data.shape)
        recordings = readers.read(data.layout, path, as_if, units, data.num_classes, classes=classes)
        return first_events(recordings, data.shape, data.window_ms, data.strict)
    read_layout = _read_torchvision if data.layout == "torchvision" else _read_npz
    images = read_layout(data, as_if)
    _check_shape(images.pixels.shape, data.shape, images.where)
    labels = as_named(images.labels, Named(images.class_names, images.where), classes)
    check_labels(labels, data.num_classes, images.where, split == "train", "image")
    names = images.class_names if classes is None or classes.names is None else classes.names
    return replace(images, labels=labels, class_names=names)


def has_validation(data: config.Images) -> bool:
    """Return whether recordings of events have a file for validation, as `datasets.prepare` can make it."""
    return data.layout in LAYOUTS and _events_file(data, "validation").exists()


def look(data: config.Images, split: Split, classes: Named | None = None) -> None:
    """Raise the errors of `read` that the files' layout alone reveals; no pixel, label or event is read."""
    _check_layout(data)
    if data.layout in LAYOUTS:
        path, units = _events_file(data, split), math.prod(data.shape)
        readers.look(data.layout, path, split, units, data.num_classes, classes=classes, strict=data.strict)
    elif data.layout == "npz":
        path = _npz_file(data)
        with _npz_border(path):
            _check_heads(_heads(path), path, split, data.shape, data.num_classes)


def _check_layout(data: config.Images) -> None:
    known = ("torchvision", "npz", *LAYOUTS)
    if data.layout not in known:
        raise InputError(f"data.layout = {data.layout} is not known; choose from {', '.join(known)}")
    if data.layout in LAYOUTS and data.window_ms is None:
        raise InputError(
            f"data.layout = {data.layout}: data.window_ms is missing; it is the span that becomes the window T"
        )
    if data.layout not in LAYOUTS and data.window_ms is not None:
        raise InputError(f"data.layout = {data.layout}: data.window_ms has no effect; it is for layouts of events")


def _events_file(data: config.Images, split: str) -> Path:
    return data.folder / f"{data.dataset_name}_{split}.h5"


def _npz_file(data: config.Images) -> Path:
    return data.folder / f"{data.dataset_name}.npz"


def _check_shape(found: tuple[int, ...], shape: tuple[int, int, int], where: str) -> None:
    if found[1:] != tuple(shape):
        raise InputError(f"{where}: the images have shape {found[1:]}, data.shape says {tuple(shape)}")


def _torchvision(folder: Path, name: str, train: bool, download: bool) -> "VisionDataset":
    from torchvision import datasets  # imported here, as it takes a second and no other layout needs it

    if name not in TORCHVISION:
        raise InputError(f"data.dataset_name = {name}: torchvision's sets here are {', '.join(TORCHVISION)}")
    try:
        return getattr(datasets, TORCHVISION[name])(folder, train=train, download=download)
    except (OSError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile) as error:  # URLError is an OSError
        reason = " ".join(str(error).split())
        tried = " and cannot be fetched" if download else ""
        raise InputError(
            f"{folder}: {TORCHVISION[name]} is missing or incomplete{tried} ({reason:.120}); put its files there as "
            "torchvision lays them out, or name their folder by data.path (--path_to_dataset)"
        ) from None


def _read_torchvision(data: config.Images, split: Split) -> Images:
    images = _torchvision(data.folder, data.dataset_name, train=split == "train", download=False)
    pixels = np.asarray(images.data)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    where = f"{data.folder}, {TORCHVISION[data.dataset_name]}"
    return Images(np.ascontiguousarray(pixels), np.asarray(images.targets, np.int64), where, tidied(images.classes))


def _read_npz(data: config.Images, split: Split) -> Images:
    """Read x_train and y_train, or x_test and y_test: (n, H, W), (n, H, W, C) or (n, C, H, W), uint8 or in [0, 1].

    class_names, if the file has it, holds the names of the classes as texts, in the order of their numbers.
    """
    path = _npz_file(data)
    with _npz_border(path), np.load(path) as file:
        _check_heads(_heads(path), path, split, data.shape, data.num_classes)
        pixels, labels = file[f"x_{split}"], file[f"y_{split}"].reshape(-1)
        given = file["class_names"].tolist() if "class_names" in file else None
        names = None if given is None else all_different(tidied(given), f"{path}: class_names")
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.shape[1:] != data.shape:
        pixels = pixels.transpose(0, 3, 1, 2)
    if pixels.dtype != np.uint8:
        low, high = pixels.min(), pixels.max()
        if not (low >= 0 and high <= 1):  # NaN fails this
            raise InputError(
                f"{path}: x_{split} goes from {low:g} to {high:g}; pixels must be uint8, or numbers in 0 to 1"
            )
        pixels = pixels.astype(np.float32)
    return Images(np.ascontiguousarray(pixels), labels.astype(np.int64), str(path), names)


@contextmanager
def _npz_border(path: Path) -> Iterator[None]:
    """Turn any exception that NumPy raises for a missing or damaged file into one InputError."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(
            f"{path}: not found; name its folder by data.path (--path_to_dataset), or fetch the set from torchvision "
            "by --set data.layout=torchvision"
        ) from None
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy each have their own for a damaged file
        raise InputError(f"{path}: not a readable .npz file ({' '.join(str(error).split()):.120})") from None


def _heads(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Return shape and type of each array of an .npz file, without reading the arrays."""
    heads = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                    np.lib.format.read_magic(file), np.lib.format.read_array_header_2_0
                )
                shape, _, kind = read(file)
                heads[member.removesuffix(".npy")] = shape, kind
    return heads


def _check_heads(
    heads: dict[str, tuple[tuple[int, ...], np.dtype]],
    path: Path,
    split: Split,
    shape: tuple[int, int, int],
    num_classes: int,
) -> None:
    """Raise InputError if the shapes and types of a file's arrays are not those of images with labels."""
    if missing := [key for key in (f"x_{split}", f"y_{split}") if key not in heads]:
        raise InputError(f"{path}: has no array {missing[0]}; it has {', '.join(map(repr, heads)):.120}")
    (pixels, pixel_type), (labels, label_type) = heads[f"x_{split}"], heads[f"y_{split}"]
    if len(pixels) not in (3, 4) or 0 in pixels[1:]:
        raise InputError(f"{path}: x_{split} has shape {pixels}, not (images, height, width) with or without channels")
    if pixels[0] != math.prod(labels) or not pixels[0]:
        raise InputError(f"{path}: x_{split} holds {pixels[0]} images and y_{split} {math.prod(labels)} labels")
    if label_type.kind not in "iu":
        raise InputError(f"{path}: y_{split} holds {label_type}, not whole numbers")
    if pixel_type.kind not in "iuf":
        raise InputError(f"{path}: x_{split} holds {pixel_type}, not numbers")
    names, kind = heads.get("class_names", ((0,), np.dtype(str)))
    if len(names) != 1 or kind.kind != "U":
        raise InputError(f"{path}: class_names holds {kind} {names}, not a list of texts")
    check_type(label_type, num_classes, str(path), f"labels y_{split}", "data.num_classes")
    if len(pixels) == 4 and pixels[1:] != tuple(shape):
        pixels = pixels[0], pixels[3], *pixels[1:3]
    _check_shape((pixels[0], 1, *pixels[1:]) if len(pixels) == 3 else pixels, shape, str(path))


@kernel
def _find_first(offsets, times, channels, first):
    for r in range(len(offsets) - 1):
        for e in range(offsets[r], offsets[r + 1]):
            if times[e] < first[r, channels[e]]:
                first[r, channels[e]] = times[e]


def first_events(
    recordings: AnyRecordings, shape: tuple[int, int, int], window_ms: float, strict: bool = False
) -> Images:
    """Return pixels x = 1 - t / window_ms, where t is the time of a pixel's first event; 0 without one."""
    ticks = window_ms / 1000 * recordings.ticks_per_second
    first_times = recordings.first_times
    check_first_times(recordings, first_times, ticks, f"the first {window_ms:g} ms", "data.window_ms", strict)
    first = np.full((len(recordings), int(np.prod(shape))), ticks)
    at_once = len(recordings) if isinstance(recordings, Recordings) else RECORDINGS_AT_ONCE
    for start in range(0, len(recordings), at_once):
        loaded, _ = recordings.load(np.arange(start, min(start + at_once, len(recordings))))
        _find_first(loaded.offsets, loaded.times, loaded.channels, first[start : start + at_once])
    pixels = (1 - first / ticks).astype(np.float32)
    images = pixels.reshape(-1, *shape)
    return Images(images, recordings.labels, recordings.where, recordings.class_names, recordings.files)


def batches(
    pixels_nCHW: Tensor,
    labels_n: Tensor,
    index: np.ndarray,
    batch_size: int,
    share: Callable[[np.ndarray], np.ndarray] = lambda part: part,
    augment: Sequence[Augment] = (),
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (pixels (B, C, H, W) float32 in [0, 1], labels (B,)) of the images in `index`, in its order.

    Batches are made on the device that holds the images. `share` picks the part of each batch that this process takes;
    the functions in `augment` are applied to it in turn.
    """
    for start in range(0, len(index), batch_size):
        part_B = torch.from_numpy(share(index[start : start + batch_size])).to(labels_n.device)
        x_BCHW = pixels_nCHW[part_B]
        for change in augment:
            x_BCHW = change(x_BCHW)
        if x_BCHW.dtype == torch.uint8:
            x_BCHW = x_BCHW.float() / 255
        yield x_BCHW, labels_n[part_B]


def crop(x_BCHW: Tensor, pad: int) -> Tensor:
    """Pad each image with `pad` black pixels and crop it at random to its size: a shift by up to `pad` pixels."""
    B, _, H, W = x_BCHW.shape
    device = x_BCHW.device
    padded = F.pad(x_BCHW, [pad] * 4)
    top_B, left_B = torch.randint(2 * pad + 1, (2, B, 1), device=device)
    rows, columns = top_B + torch.arange(H, device=device), left_B + torch.arange(W, device=device)
    samples = torch.arange(B, device=device).view(B, 1, 1)
    return padded.transpose(1, 3)[samples, columns[:, None, :], rows[:, :, None]].permute(0, 3, 1, 2).contiguous()


def flip(x_BCHW: Tensor) -> Tensor:
    """Mirror each image left to right, or leave it, at random."""
    is_mirrored = torch.rand(len(x_BCHW), 1, 1, 1, device=x_BCHW.device) < 0.5
    return torch.where(is_mirrored, x_BCHW.flip(3), x_BCHW)


def autoaugment(x_BCHW: Tensor) -> Tensor:
    """Apply AutoAugment's policy for CIFAR-10 (Cubuk et al. 2019), by torchvision, to one image at a time."""
    from torchvision.transforms import v2

    if x_BCHW.dtype != torch.uint8 or x_BCHW.shape[1] not in (1, 3):
        raise InputError(
            "data.augment: autoaugment needs images of 1 or 3 channels, stored as bytes (uint8), but these have "
            f"{x_BCHW.shape[1]}, stored as {str(x_BCHW.dtype).removeprefix('torch.')}"
        )
    policy = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
    return torch.stack([policy(x_CHW) for x_CHW in x_BCHW])


def cutout(x_BCHW: Tensor) -> Tensor:
    """Put a black square of half the height around a random point of each image (DeVries & Taylor 2017)."""
    B, _, H, W = x_BCHW.shape
    half, device = H // 4, x_BCHW.device
    y_B11, x_B11 = torch.randint(H, (B, 1, 1), device=device), torch.randint(W, (B, 1, 1), device=device)
    rows, columns = torch.arange(H, device=device).view(1, H, 1), torch.arange(W, device=device)
    hole = (rows >= y_B11 - half) & (rows < y_B11 + half) & (columns >= x_B11 - half) & (columns < x_B11 + half)
    return x_BCHW.masked_fill(hole.unsqueeze(1), 0)


def augmentations(names: Sequence[str], crop_pad: int) -> list[Augment]:
    """Return the functions of these names."""
    known = {"crop": partial(crop, pad=crop_pad), "flip": flip, "autoaugment": autoaugment, "cutout": cutout}
    return [known[name] for name in names]
