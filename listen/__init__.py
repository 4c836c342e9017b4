"""A page that listens: one HTML file with a trained network and the cochlea, both compiled to WebAssembly from C."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from base64 import b64encode
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from datasets.binning import Bins
from datasets.prepare import cochlea, cochlea_c, speech
from snn import embedded
from snn.config import Data
from snn.errors import InputError
from snn.network import Network

HERE = Path(__file__).parent
SEED = 0  # of the nerve's noise, as in demo.py
MARK = '"@PAGE@"'  # the place in page.html for the page's constants


def page(network: Network, data: Data, class_names: Sequence[str] | None, title: str) -> str:
    """Return the page as HTML, with the window of the test.

    Raises InputError if the network does not take the cochlea's channels, if C cannot express it, or if there is no
    compiler.
    """
    if data.channels != cochlea.N_PLACES:
        takes = f"{data.channels} channels" if data.channels else "a camera"
        raise InputError(f"{title}: takes {takes}, but the cochlea has {cochlea.N_PLACES}; choose another")
    if find_spec("ziglang") is None:
        raise InputError("--format html needs a C compiler for WebAssembly: pip install ziglang")
    bins = Bins.of(data, "test")
    names = [f"class {k}" for k in range(data.num_classes)] if class_names is None else list(class_names)
    code = embedded.code(network, bins.dt_ms, bins.T, bins.T_empty, names, most_late=2**16 - 1)  # a page has memory
    sizes = [layer.linear.out_features for layer in network.layers]
    known = {
        "title": title,
        "names": names,
        "layers": sizes,
        "threshold": network.output.neurons.threshold,
        "dtMs": bins.dt_ms,
        "T": bins.T + bins.T_empty,
        "rateHz": cochlea.AUDIO_RATE_HZ,
        "hop": cochlea.HOP,
        "places": cochlea.N_PLACES,
        "lookahead": cochlea.LOOKAHEAD,
        "rms": cochlea.AUDIO_RMS,
        "rampS": cochlea.RAMP_S,
        "paddingS": cochlea.PADDING_S,
        "silence": speech.SILENCE,
        "wasm": _base64(_wasm(code.files, sum(sizes), data.pool)),
        "tables": _base64(cochlea_c.tables().astype("<f4").tobytes()),
        "noise": _base64(cochlea.noise_states(SEED).astype("<u8").tobytes()),
    }
    text = json.dumps(known, ensure_ascii=False).replace("<", "\\u003c")  # no name ends the script
    return (HERE / "page.html").read_text(encoding="utf-8").replace(MARK, text)


def _wasm(files: dict[str, str], num_neurons: int, pool: int) -> bytes:
    """Compile the cochlea and a network in C."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, text in files.items() | {("cochlea_constants.h", cochlea_c.constants())}:
            (folder / file).write_text(text, encoding="utf-8")
        module, ears = folder / "page.wasm", cochlea_c.SOURCE.parent
        command = [sys.executable, "-m", "ziglang", "cc", "-target", "wasm32-freestanding", "-mcpu=generic+simd128"]
        command += [*cochlea_c.FLAGS, "-nostdlib", "-Wl,--no-entry", f"-DALL_NEURONS={num_neurons}", f"-DPOOL={pool}"]
        command += [f"-I{folder}", f"-I{ears}", "-o", str(module)]
        sources = [HERE / "page.c", cochlea_c.SOURCE, folder / "network.c"]
        ran = subprocess.run([*command, *map(str, sources)], capture_output=True, text=True, check=False)
        if ran.returncode:
            said = next((line for line in ran.stderr.splitlines() if "error" in line), ran.stderr[-300:])
            raise InputError(f"ziglang could not compile the page ({said.strip()}); pip install --upgrade ziglang")
        return module.read_bytes()


def _base64(content: bytes) -> str:
    return b64encode(content).decode()
