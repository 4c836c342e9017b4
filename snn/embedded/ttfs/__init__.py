"""A TTFS network as C: the same kind of folder as that of `snn.embedded`, for neurons that fire at most once.

The C files of this folder are templates. One function runs every layer, from a table of layers in weights.h. Every
sum is in the order of `snn.ttfs.events`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from snn import checks
from snn.classes import name_of_each
from snn.embedded.writing import Code, definition, number, quoted, resolved, size_of_struct
from snn.errors import InputError
from snn.quantise import as_int8, quantised
from snn.ttfs.events import columns, rounding
from snn.ttfs.layers import AverageLead, Conv2d, Readout, SpikingLayer, UnitEncoder
from snn.ttfs.network import Layer, TTFSNetwork

HERE = Path(__file__).parent
MOST = 2**16  # inputs are numbered with 16 bits


def code(network: TTFSNetwork, class_names: Sequence[str] | None = None, int8: bool = False) -> Code:
    """Return C that decides as `snn.ttfs.events.EventDriven` does, and in all but rare ties of rounding as `network`.

    With `int8` the weights are those of `quantised(network)`, one byte each. InputError for a network that this C
    cannot express.
    """
    weight = network.readout.weight
    checks.weights("the network", weight)
    if weight.dtype != torch.float32:
        raise InputError("the format c takes float32 networks; convert this one with network.float()")
    if not isinstance(network.encoder, UnitEncoder):
        raise InputError("the format c takes TTFS networks with ttfs.encoder: unit, whose pixels are spikes")
    network.check_values("the network")
    network = (quantised if int8 else TTFSNetwork.folded)(network).cpu()
    stages: list[tuple[Layer | Readout, torch.Size, torch.Size]] = []
    t = torch.zeros(1, *network.input_shape)
    for module in (*network.layers, network.readout):
        t_in, t = t, module(t)
        stages.append((module, t_in.shape[1:], t.shape[1:]))
    if (most := max(before.numel() for _, before, _ in stages)) > MOST:
        raise InputError(f"the format c numbers the inputs of a layer with 16 bits, but one has {most:,}")
    neurons = [module for module in network.layers if isinstance(module, SpikingLayer)]
    arrays, table = [], []
    for k, (module, before, after) in enumerate(stages, 1):
        row, added = _row(k, module, before, after, int8)
        table.append(row)
        arrays += added
    C, H, W = network.input_shape
    names = name_of_each(class_names, len(weight))
    zero_drive_fires = neurons[0].options["zero_drive_fires"]
    words: dict[str, object] = {
        "TITLE": f"A network {_written(stages)} with {'int8' if int8 else 'float32'} weights.",
        "CHANNELS": C,
        "HEIGHT": H,
        "WIDTH": W,
        "INPUTS": C * H * W,
        "CLASSES": len(weight),
        "CLASS_NAMES": ", ".join(map(quoted, names)),
        "T": number(np.float32(network.readout.T)),
        "LAYERS": len(neurons),
        "WEIGHT": "int8_t" if int8 else "float",
        "MOST_EVENTS": max(before.numel() for module, before, _ in stages if hasattr(module, "weight")),
        "MEMORY": _memory(stages),
        "SILENT_WITHOUT_DRIVE": "" if zero_drive_fires else " || (S == 0 && A == 0)",
    }
    flags = {"INT8": int8}
    files = {
        name: resolved((HERE / name).read_text(encoding="utf-8"), flags, words) for name in ("network.h", "network.c")
    }
    files["main.c"] = (HERE / "main.c").read_text(encoding="utf-8")
    files["Makefile"] = (HERE.parent / "Makefile").read_text(encoding="utf-8")
    slack = number(np.float32(rounding(network.readout.weight, network.readout.T)))
    files["weights.h"] = "".join(
        [
            *map(definition, arrays),
            "\nstatic const layer layers[] = {\n",
            *(f"    {{{row}}},\n" for row in table),
            f"}};\n\n/* The most that rounding may change of a lead. */\nstatic const float ROUNDING = {slack};\n",
        ]
    ).lstrip()
    constants_bytes, state_bytes = sum(array.nbytes for _, array in arrays), size_of_struct(files["network.h"])
    words |= {"CONSTANTS": f"{constants_bytes:,}", "STATE": f"{state_bytes:,}"}
    files["README.md"] = resolved((HERE / "README.md").read_text(encoding="utf-8"), flags, words)
    return Code(files, constants_bytes, state_bytes)


def _row(
    k: int, module: Layer | Readout, before: torch.Size, after: torch.Size, int8: bool
) -> tuple[str, list[tuple[str, np.ndarray]]]:
    """Return a layer as a row of the table in weights.h, and its arrays."""
    fields: dict[str, object] = {}
    arrays = []
    if isinstance(module, (SpikingLayer, Readout)):
        weight = module.weight.detach()
        if int8:
            whole, scale_O = as_int8(weight.flatten(1))
            weight = whole.view_as(weight)
            arrays.append((f"scales_{k}", scale_O.numpy()))
            fields["scales"] = f"scales_{k}"
        if isinstance(module, SpikingLayer) and module.bias is not None:
            arrays.append((f"biases_{k}", module.bias.detach().numpy()))
            fields["biases"] = f"biases_{k}"
        W_CKKO = columns(weight, before).numpy()
        arrays.append((f"weights_{k}", W_CKKO))
        fields["weights"] = f"weights_{k}"
        fields["kernel"] = W_CKKO.shape[1]
        is_map = isinstance(module, Conv2d)
        fields |= {"stride": module.stride, "padding": W_CKKO.shape[1] // 2} if is_map else {"stride": 1}
    else:
        is_map = True
        fields |= {"kernel": module.kernel, "averages": "true" if isinstance(module, AverageLead) else "false"}
    names = ("channels", "height", "width")
    for prefix, shape in (("", before), ("out_", after)):
        sizes = shape if is_map else (shape.numel(), 1, 1)
        fields |= {f"{prefix}{name}": size for name, size in zip(names, sizes, strict=True)}
    return ", ".join(f".{name} = {value}" for name, value in fields.items()), arrays


def _memory(stages: Sequence[tuple[Layer | Readout, torch.Size, torch.Size]]) -> int:
    """Return how many numbers a layer's inputs and two sums for each of its neurons take at the most.

    Inputs at the end of the memory keep their beginning when they are pooled, and so the room that they had.
    """
    most = room = stages[0][1].numel()
    is_at_end = False
    for module, _, after in stages:
        if isinstance(module, SpikingLayer):
            most = max(most, room + 2 * after.numel())
            room, is_at_end = after.numel(), not is_at_end
        elif not is_at_end:
            room = after.numel()
    return most


def _written(stages: Sequence[tuple[Layer | Readout, torch.Size, torch.Size]]) -> str:
    """Write the sizes of the layers in the notation of ttfs.layers, between those of the input and the output."""
    words = ["x".join(map(str, stages[0][1]))]
    for module, _, after in stages:
        if isinstance(module, Conv2d):
            stride = f"S{module.stride}" if module.stride > 1 else ""
            words.append(f"{after[0]}C{module.weight.shape[-1]}{stride}")
        elif isinstance(module, (SpikingLayer, Readout)):
            words.append(f"{after[0]}F" if isinstance(module, SpikingLayer) else str(after[0]))
        else:
            words.append(f"{'A' if isinstance(module, AverageLead) else 'P'}{module.kernel}")
    return "-".join(words)
