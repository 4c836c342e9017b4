"""Checkpoints: plain tensors, numbers and text, written whole or not at all, read without running code.

A file holds the bytes of torch.save, then MARK and the SHA-256 of these bytes: torch.load checks no sum and takes a
flipped bit for a weight. A file without this sum (version 1) is checked against the sums within its zip archive.
"""

import io
import os
import sys
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from snn.classes import tidied
from snn.config import Config
from snn.errors import InputError
from snn.files import whole
from snn.losses import LossOptions
from snn.schema import AnyConfig
from snn.settings import build

FORMAT = "first-spike checkpoint"
VERSION = 3
READABLE = (1, 2, VERSION)
MARK = b"first-spike sha256"
FOR_RESUME: dict[str, type | tuple[type, ...]] = {
    "optimizer": dict,
    "step": int,
    "processes": list,
    "best": (tuple, list),
    "best_epoch": int,
}


class Damaged(InputError):
    """An error for a checkpoint that is missing or incomplete; the one before it may be intact."""


def save(path: Path, config: AnyConfig, network: nn.Module, keep: bool = False, **more: Any) -> None:
    """Write configuration, weights and `more` to a file beside path, read it back, and move it to path.

    This replaces the file at path; with `keep`, that file moves to `previous(path)`. Raise InputError if `load_weights`
    would refuse the weights.
    """
    try:
        network.check_values(f"{path}: not written, because it could not be loaded")  # type: ignore[operator]
    except InputError as error:
        raise InputError(f"{error}; try a smaller train.lr") from None
    content = {
        "format": FORMAT,
        "version": VERSION,
        "config": config.model_dump(mode="json"),
        "network": network.state_dict(),
        **more,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.write(MARK + sha256(buffer.getvalue()).digest())
    try:
        with whole(path) as part:
            with part.open("wb") as file:
                file.write(buffer.getvalue())
                file.flush()
                os.fsync(file.fileno())
            if part.read_bytes() != buffer.getvalue():
                raise OSError("the bytes read differ from those written")
            if keep and path.exists():
                os.replace(path, previous(path))
        sync_folder(path.parent)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"{path}: cannot be written ({' '.join(reason.split()):.120}); the previous file is intact"
        ) from None


def previous(path: Path) -> Path:
    """Return the path that keeps the checkpoint before the one at `path`."""
    return path.with_suffix(f".previous{path.suffix}")


def sync_folder(folder: Path) -> None:
    """Make the names of a folder's files survive a loss of power."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def load(path: Path, for_resume: bool = False) -> tuple[AnyConfig, dict[str, Any]]:
    """Read (configuration, content) of a checkpoint; `for_resume` also requires the entries that resuming needs.

    content["class_names"] are the names of the classes, or None if the training file has none.
    """
    try:
        content = torch.load(io.BytesIO(_checked(path.read_bytes())), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise Damaged(f"{path}: no such checkpoint; train one with train.py{_beside(path)}") from None
    except OSError as error:
        raise Damaged(f"{path}: cannot be read ({error.strerror}){_beside(path)}") from None
    except Exception:  # for foreign bytes torch's unpickler may raise anything
        raise Damaged(
            f"{path}: not a checkpoint of first-spike, or damaged; train again or choose another{_beside(path)}"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path}: not a checkpoint of first-spike; train.py writes these to runs/<name>/best.pt")
    if content.get("version") not in READABLE:
        readable = " and ".join(map(str, READABLE))
        raise InputError(
            f"{path}: has version {content.get('version')}, this program reads versions {readable}; use the "
            "program that wrote it, or train again"
        )
    wanted = {"config": dict, "network": dict, "epoch": int, **(FOR_RESUME if for_resume else {})}
    for name, kind in wanted.items():
        if not isinstance(content.get(name), kind):
            hint = f"; only last.pt of a run (version {VERSION}) can be resumed"
            hint = hint if name in FOR_RESUME else ", it is damaged"
            raise InputError(f"{path}: the checkpoint has no {name}{hint}")
    names = content.get("class_names")
    if not isinstance(names, list | tuple | None) or not all(isinstance(name, str) for name in names or ()):
        raise InputError(f"{path}: the checkpoint is damaged: its class_names are not names")
    content["class_names"] = None if names is None else tidied(names)
    if not isinstance(content.get("trained_on", {}), dict):
        raise InputError(f"{path}: the checkpoint is damaged: its trained_on are not fingerprints")
    cfg = build(_without_lost_losses(content["config"], path), f"{path}, configuration")
    if content["version"] < 3 and isinstance(cfg, Config):
        content["network"] = _renamed(content["network"], len(cfg.network.layers))
    return cfg, content


def _without_lost_losses(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Leave out, with a warning, options of losses that are no longer there, which another loss does not read.

    If the loss itself is gone, `loss.mode` says so.
    """
    loss = values.get("loss")
    if not isinstance(loss, dict) or not (lost := loss.keys() - LossOptions.model_fields.keys()):
        return values
    names = ", ".join(f"loss.{name}" for name in sorted(lost))
    print(f"warning: {path}: left out options that are not known here: {names}", file=sys.stderr)
    return values | {"loss": {name: value for name, value in loss.items() if name not in lost}}


def _renamed(weights: dict[str, Any], hidden: int) -> dict[str, Any]:
    """Rename weights as in version 3; before, hidden layers were `blocks`, and the output layer was not among them."""
    names = {"blocks.": "layers.", "readout.": f"layers.{hidden}.linear.", "output.": f"layers.{hidden}.neurons."}
    renamed = {}
    for name, value in weights.items():
        before = next((before for before in names if name.startswith(before)), "")
        renamed[names.get(before, "") + name.removeprefix(before)] = value
    return renamed


def load_newest(path: Path) -> tuple[Path, AnyConfig, dict[str, Any]]:
    """Read (path, configuration, content) of a checkpoint to resume from: this one, or if damaged the one before."""
    try:
        return path, *load(path, for_resume=True)
    except Damaged as damage:
        before = previous(path)
        if not before.exists():
            raise
        try:
            loaded = load(before, for_resume=True)
        except Damaged:
            raise Damaged(f"{path} and {before} are both damaged; train again") from None
        print(f"warning: {str(damage).split(';')[0]}; continuing from the previous one, {before}", file=sys.stderr)
        return before, *loaded


def _checked(data: bytes) -> bytes:
    """Return the part of a file that torch.save wrote. Raise ValueError if the bytes have changed since."""
    mark = len(data) - sha256().digest_size - len(MARK)
    if data[max(mark, 0) :].startswith(MARK):
        if sha256(memoryview(data)[:mark]).digest() != data[mark + len(MARK) :]:
            raise ValueError("checksum differs")
        return data[:mark]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if archive.testzip():
            raise ValueError("checksum differs")
    return data


def _beside(path: Path) -> str:
    """List the other checkpoints in the same folder, for a message."""
    others = sorted(other.name for other in path.parent.glob("*.pt") if other.name != path.name)
    return f"; found beside it: {', '.join(others)}" if others else ""


def load_network(path: str | Path, backend: str | None = None) -> tuple[nn.Module, AnyConfig, dict[str, Any]]:
    """Load (network in evaluation mode, configuration, content) of a checkpoint, or of best.pt in the folder of a run.

    `backend` replaces train.backend.
    """
    path = Path(path)
    path = path / "best.pt" if path.is_dir() else path
    cfg, content = load(path)
    network = cfg.new_network(backend).eval()
    load_weights(network, content["network"], path)
    return network, cfg, content


def load_weights(network: nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Put the weights of a checkpoint into a network of the same shape."""
    own = {name: _kind(value) for name, value in network.state_dict().items()}
    given = {name: _kind(value) for name, value in weights.items()}
    for name in own.keys() | given.keys():
        if own.get(name) != given.get(name):
            raise InputError(
                f"{path}: belongs to another network: {name} is {given.get(name, 'absent')} there and "
                f"{own.get(name, 'absent')} here; use the configuration it was trained with"
            )
    network.load_state_dict(weights)
    network.check_values(str(path))  # type: ignore[operator]  # as both kinds have


def _kind(value: Any) -> str:
    """Return the type and shape of a weight, for comparison and for messages."""
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
