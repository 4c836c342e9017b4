"""Numbers in a type that cannot hold them: they wrapped when a file was written, and are refused or named."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from datasets import hdf5, images, readers
from datasets.binning import Bins
from datasets.window import HALVES
from snn.config import SENSORS, Sensor
from snn.errors import InputError
from tests.cameras import CHANNELS, make_pixels, write_camera
from tests.conftest import REPOSITORY, make_events
from tests.make import image_data

CASES = REPOSITORY.parent / "shared" / "cases"


def write(path: Path, times: list, units: list, labels: list, types: str = "f4 u2 i8") -> Path:
    """Write SHD's layout with these types of times, units and labels; numbers wrap as NumPy's do."""
    kinds = [np.dtype(kind) for kind in types.split()]
    with h5py.File(path, "w") as file:
        for name, rows, kind in (("times", times, kinds[0]), ("units", units, kinds[1])):
            dataset = file.create_dataset(f"spikes/{name}", (len(rows),), h5py.vlen_dtype(kind))
            for r, row in enumerate(rows):
                dataset[r] = np.asarray(row).astype(kind)
        file["labels"] = np.asarray(labels).astype(kinds[2])
    return path


def small(types: str, path: Path, classes: int) -> Path:
    events = make_events(classes, classes, 40, 0)
    return write(path, events["times"], events["units"], events["labels"], types)


@pytest.mark.parametrize(
    ("types", "channels", "classes", "message"),
    [
        ("f4 u1 i8", 256, 3, None),
        ("f4 u1 i8", 257, 3, "its units are uint8, which ends at 255, but .* go up to 256; .* again as uint16"),
        ("f4 u1 i8", 700, 3, "uint8, which ends at 255, .* go up to 699; .* as uint16"),
        ("f4 i1 i8", 700, 3, "int8, which ends at 127, .* as uint16"),
        ("f4 u2 i8", Sensor(height=128, width=256).num_units, 3, None),
        (
            "f4 u2 i8",
            Sensor(height=240, width=304).num_units,
            3,
            "uint16, which ends at 65,535, .* 145,919; .* as uint32",
        ),
        ("f4 i2 i8", 40_000, 3, "int16, which ends at 32,767, .* as uint16"),
        ("f4 u2 i1", 40, 128, None),
        ("f4 u2 i1", 40, 129, "its labels are int8, which ends at 127, .* data.num_classes .* 128; .* as uint8"),
        ("f4 u2 u1", 40, 257, "its labels are uint8, .* as uint16"),
        ("f4 u2 f2", 40, 2050, "its labels are float16, which ends at 2,048, .* as uint16"),
    ],
)
@pytest.mark.parametrize("ask", [readers.read, readers.look])
def test_types_are_held_against_numbers(tmp_path, types, channels, classes, message, ask):
    path = small(types, tmp_path / "x.h5", min(classes, 128))
    if message is None:
        ask("shd", path, "train", channels, classes)
        return
    with pytest.raises(InputError, match=message) as refusal:
        ask("shd", path, "train", channels, classes)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"])
def test_the_largest_number_of_a_type(kind):
    most = hdf5.largest(np.dtype(kind))
    numbers = np.array([most, most + 1], object)
    if kind[0] == "f":
        assert numbers.astype(kind).astype(np.float64).tolist() == [most, most]  # the next one is not told from it
    else:
        assert int(numbers[:1].astype(kind)[0]) == most
        with pytest.raises(OverflowError):
            np.dtype(kind).type(most + 1)


@pytest.mark.parametrize(("name", "layout"), [("addrs", "ntidigits"), ("labels", "ntidigits")])
def test_types_of_the_layout_of_ntidigits(tmp_path, name, layout):
    """The narrowest type of all recordings decides."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for r in range(4):
            values = {"times": np.arange(9), "addrs": np.zeros((9, 1), int), "labels": [r % 2]}
            for key, value in values.items():
                file[f"data/{r}/{key}"] = np.asarray(value).astype("i1" if (key, r) == (name, 2) else "i4")
        file["extra/train_keys"] = [b"0", b"1", b"2", b"3"]
    with pytest.raises(InputError, match="int8, which ends at 127"):
        readers.read(layout, tmp_path / "x.h5", "train", 129, 129)


def test_pixels_of_a_camera(tmp_path):
    """x of a sensor of 304 columns does not fit a byte."""
    events = make_pixels(6, 3, "dvsplane", 0)
    write_camera(tmp_path / "x.h5", "dvsplane", "train", **events, dtype=np.uint8)
    with pytest.raises(InputError, match=r"pixels /0/data are uint8, which ends at 255, .* as uint16"):
        readers.read("dvsplane", tmp_path / "x.h5", "train", CHANNELS["dvsplane"], 3)
    assert SENSORS["dvsplane"] == (240, 304)


def test_labels_of_images(tmp_path):
    x, y = np.zeros((200, 4, 4), np.uint8), np.arange(200).astype(np.int8)
    np.savez(tmp_path / "x.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    data = image_data("npz", tmp_path, "x", (1, 4, 4), 200)
    for ask in (images.read, images.look):
        with pytest.raises(InputError, match="labels y_train are int8, which ends at 127"):
            ask(data, "train")


# times


@pytest.mark.parametrize("in_memory", [True, False])
def test_counters_that_have_run_over_are_named(tmp_path, capsys, in_memory):
    """Write µs in 16 bits as seconds: each recording is a sawtooth of 65.5 ms. Unordered events do not look so."""
    events = make_events(6, 3, 40, 0)
    micros = [(1e6 * times).astype(np.uint32) for times in events["times"]]
    wrapped = [ticks.astype(np.uint16) / 1e6 for ticks in micros[:5]] + [
        np.random.default_rng(0).permutation(micros[5]) / 1e6
    ]
    path = write(tmp_path / "x.h5", wrapped, events["units"], events["labels"])
    readers.read("shd", path, "train", 40, 3, in_memory=in_memory)
    said = capsys.readouterr().err
    assert "in 5 of 6 recordings time falls like that of a counter which has run over (recording 0: from 0.05" in said
    shuffled = [np.random.default_rng(r).permutation(times) for r, times in enumerate(events["times"])]
    for times in (events["times"], shuffled):
        readers.read("shd", write(tmp_path / "x.h5", times, events["units"], events["labels"]), "train", 40, 3)
        assert not capsys.readouterr().err


@pytest.mark.parametrize(("kind", "bits"), [("u2", "16 bits: 65.5 ms"), ("u4", "32 bits: 71.6 min")])
def test_counters_of_a_camera_say_their_bits(tmp_path, kind, bits):
    ticks = np.arange(2**16 - 3, 2**16 + 3) if kind == "u2" else np.arange(2**32 - 3, 2**32 + 3)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["0/time"], file["0/data"], file["0/labels"] = ticks.astype(kind), np.zeros((6, 3), "u2"), np.uint8(0)
    with pytest.raises(InputError, match=re.escape(f"if its counter has run over ({bits}), unwrap it")):
        readers.read("dvsplane", tmp_path / "x.h5", "train", CHANNELS["dvsplane"], 1)


@pytest.mark.parametrize(("dt_ms", "is_said"), [(10, False), (2, False), (0.5, True), (0.1, True)])
@pytest.mark.parametrize("kind", ["f2", "f4"])
def test_halves_are_too_coarse_for_narrow_bins(tmp_path, capsys, dt_ms, is_said, kind):
    """Count how many events move, and how many bins none can reach. Times rounded to float16 count even in float32."""
    random = np.random.default_rng(0)
    exact = [np.sort(random.uniform(0, 1, 3000)) for _ in range(3)]
    halves = [times.astype(np.float16).astype(kind) for times in exact]
    path = write(tmp_path / "x.h5", halves, [np.zeros(3000)] * 3, [0, 1, 2], f"{kind} u2 i8")
    bins = Bins(dt_ms, round(1000 / dt_ms), 0, 1)
    readers.read("shd", path, "train", 1, 3, bins=bins)
    said = capsys.readouterr().err
    assert ("rounded to float16, too coarse for bins of" in said) == is_said
    if is_said:
        steps = [np.floor(1000 * np.concatenate(times).astype(np.float64) / dt_ms) for times in (exact, halves)]
        moved = 100 * np.mean(steps[0] != steps[1])
        assert abs(int(re.search(r"about (\d+) % of the events", said)[1]) - moved) < 0.1 * moved + 1
        reached = len(np.unique(np.floor(1000 * HALVES[HALVES < 1] / dt_ms)))
        assert ("can hold none" in said) == (reached < bins.T)
        assert dt_ms == 0.5 or f"{bins.T - reached} of {bins.T} bins can hold none" in said
    readers.read("shd", write(path, exact, [np.zeros(3000)] * 3, [0, 1, 2]), "train", 1, 3, bins=bins)
    assert not capsys.readouterr().err


def test_whole_seconds_are_too_coarse(tmp_path, capsys):
    """Seconds that were cut to whole ones all lie in the first bin."""
    events = make_events(6, 3, 40, 0)
    path = write(tmp_path / "x.h5", events["times"], events["units"], events["labels"], "i8 u2 i8")
    readers.read("shd", path, "train", 40, 3, bins=Bins(10, 20, 0, 40))
    said = capsys.readouterr().err
    assert "its times are whole numbers of 1 s, too coarse for bins of 10 ms" in said
    assert "19 of 20 bins can hold none" in said


def test_the_docs_show_a_type_that_fits():
    """The types that docs/adding_a_data_set.md gives for a camera hold the largest of the published sensors."""
    text = (REPOSITORY / "docs" / "adding_a_data_set.md").read_text()
    kinds = re.findall(r"units.*?vlen_dtype\(np\.(\w+)\)", text)
    assert kinds
    for kind in kinds:
        assert hdf5.largest(np.dtype(kind)) >= 2 * 1280 * 720 - 1


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases of users are not here")
def test_case_of_a_user():
    path = CASES / "d_tonic" / "in" / "cam_train.h5"
    with pytest.raises(InputError, match=r"uint16, which ends at 65,535, .* as uint32"):
        readers.read("shd", path, "train", Sensor(height=240, width=304, divide=16).num_units, 3)


@pytest.mark.parametrize(("types", "unit"), [("f4 u4 i8", -5), ("f4 i2 i8", -5)])
def test_units_below_zero_have_wrapped(tmp_path, types, unit):
    units = [np.array([1, 2]), np.array([3, unit]), np.array([4, 5])]
    path = write(tmp_path / "x.h5", [[0.1, 0.2]] * 3, units, [0, 1, 2], types)
    with pytest.raises(InputError, match=r"recording 1 has .* outside 0\.\.39; .* have wrapped: compute them in int64"):
        readers.read("shd", path, "train", 40, 3)
