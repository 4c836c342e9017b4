"""Checkpoints: plain tensors, numbers and text, written whole or not at all, read without running code."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from snn.config import AnyConfig, build
from snn.errors import InputError
from snn.network import Network
from snn.ttfs.network import Network as TTFSNetwork

FORMAT = "first-spike checkpoint"
VERSION = 1
FOR_RESUME = {"optimizer": dict, "best": (tuple, list)}


def save(path: Path, config: AnyConfig, network: Network | TTFSNetwork, **more: Any) -> None:
    """Write configuration, weights and `more` to path, by way of a temporary file beside it."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "config": config.model_dump(mode="json"),
        "network": network.state_dict(),
        **more,
    }
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        part.unlink(missing_ok=True)
        raise InputError(
            f"{path}: cannot be written ({' '.join(str(error).split()):.120}); what was there before is intact"
        ) from None


def load(path: Path, for_resume: bool = False) -> tuple[AnyConfig, dict[str, Any]]:
    """(configuration, content) of a checkpoint; with what a run needs to go on, if it is `for_resume`."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint; train one with train.py") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile):
        raise InputError(f"{path}: not a checkpoint of ours, or damaged; train again or take another") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path}: not a checkpoint of ours; train.py writes them to runs/<name>/best.pt")
    if content.get("version") != VERSION:
        raise InputError(f"{path}: has version {content.get('version')}, this program reads version {VERSION}")
    for name, kind in ({"config": dict, "network": dict, "epoch": int} | (FOR_RESUME if for_resume else {})).items():
        if not isinstance(content.get(name), kind):
            hint = "; only last.pt of a run can be resumed" if name in FOR_RESUME else ", it is damaged"
            raise InputError(f"{path}: the checkpoint has no {name}{hint}")
    return build(content["config"], f"{path}, configuration"), content


def load_weights(network: Network | TTFSNetwork, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Put the weights of a checkpoint into a network of the same shape."""
    own = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    given = {name: tuple(getattr(value, "shape", ())) for name, value in weights.items()}
    for name in own.keys() | given.keys():
        if own.get(name) != given.get(name):
            raise InputError(
                f"{path}: belongs to another network: {name} is {given.get(name, 'absent')} there and "
                f"{own.get(name, 'absent')} here; take the configuration it was trained with"
            )
    network.load_state_dict(weights)
    network.check_values(str(path))
