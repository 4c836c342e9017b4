"""Tests of one network and of several, their page, and a comparison of two networks, as a user runs them."""

import base64
import errno
import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from matplotlib import pyplot as plt

import compare
import tasks
from snn import checkpoint, config, pictures, report, schema, settings, statistics, tables
from snn.errors import InputError
from snn.files import whole, write_whole
from snn.network import Network
from snn.report import Section, Tile
from snn.ttfs.network import TTFSNetwork
from tests.conftest import REPOSITORY, assert_one_line, make_events, write_shd
from tests.networks import toy_config

NAMES = ("one", "two & <three>", "four")


def save_run(folder: Path, cfg: schema.AnyConfig, names: tuple[str, ...] = ("best.pt",)) -> Path:
    """Save the run of an untrained network."""
    folder.mkdir(parents=True)
    torch.manual_seed(cfg.train.seed)
    if isinstance(cfg, config.TTFSConfig):
        network, validation = TTFSNetwork(cfg.ttfs, cfg.data.shape, cfg.data.num_classes), {"validation_accuracy": 50.0}
    else:
        network = Network(cfg.network, cfg.data.shape, cfg.data.num_classes)
        validation = {"validation_fs_accuracy": 30.0, "validation_fr_accuracy": 20.0}
    for name in names:
        checkpoint.save(folder / name, cfg, network, epoch=2)
    rows = [{"epoch": k, "train_loss": 3.0 / k, "validation_loss": 3.1 / k, **validation} for k in (1, 2)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"epoch": 3, "tra')
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg.model_dump(mode="json")))
    return folder


@pytest.fixture
def toy(tmp_path) -> Path:
    """Write data/toy_test.h5, 24 recordings of 3 named classes, and the runs a and b of two seeds."""
    path = write_shd(tmp_path / "data" / "toy_test.h5", **make_events(24, 3, 40, 1))
    import h5py

    with h5py.File(path, "a") as file:
        file["extra/keys"] = np.array(NAMES, h5py.string_dtype())
    for seed, name in enumerate("ab"):
        save_run(tmp_path / "runs" / name, toy_config(seed))
    return tmp_path


def read_metrics(run: str) -> dict:
    return json.loads(Path(run, "test", "metrics.json").read_text())


def assert_needs_nothing(html: str) -> None:
    """Check that the page has its pictures within it and no address but places of its own."""
    assert "http" not in re.sub(r"<pre.*?</pre>", "", re.sub(r'src="data:[^"]*"', "", html), flags=re.DOTALL)
    assert not re.findall(r"<(?:script|link|iframe)|@import|url\(", html)
    assert all(src.startswith("data:image/") for src in re.findall(r'src="([^"]*)"', html))
    assert all(href.startswith("#") for href in re.findall(r'href="([^"]*)"', html))


def labels_of(figure: plt.Figure) -> set[str]:
    return {words for axis in figure.axes for words in (axis.get_xlabel(), axis.get_ylabel()) if words}


def test_the_page_holds_everything(program, toy, monkeypatch):
    labels = set()
    monkeypatch.setattr(pictures, "draw_rates", noting(pictures.draw_rates, labels))
    monkeypatch.setattr(pictures, "draw_learned", noting(pictures.draw_learned, labels))
    monkeypatch.setattr(pictures, "draw_decision", noting(pictures.draw_decision, labels))
    result = program("test.py --load_pt_file a --test_single_delay")
    assert result.returncode == 0, result.stderr
    assert labels >= {"time (ms)", "spikes per sample", "membrane time constant (ms)", "output potential"}
    folder = toy / "runs" / "a" / "test"
    html, metrics = (folder / "report.html").read_text(), read_metrics("runs/a")
    assert_needs_nothing(html)
    assert f"{metrics['fs_accuracy']:.2f} %" in html
    assert tables.interval(metrics["fs_accuracy_interval"]) in html
    assert "two &amp; &lt;three&gt;" in html
    assert "<three>" not in html
    for title in ("Results", "Decisions", "Delay", "Classes", "Activity", "Learned neurons", "Training", "Provenance"):
        assert f">{title}</h2>" in html
    assert ">Energy</h2>" not in html
    assert "layers: [16F, 12R]" in html
    assert metrics["versions"]["torch"] in html
    # each picture stands in the page and as PNG beside it
    drawn = re.findall(r"\((\w+\.png)\)</figcaption>", html)
    assert {path.name for path in folder.glob("*.png")} == set(drawn)
    assert {"anytime.png", "latencies.png", "confusion_fs.png", "learned.png", "learning.png", "rates.png"} < set(drawn)
    for name, content in zip(drawn, re.findall(r'src="data:image/png;base64,([^"]*)"', html), strict=True):
        assert base64.b64decode(content) == (folder / name).read_bytes()
    assert not list(folder.glob(".*"))


def noting(draw, labels: set[str]):
    """Return the same function, which also adds the labels of its axes to `labels`."""

    def drawn(*words, **more):
        figure = draw(*words, **more)
        labels.update(labels_of(figure))
        return figure

    return drawn


@pytest.mark.slow
@pytest.mark.painted
def test_pictures_are_painted(program, toy):
    assert program("test.py --load_pt_file a --show --test_single_delay").returncode == 0
    paths = list((toy / "runs" / "a" / "test").glob("*.png"))
    assert len(paths) > 12
    for path in paths:
        pixels = plt.imread(path)
        assert pixels.shape[1] == 5 * pictures.DPI
        assert 0.01 < np.mean(pixels[..., :3] < 0.9) < 0.9  # neither blank nor full


def test_an_energy_has_its_section():
    energy = {"of a decision": {"value": 1234.5, "unit": "nJ", "source": "45 nm <CMOS>"}}
    html = report.render(
        "x", "", [Tile("a", "1")], [Section("Energy", tables=[report.energy_table(energy)]), Section("No")]
    )
    assert "1,234 nJ" in html
    assert "45 nm &lt;CMOS&gt;" in html
    assert ">No</h2>" not in html


def test_many_at_once(program, toy, monkeypatch):
    """One pass gives a row for each, the mean over seeds of a configuration, and each folder as if tested alone."""
    save_run(toy / "runs" / "c", toy_config(2, neuron="CuAdLIF"), ("best.pt", "last.pt"))
    assert program("test.py --load_pt_file a").returncode == 0
    alone = read_metrics("runs/a")
    reads = []
    read = tasks.events.read_recordings
    monkeypatch.setattr(tasks.events, "read_recordings", lambda *words: reads.append(words) or read(*words))
    again = f"a {toy}/runs/a"
    result = program(f"test.py --load_pt_file a runs/b runs/c/best.pt runs/c/last.pt {again} --test-batch-size 10")
    assert result.returncode == 0, result.stderr
    assert len(reads) == 1
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[:6]] == ["run", "a", "b", "c", "c/last.pt", "mean"]
    accuracies = [read_metrics(f"runs/{name}")["fs_accuracy"] for name in "ab"]
    assert f"{accuracies[0]:.2f}" in lines[1]
    assert f"{np.mean(accuracies):.2f} ± {np.std(accuracies, ddof=1):.2f}" in lines[5]
    assert "2 seeds" in lines[5]
    together = read_metrics("runs/a")
    assert together["loss"] == pytest.approx(alone["loss"])
    varies = {"loss", "command", "tested"}
    assert {k: v for k, v in together.items() if k not in varies} == {k: v for k, v in alone.items() if k not in varies}
    assert (toy / "runs" / "c" / "test_last" / "report.html").is_file()
    assert read_metrics("runs/c")["checkpoint"] == "runs/c/best.pt"
    assert program("test.py --load_pt_file runs/c/last.pt").returncode == 0
    assert read_metrics("runs/c")["checkpoint"] == "runs/c/best.pt"  # alone, last.pt leaves the test of best.pt


def ttfs_config(seed: int = 0) -> config.TTFSConfig:
    values = settings.read_yaml(REPOSITORY / "configs" / "ttfs_mnist_mlp.yaml")
    values["data"] |= {"dataset_name": "toy", "path": "data", "layout": "npz", "shape": [1, 6, 6], "num_classes": 3}
    values["ttfs"]["layers"] = "8F"
    values["train"]["seed"] = seed
    return settings.build(values, "test")


def test_networks_that_spike_once(program, toy):
    """They get the same page, rows and comparison as far as these apply, also beside the other kind."""
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (30, 6, 6), np.uint8), np.arange(30) % 3
    np.savez(toy / "data" / "toy.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    for seed, name in enumerate("xy"):
        save_run(toy / "runs" / name, ttfs_config(seed))
    result = program("test.py --load_pt_file x a y")
    assert result.returncode == 0, result.stderr
    metrics = read_metrics("runs/x")
    low, high = metrics["accuracy_interval"]
    assert low < metrics["accuracy"] < high
    assert np.sum(metrics["confusion"]) == 30
    assert re.search(r"^mean ± std, toy_ttfs_8F +2 seeds", result.stdout, re.MULTILINE)
    assert re.search(r"^a +0 ", result.stdout, re.MULTILINE)
    html = (toy / "runs" / "x" / "test" / "report.html").read_text()
    assert_needs_nothing(html)
    assert f"{metrics['accuracy']:.2f} %" in html
    compared = program("compare.py x y")
    assert compared.returncode == 0, compared.stderr
    assert f"{metrics['accuracy']:.2f} %" in compared.stdout
    assert_one_line(program("compare.py x a"), "x and a were tested on different data")


def check_samples(toy: Path) -> None:
    """Check that the metrics of run a are the sums of its samples.npz."""
    metrics, samples = read_metrics("runs/a"), np.load(toy / "runs" / "a" / "test" / "samples.npz")
    target = samples["target"]
    assert len(target) == metrics["samples"] == 24
    for code in ("fs", "fr"):
        assert metrics[f"{code}_accuracy"] == pytest.approx(100 * np.mean(samples[f"{code}_label"] == target))
        curve = metrics["anytime"][f"{code}_accuracy_over_time"]
        assert curve == pytest.approx(100 * samples[f"{code}_right"].mean(0))
    assert metrics["silent_samples"] == (samples["first_step"] == -1).sum()
    assert metrics["cost"]["whole_window"]["synaptic operations"] == pytest.approx(samples["operations"].mean())
    assert metrics["cost"]["to_decision"]["events"] == pytest.approx(samples["events_to_decision"].mean())
    assert samples["output_spikes"].sum() == samples["layer_spikes"][:, -1].sum() > 0
    by_class = [of_class["samples"] for of_class in metrics["by_class"]]
    assert by_class == np.bincount(target).tolist()
    assert np.sum(metrics["confusion"]["fs"]) == 24


def test_compare(program, toy):
    """The metrics are sums of the samples, the numbers are those of the metrics, and the page shows both runs."""
    assert_one_line(program("compare.py a b"), "a: not tested yet; run python test.py --load_pt_file a first")
    with pytest.raises(InputError, match=r"run python test\.py --load_pt_file 'my runs/a' first"):
        compare.read(Path("my runs/a"))
    assert program("test.py --load_pt_file a b --test-batch-size 7").returncode == 0
    check_samples(toy)
    result = program("compare.py runs/a runs/b/best.pt")
    assert result.returncode == 0, result.stderr
    one, other = (np.load(toy / "runs" / name / "test" / "samples.npz") for name in "ab")
    for code in ("fs", "fr"):
        right = [each[f"{code}_label"] == each["target"] for each in (one, other)]
        value, low, high = (100 * share for share in statistics.paired_proportions(*right))
        assert f"{value:+.2f} points ({low:+.2f} to {high:+.2f})" in result.stdout
        assert f"{statistics.mcnemar(*right):.3g}" in result.stdout
    assert min(one["first_step"].max(), other["first_step"].max()) > 0
    both = (one["first_step"] > 0) & (other["first_step"] > 0)
    mean = 10 * float(np.mean(other["first_step"][both] - one["first_step"][both]))
    assert f"mean first spike, {both.sum()} samples" in result.stdout
    assert f"{mean:+.1f} ms" in result.stdout
    html = (toy / "compare.html").read_text()
    assert_needs_nothing(html)
    assert "train.seed" in html
    assert html.count("data:image/png") == 1 + 2 * len(re.findall(r"<figcaption>a: \w+\.png", html)) > 8
    shutil.copy("runs/b/best.pt", "runs/b/last.pt")
    assert_one_line(program("compare.py runs/a runs/b/last.pt"), "runs/b/last.pt: not tested yet")
    words = "runs/b/test_last_int8: not tested yet; run python test.py --load_pt_file runs/b/last.pt --quantise int8"
    assert_one_line(program("compare.py runs/a runs/b/test_last_int8"), words)
    assert_one_line(program("compare.py runs/a runs/b/test_int8"), "--load_pt_file runs/b --quantise int8 first")
    shutil.copytree("runs/a/test", "runs/b/test_last")
    assert "+0.00 points" in program("compare.py runs/a runs/b/last.pt --out last.html").stdout
    same = program("compare.py a a --out same.html")
    assert "+0.00 points" in same.stdout
    assert (toy / "same.html").is_file()
    shutil.copytree(toy / "runs" / "b", toy / "old" / "a")
    namesakes = program("compare.py runs/a old/a").stdout
    assert all(folder in namesakes for folder in ("runs/a/test", "old/a/test"))

    (toy / "runs" / "b" / "config.yaml").write_text("loss: {mode: mine}")  # whose file is gone
    compared = program("compare.py a b --out lost.html")
    assert (compared.returncode, (toy / "lost.html").is_file()) == (0, True)
    assert "warning: the page does not say which fields differ: runs/b/config.yaml" in compared.stderr

    path = toy / "runs" / "b" / "test" / "metrics.json"
    metrics = read_metrics("runs/b")
    path.write_text(json.dumps(metrics | {"samples_of": "another", "data": "data/other_test.h5"}))
    refused = program("compare.py a b")
    assert_one_line(
        refused, "different data: data/toy_test.h5 (24 samples) and data/other_test.h5", "test both on the same"
    )
    path.write_text('{"samples": 24}')
    assert_one_line(program("compare.py a b"), "runs/b/test: was written by an older test.py")
    samples = path.with_name("samples.npz")
    samples.write_bytes(samples.read_bytes()[:1000])
    assert_one_line(program("compare.py a b"), "runs/b/test: has no readable", "test it again: python test.py")
    assert_one_line(program("compare.py a"), "the following arguments are required: RUN")


@pytest.mark.parametrize("kind", ["version", "channels", "classes", "file", "folder", "read-only"])
def test_bad_input_is_one_line(program, toy, monkeypatch, kind):
    path, words = toy / "runs" / "a" / "best.pt", ""
    if kind == "version":
        content = torch.load(path, weights_only=True)
        torch.save(content | {"version": 7}, path)
        message = "runs/a/best.pt: has version 7"
    elif kind == "channels":
        words = "--set data.channels=64"
        message = "they have 64 input channels and 3 classes, but it was trained on 40 and 3"
    elif kind == "classes":
        words = "--num_classes 4"
        message = "they have 40 input channels and 4 classes, but it was trained on 40 and 3"
    elif kind == "file":
        write_shd(toy / "data" / "toy_test.h5", **make_events(24, 3, 80, 1))
        message = "data/toy_test.h5: recording"
    elif kind == "folder":
        (toy / "runs" / "a" / "test").write_text("in the way")
        message = "runs/a/test: the results cannot be written there (File exists)"
    else:

        def read_only(path: Path, _):
            raise OSError(errno.EROFS, "Read-only file system", str(path))

        monkeypatch.setattr(Path, "write_bytes", read_only)
        message = "runs/b/test: the results cannot be written there (Read-only file system)"
    assert_one_line(program(f"test.py --load_pt_file b a {words}"), message)
    if kind != "file":
        assert not (toy / "runs" / "b" / "test" / "metrics.json").exists()  # found before the work


def test_a_folder_whose_name_is_no_text(program, toy):
    folder = (toy / "data").rename(toy / os.fsdecode(b"d\xff"))
    tested = program(f"test.py --load_pt_file a --path_to_dataset {folder.name}")
    assert tested.returncode == 0, tested.stderr
    assert read_metrics("runs/a")["data"] == f"{folder.name}/toy_test.h5"


def test_what_was_there_stays_until_the_new_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_whole(path, "before")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left") as raised:
        write_whole(path, "after")
    assert raised.value.filename == str(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    (tmp_path / f".net_c.{os.getpid()}").mkdir()  # left by a killed process that had the same number
    for is_cut in (True, False):
        with suppress(KeyboardInterrupt), whole(tmp_path / "net_c") as part:
            part.mkdir()
            (part / "network.c").write_text("int x;")
            if is_cut:
                raise KeyboardInterrupt
        assert [path.name for path in tmp_path.rglob("*")] == ([] if is_cut else ["net_c", "network.c"])


def test_learned_values_are_those_of_the_neurons():
    """τ = -dt / ln λ in ms; a layer that learns nothing is left out."""
    network = Network(toy_config().network, (40,), 3)
    values = report.learned_values(network, dt_ms=10.0)
    assert set(values) == {"tau_m", "tau_w", "a", "b"}
    assert set(values["tau_m"]) == {"hidden 1", "hidden 2"}
    assert values["tau_m"]["hidden 1"].value.numpy() == pytest.approx(50.0)  # 5 steps
    assert values["tau_w"]["hidden 2"].value.numpy() == pytest.approx(1000.0, rel=1e-4)
    assert values["a"]["hidden 1"].value.numpy() == pytest.approx(network.layers[0].neurons.a.detach().numpy())


def test_learned_values_stand_beside_where_they_began():
    """A dotted line at a time constant's only value, and at the bounds of what a and b are drawn from."""
    values = report.learned_values(Network(toy_config().network, (40,), 3), dt_ms=10.0)
    learned = {
        name: {layer: one._replace(value=0.5 * one.value) for layer, one in layers.items()}
        for name, layers in values.items()
    }
    figure = pictures.draw_learned(learned)
    lines = {
        axis.get_xlabel(): [line.get_xdata()[0] for line in axis.lines if line.get_label() == "before training"]
        for axis in figure.axes
    }
    assert lines["membrane time constant (ms)"] == [50.0]
    low, high = figure.axes[0].get_xlim()
    assert low < 25 < 50 < high
    assert lines["adaptation to spikes, b"] == [0.0, 1.0]
    assert "before training" in [text.get_text() for text in figure.legends[0].get_texts()]
    plt.close(figure)
    rows = report.learned_table(learned).rows
    assert {row[:3] for row in rows} >= {("membrane time constant (ms)", "hidden 1", "50")}
    assert {row[2] for row in rows if row[0].endswith(", a")} == {"0 to 1"}


def test_a_comparison_that_cannot_be_written_says_so(program, toy):
    for run in ("a", "b"):
        assert program(f"test.py --load_pt_file {run}").returncode == 0
    assert_one_line(program("compare.py runs/a runs/b --out nowhere/c.html"), "nowhere/c.html", "choose another --out")


def test_data_without_some_classes_are_warned_of(program, toy):
    """Labels of another set, with fewer classes than the network has, may fit by chance."""
    write_shd(toy / "few" / "toy_test.h5", **make_events(4, 2, 40, 1))
    result = program("test.py --load_pt_file a --path_to_dataset few")
    assert result.returncode == 0, result.stderr
    assert "no recording of 1 of the network's 3 classes" in result.stderr
    assert "warning" not in program("test.py --load_pt_file a").stderr
