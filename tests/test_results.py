"""The README's table shows the stored results, and nothing else."""

import json
import subprocess
from itertools import pairwise

import numpy as np
import pytest

from benchmarks import figures, frontier, results, speed
from snn import machine, settings, statistics
from snn.errors import InputError
from tests.conftest import REPOSITORY


def seed(accuracy: float, delay: float | None = 300.0) -> dict:
    curves = {f"{code}_accuracy_over_time": [0.0, accuracy] for code in ("fs", "fr")}
    return {
        "fs_accuracy": accuracy,
        "fr_accuracy": accuracy - 10,
        "t_d50_ms": delay,
        "t_d90_ms": delay,
        "spikes_per_neuron": 3.0,
        "anytime": {"time_ms": [10.0, 20.0]} | curves,
    }


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Make a README with markers, two configurations and a stored result."""
    for folder in ("configs", "results", "docs"):
        (tmp_path / folder).mkdir()
    for name in ("adlif_shd", "ttfs_mnist_mlp", "smoke"):
        (tmp_path / "configs" / f"{name}.yaml").write_text((REPOSITORY / "configs" / f"{name}.yaml").read_text())
    result = {
        "network": "X-Y",
        "machine": {"processor": "X", "cores": 2},
        "versions": {"torch": "9.9"},
        "seeds": {"0": seed(90.0), "3": seed(92.0)},
    }
    (tmp_path / "results" / "adlif_shd.json").write_text(json.dumps(result))
    for page, names in (
        ("README", ("results",)),
        ("docs/results", ("results", "ablation")),
        ("docs/speed", ("cpu", "gpu")),
        ("docs/frontier", ("networks", "comparisons", "ablation")),
    ):
        marked = "\n".join("\nold\n".join(comment.format(name) for comment in results.COMMENTS) for name in names)
        (tmp_path / f"{page}.md").write_text(f"before\n{marked}\nafter\n")
    monkeypatch.setattr(results, "REPOSITORY", tmp_path)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    for name in ("results", "speed", "frontier"):
        monkeypatch.setattr(results, {"results": "FIGURE"}.get(name, name.upper()), tmp_path / "docs" / f"{name}.png")
    monkeypatch.setattr(frontier, "REPOSITORY", tmp_path)
    return tmp_path


def test_the_pages_are_rebuilt_from_what_is_stored(repository):
    results.rebuild()
    readme, page, speed = (
        (repository / name).read_text() for name in ("README.md", "docs/results.md", "docs/speed.md")
    )
    for text in (readme, page, speed):
        assert text.startswith("before\n")
        assert text.endswith("\nafter\n")
    assert "| `adlif_shd` | X-Y | 91.0 ± 1.4 % | 81.0 ± 1.4 % | 300 ± 0 ms |" in readme.splitlines()
    assert "old" not in readme + page
    assert (
        "| `configs/adlif_shd.yaml` | 700-256-256-20 AdLIF | 94.08 % | 91.0 ± 1.4 % | 81.0 ± 1.4 % | "
        "300 ± 0 and 300 ± 0 ms | 3.00 ± 0.00 |" in page.splitlines()
    )
    assert any(
        line.startswith("| `configs/ttfs_mnist_mlp.yaml`") and "| not run |" in line for line in page.splitlines()
    )
    assert "smoke" not in page
    assert "`adlif_shd` 0, 3" in page
    for name in ("results", "speed"):
        assert (repository / "docs" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    results.rebuild()  # again changes nothing
    assert (repository / "docs" / "results.md").read_text() == page


@pytest.mark.parametrize("page", ["README.md", "docs/results.md", "docs/speed.md", "docs/frontier.md"])
def test_without_its_comments_no_page_is_changed(repository, page):
    before = {path: path.read_text() for path in repository.rglob("*.md")}
    (repository / page).write_text("no place\n")
    with pytest.raises(InputError, match=f"{page}: needs the lines .* between which a table goes"):
        results.rebuild()
    before[repository / page] = "no place\n"
    assert {path: path.read_text() for path in repository.rglob("*.md")} == before


def test_the_frontier_has_a_row_for_each_network_and_each_ingredient(repository):
    """Rows of ours have events and operations up to the decision, anchors multiplications, ingredients both results."""
    (repository / "configs" / "speech.yaml").write_text((REPOSITORY / "configs" / "speech.yaml").read_text())
    folder, where = repository / "results", {"machine": {"processor": "X", "cores": 2}, "versions": {"torch": "9.9"}}
    costs = [{"steps": 80.0, "events": e, "synaptic operations": o} for e, o in ((90.0, 5e5), (100.0, 6e5))]
    rows = [{"fs_accuracy": a, "time_ms": t, "operations_to_decision": 4e5} for a, t in ((70.0, 600.0), (75.0, 800.0))]
    right = np.arange(10) < 8
    one = seed(76.0) | {
        "samples": 10,
        "samples_of": "F",
        "right": figures.packed(right),
        "cost": dict(zip(("to_decision", "whole_window"), costs, strict=True)),
        "thresholds": {"test": rows},
    }
    ours = {"configuration": "configs/speech.yaml", "command": "C1", "network": "N-M", "seeds": {"0": one}} | where
    anchor = {"command": "C2", "network": "GRU, 2 layers, 9 k weights", "weights": 9000, "multiply_accumulates": 2e7}
    (folder / "speech.json").write_text(json.dumps(ours))
    (folder / "anchors").mkdir()
    tested = {"accuracy": 72.0, "samples": 10, "samples_of": "F", "right": figures.packed(np.arange(10) < 5)}
    (folder / "anchors" / "dsp20_gru.json").write_text(json.dumps(anchor | {"seeds": {"0": tested, "5": tested}}))
    elsewhere = {"accuracy": 60.0} | {key: tested[key] for key in ("samples", "right")} | {"samples_of": "others"}
    cnn = anchor | {"network": "CNN, 4 layers, 9 k weights", "seeds": {"0": elsewhere, "1": {"accuracy": 61.0}}}
    (folder / "anchors" / "dsp20_cnn.json").write_text(json.dumps(cnn))
    (folder / "ablation").mkdir()
    measured = {"fs_accuracy": 60.0, "synaptic_operations_to_decision": 7e5}
    places = (("", "plain"), ("", "recipe"), ("blend", "alone"))
    ablated = [{"ingredient": i, "which": which, "seeds": {"0": measured}} for i, which in places]
    (folder / "ablation" / "speech.json").write_text(json.dumps({"command": "C3", "rows": ablated} | where))
    measured = {"accuracy": 91.0, "synaptic_operations_per_image": 2e6}
    ablated = [{"ingredient": i, "which": which, "seeds": {"1": measured}} for i, which in places]
    (folder / "ablation" / "ttfs_mnist_mlp.json").write_text(json.dumps({"command": "C4", "rows": ablated} | where))
    results.rebuild()
    lines = (repository / "docs" / "frontier.md").read_text().splitlines()
    assert any(line.endswith("| 76.0 % | 66.0 % | 300 ms | 90 % | 0.50 M | 3.0 |") for line in lines)
    assert "| GRU, 2 layers | 9 k | 2 | 72.0 ± 0.0 % |  | the end | 100 % | 20.0 M multiplications |  |" in lines
    order = [line.split(":")[0].split(",")[0] for line in lines if " | 9 k | " in line or "`configs/speech" in line]
    assert order == ["| `configs/speech.yaml`", "| GRU", "| CNN"]
    compared = [line for line in lines if line.startswith(("| speech | GRU |", "| GRU | CNN |"))]
    value, low, high = (100 * share for share in statistics.paired_proportions(np.arange(10) < 5, right))
    assert value > 0
    assert compared == [f"| speech | GRU | 0 | {value:.1f} points ({low:.1f} to {high:.1f}) | 3 | 0 | 0.25 |"]
    assert "| blend | 60.0 % | 0.70 M | not run |  |" in lines
    assert "On data held out from training, seeds 0, 2 cores of an X, torch 9.9: `C3`." in lines
    page = (repository / "docs" / "results.md").read_text().splitlines()
    assert "| ingredient | alone: accuracy | operations | left out: accuracy | operations |" in page
    assert "| blend | 91.00 % | 2.00 M | not run |  |" in page
    assert (repository / "docs" / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_a_speed_has_its_range_and_its_command():
    found = {
        "machines": {"cpu": "a machine"},
        "measured": [
            {
                "machine": "cpu",
                "what": "a step",
                "command": "python -m x",
                "here": "1 ms",
                "others": [{"who": "A", "took": "2 ms", "times": [1.5, 2.0]}, {"who": "B", "took": "3 ms"}],
            }
        ],
    }
    assert speed.table(found, "cpu").splitlines()[2:] == [
        "| what | who | took | others take |",
        "|---|---|---|---|",
        "| a step (`python -m x`) | here | **1 ms** | |",
        "| | A | 2 ms | 1.5 to 2 x |",
        "| | B | 3 ms |  |",
    ]


def test_a_benchmark_replaces_its_own_figure(tmp_path, monkeypatch):
    """The picture's name of the task stays, and so do other figures and the machine's paths."""
    by_hand = {
        "machine": "cpu",
        "what": "a step",
        "picture": "step",
        "command": "python -m x",
        "here": "1 to 2 ms",
        "others": [{"who": "A", "took": "2 ms", "times": [1.5, 2.0]}],
    }
    found = {"machines": {"cpu": "a machine"}, "measured": [by_hand | {"machine": "gpu"}, by_hand]}
    (tmp_path / "speed.json").write_text(json.dumps(found))
    monkeypatch.setattr(figures, "STORED", tmp_path / "speed.json")
    monkeypatch.setattr("sys.argv", ["/a/step.py", "--data", str(tmp_path), "--store"])
    measured = figures.others({"ours": 2.0, "a": 5000.0, "b": 3.0}, "ours", {"a": "A", "b": "B", "c": "C"})
    figures.store([figures.Figure("a step", "2 ms", measured), figures.Figure("new", "3 ms")])
    gpu, new, last = figures.stored()["measured"]
    assert gpu == by_hand | {"machine": "gpu"}
    run = new.pop("run")
    assert new == by_hand | {
        "command": "python -m benchmarks.step --data PATH",
        "here": "2 ms",
        "others": [
            {"who": "A", "took": "5 s", "times": [2500.0, 2500.0]},
            {"who": "B", "took": "3 ms", "times": [1.5, 1.5]},
        ],
    }
    assert {"processor", "cores", "threads", "load_at_end"} <= run["machine"].keys()
    assert {"torch", "python"} <= run["versions"].keys()
    assert (last["what"], last["here"], last["others"]) == ("new", "3 ms", [])
    rows = speed.table(figures.stored(), "cpu").splitlines()
    assert rows[4] == f"| a step (`python -m benchmarks.step --data PATH`, {run['date']}) | here | **2 ms** | |"
    assert rows[-1].startswith("Rows with a date were stored by their benchmark, on ")
    speed.draw(figures.stored() | {"measured": [gpu, new]})


def test_the_picture_of_speed_knows_its_contenders():
    names = {other["who"] for one in figures.stored()["measured"] if "picture" in one for other in one["others"]}
    for words in speed.LEGEND:
        assert any(name.startswith(words) for name in names), f"no stored contender is called {words}"


def test_a_delay_that_does_not_exist_is_a_dash():
    assert figures.mean_of([seed(1.0), seed(1.0, None)], "t_d50_ms", 0, "") == "–"
    assert figures.mean_of([seed(87.04)], "fs_accuracy", 1, " %") == "87.0 %"


def test_the_pages_show_what_is_stored():
    front = frontier.stored(results.stored(), results.RESULTS)
    for path, sections in results.pages(results.stored(), figures.stored(), front, results.stored("ablation")).items():
        text = path.read_text(encoding="utf-8")
        for name, content in sections.items():
            assert results.between(text, name, content, path) == text, "run python -m benchmarks.results --readme"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "results").glob("*.json")), ids=lambda path: path.stem)
def test_stored_results_say_where_they_come_from(path):
    result = json.loads(path.read_text())
    cfg_path = REPOSITORY / result["configuration"]
    assert result["network"] == results.describe(settings.load(cfg_path))
    assert result["command"].startswith(f"python -m benchmarks.results {result['configuration']} --seeds")
    assert {"torch", "python", "spikingjelly"} <= result["versions"].keys()
    assert {"processor", "cores", "load_at_start"} <= result["machine"].keys()
    seeds, _, words = result["command"].split("--seeds ")[1].partition(" --")
    assert result["seeds"].keys() == set(seeds.split())
    assert "/" not in words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("configs/adlif_digits.yaml --epochs 3", "train.epochs: a stored result must use"),
        ("configs/adlif_digits.yaml --frobnicate", "unrecognized arguments: --frobnicate"),
        ("", "give a configuration to run, or --readme"),
        ("configs/none.yaml", "configs/none.yaml: cannot be read"),
    ],
)
def test_wrong_words(repository, monkeypatch, words, message):
    monkeypatch.setattr("sys.argv", ["results", *words.split()])
    with pytest.raises(InputError, match=message):
        results.main()
    assert [path.stem for path in (repository / "results").iterdir()] == ["adlif_shd"]


@pytest.mark.parametrize(
    ("name", "share", "scaled"), [("adlif_shd", 0.1, True), ("adlif_shd", 0, False), ("ttfs", 0.1, False)]
)
def test_a_stored_result_has_scaled_thresholds_if_they_can_be_chosen(repository, monkeypatch, name, share, scaled):
    """Only first-spike networks with held-out recordings have them; each seed has its own metrics, none unknown."""
    path = next((repository / "configs").glob(f"{name}*.yaml"))
    (repository / "results" / "adlif_shd.json").unlink()
    values = settings.read_yaml(path)
    values["data"]["validation_share"] = share
    path.write_text(json.dumps(values))
    commands = []

    def run(*command: str) -> None:
        commands.append(command)
        if command[0] == "test.py":
            folder = repository / command[2].removesuffix("best.pt") / "test"
            folder.mkdir(parents=True)
            more = {"thresholds": [1]} if "--thresholds" in command else {}
            (folder / "metrics.json").write_text(json.dumps({"fs_accuracy": float(len(commands)), "other": 1} | more))
            decided = {"label" if name == "ttfs" else "fs_label": [3, 0, 0]}
            np.savez(folder / "samples.npz", target=[3, 1, 2], **decided)

    monkeypatch.chdir(repository)
    monkeypatch.setattr(results, "run", run)
    monkeypatch.setattr("sys.argv", ["results", str(path), "--seeds", "4", "5"])
    results.main()
    stored = json.loads((repository / "results" / f"{path.stem}.json").read_text())
    assert [command[0] for command in commands] == ["train.py", "test.py"] * 2
    seeds = stored["seeds"]
    assert {seed: found["fs_accuracy"] for seed, found in seeds.items()} == {"4": 2.0, "5": 4.0}
    assert all(("thresholds" in found) == scaled and "other" not in found for found in seeds.values())
    assert all(figures.unpacked(found["right"], 3).tolist() == [True, False, False] for found in seeds.values())


@pytest.mark.parametrize(
    ("first", "second", "kept"), [("abc", "abc", True), ("abc", "abd", False), ("a+", "a+", False)]
)
def test_seeds_of_one_commit_are_joined_and_stored_one_by_one(repository, monkeypatch, first, second, kept):
    """A training that fails leaves the seeds before it in the file. Those of other code are not lost unasked."""
    path, versions = repository / "configs" / "adlif_shd.yaml", {}
    (repository / "results" / "adlif_shd.json").unlink()

    def run(*command: str) -> None:
        if ("--seed", "9") in pairwise(command):
            raise InputError("train.py ended with exit code 2")
        if command[0] == "test.py":
            folder = repository / command[2].removesuffix("best.pt") / "test"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "metrics.json").write_text(json.dumps({"fs_accuracy": 90.0}))
            np.savez(folder / "samples.npz", target=[1], fs_label=[1])

    monkeypatch.chdir(repository)
    monkeypatch.setattr(results, "run", run)
    monkeypatch.setattr(results, "versions", lambda: dict(versions))
    for commit, seeds in ((first, "4 10 9 2"), (second, "3"), (second, "3 4 10")):
        versions["commit"] = commit
        monkeypatch.setattr("sys.argv", ["results", str(path), "--seeds", *seeds.split()])
        if "9" in seeds:
            with pytest.raises(InputError):
                results.main()
        elif seeds == "3" and not kept:
            with pytest.raises(InputError, match=r"holds seeds of other or uncommitted code.* 4, 10; .* move the file"):
                results.main()
        else:
            results.main()
    stored = json.loads((repository / "results" / "adlif_shd.json").read_text())
    assert list(stored["seeds"]) == ["3", "4", "10"]
    assert stored["command"].endswith(f"--seeds {' '.join(stored['seeds'])}")


def test_each_seed_keeps_its_machine(repository, monkeypatch):
    """Older files name one machine for all seeds; another one may train more, and the page names both."""
    path, out = repository / "configs" / "adlif_shd.yaml", repository / "results" / "adlif_shd.json"
    before = json.loads(out.read_text())
    before["versions"]["commit"] = "abc"
    out.write_text(json.dumps(before))

    def run(*command: str) -> None:
        if command[0] == "test.py":
            folder = repository / command[2].removesuffix("best.pt") / "test"
            folder.mkdir(parents=True)
            (folder / "metrics.json").write_text(json.dumps(seed(91.0)))
            np.savez(folder / "samples.npz", target=[1], fs_label=[1])

    monkeypatch.chdir(repository)
    monkeypatch.setattr(results, "run", run)
    monkeypatch.setattr(results, "versions", lambda: before["versions"])
    for number in ("1", "4"):
        other = {"processor": "Z", "cores": int(number)}
        monkeypatch.setattr(results, "machine_in_use", lambda *_, other=other, **__: other)
        monkeypatch.setattr("sys.argv", ["results", str(path), "--seeds", number])
        results.main()
    stored = json.loads(out.read_text())["seeds"]
    assert list(stored) == ["0", "1", "3", "4"]
    assert [(one["machine"]["processor"], one["machine"]["cores"]) for one in stored.values()] == [
        *(("X", 2), ("Z", 1), ("X", 2), ("Z", 4))
    ]
    results.rebuild()
    places = ("`adlif_shd` 0, 3 (2 cores of an X", "`adlif_shd` 1 (1 cores of an Z", "`adlif_shd` 4 (4 cores of an Z")
    said = "; ".join(f"{place}, torch 9.9)" for place in places)
    assert f"over seeds on the test split: {said}." in (repository / "docs" / "results.md").read_text()


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_a_file_that_is_no_result_is_replaced(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    assert results.seeds_of_same_code(path, {"versions": {"commit": "abc"}}) == {}


def test_a_changed_file_marks_the_commit_but_a_changed_result_does_not(tmp_path, monkeypatch):
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)

    files = [tmp_path / "results" / "x.json", tmp_path / "code.py"]
    files[0].parent.mkdir()
    for file in files:
        file.write_text("1")
    git("init")
    git("add", ".")
    git("-c", "user.name=x", "-c", "user.email=x@x", "commit", "-m", "x")
    monkeypatch.setattr(machine, "REPOSITORY", tmp_path)
    marks = [machine.versions()["commit"][-1] == "+"]
    for file in files:
        file.write_text("2")
        marks.append(machine.versions()["commit"][-1] == "+")
    assert marks == [False, False, True]


def test_places_of_this_machine_are_not_stored():
    assert results.without_places(["--path_to_dataset", "/a/b", "--epochs", "3"]) == [
        *("--path_to_dataset", "DIR", "--epochs", "3")
    ]
