"""The neurons, one file each: equations with their source, states, values, and one step in plain torch.

Every backend, streams, reports and exports follow from that file. Put a file into this folder, or into one that the
environment variable FIRST_SPIKE_NEURONS names, to add it to NEURONS; see docs/adding_a_neuron.md.
"""

import ast
import os
import sys
import traceback
from collections import Counter
from importlib import import_module
from inspect import getfile
from pathlib import Path

from snn.neurons.module import SpikingNeuron

__path__ += [folder for folder in os.environ.get("FIRST_SPIKE_NEURONS", "").split(os.pathsep) if folder]


def _found() -> dict[str, type[SpikingNeuron]]:
    """Return name -> class for all files in these folders."""
    neurons: dict[str, type[SpikingNeuron]] = {}
    for folder in __path__:
        if not Path(folder).is_dir():
            print(f"warning: FIRST_SPIKE_NEURONS names {folder}, which is not a folder", file=sys.stderr)
        for path in sorted(Path(folder).glob("[!_]*.py")):
            try:
                module = import_module(f"{__name__}.{path.stem}")
            except (Exception, SystemExit) as error:  # whatever a user's file may raise; other neurons go on
                if path.parent == Path(__file__).parent:
                    raise
                print(f"warning: {_mistake(error, path)}; its neurons are left out", file=sys.stderr)
                continue
            if not path.samefile(file := getfile(module)):
                print(f"warning: {path} is ignored; {file} has the same name", file=sys.stderr)
                continue
            top = ast.parse(path.read_text(encoding="utf-8")).body
            classes = Counter(statement.name for statement in top if isinstance(statement, ast.ClassDef))
            for name, value in vars(module).items():
                is_neuron = isinstance(value, type) and issubclass(value, SpikingNeuron) and hasattr(value, "STATES")
                if is_neuron and value.__module__ == module.__name__:
                    if name in neurons or classes[name] > 1:
                        other = sys.modules[neurons[name].__module__].__file__ if name in neurons else "once more"
                        value.FAULT = f"neuron {name} is defined in {path} and {other}: rename one of them"
                    neurons[name] = value
    return neurons


def _mistake(error: BaseException, path: Path) -> str:
    """Say in a line what is wrong in a neuron's file, and in which of its lines."""
    steps = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        steps.append((error.filename or "", error.lineno))
    lines = [line for name, line in steps if Path(name) == path.absolute()]
    where = f"{path}, line {lines[-1]}" if lines else f"{path}"
    return " ".join(f"{where}: {type(error).__name__}: {getattr(error, 'msg', error)}".split())


NEURONS = _found()
vars(sys.modules[__name__]).update(NEURONS)

__all__ = ["NEURONS", "SpikingNeuron", *NEURONS]
