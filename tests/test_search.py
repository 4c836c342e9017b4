"""search.py: what it refuses, trials, runs that are given up, workers that are killed, databases, and the front.

Two tests train. The others use a train.py that writes the files of a run at once, as the test tells it to.
"""

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("optuna")
import optuna
import yaml
from optuna.trial import TrialState, create_trial

import search
import tasks
from snn import checkpoint, files, ranges, settings
from tests.conftest import REPOSITORY, assert_one_line
from tests.programs import TRAIN_IMAGES, rows

WORDS = (
    f"search.py --path_to_yaml {REPOSITORY}/configs/smoke.yaml --dataset_name shd --path_to_dataset shd "
    "--num_classes 3 --set data.channels=40 --T 20 --set data.prepare=null --hidden_size 8 --neuron2 20 20 0.1 "
    "--ranges ranges.yaml --study s"
)
RANGES = """
goals: [fs_accuracy, synaptic_operations_to_decision]
stop: {after_epoch: 2, after_trials: 2}
ranges:
  train.lr: {low: 1e-3, high: 1e-2, log: true}
  network.layers: {choices: [[8F], [8F, 8F]]}
  train.batch_size: {low: 8, high: 16, step: 4}
"""
TRAIN = """
import json, os, shutil, signal, sys, time
from pathlib import Path

def told():
    return json.loads(Path("tells.json").read_text())


words, tells = sys.argv[1:], told()
run = Path("runs", words[words.index("--save_name") + 1])
with open("asked.txt", "a") as file:
    print(*words, file=file)
if "not_begun" in tells:
    sys.exit(print("error: no data", file=sys.stderr) or 2)
run.mkdir(exist_ok=True)
shutil.copy(words[words.index("--path_to_yaml") + 1], run / "config.yaml")
shutil.copy("best.pt", run / "best.pt")
(run / "processes").write_text(f"{os.getppid()} {os.getpid()}")
(run / "last.pt").touch()
if "is_killed" in tells:
    print("epoch 1  loss 0.5", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
if "fails" in tells:
    sys.exit(print("error: out of memory", file=sys.stderr) or 2)
epoch = 0
while epoch < told().get("epochs", 2):
    epoch += 1
    time.sleep(tells.get("pace_s", 0))
    print("epoch", epoch, flush=True)
    with (run / "metrics.jsonl").open("a") as file:
        row = {"epoch": epoch, "train_loss": 1.0, "validation_fs_accuracy": tells.get("accuracy", 50.0)}
        file.write(json.dumps(row) + chr(10))
"""


@pytest.fixture
def ranges_file(tmp_path) -> Path:
    path = tmp_path / "ranges.yaml"
    path.write_text(RANGES)
    return path


@pytest.fixture
def tell(tmp_path, monkeypatch, ranges_file):
    """Put another train.py in place of ours, and return a function that tells it what to do."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "train.py").write_text(TRAIN)
    monkeypatch.setattr(files, "REPOSITORY", tmp_path / "elsewhere")
    cfg = settings.load(REPOSITORY / "configs" / "smoke.yaml")
    validation = {"fs_accuracy": 50.0, "synaptic_operations_to_decision": 100.0}
    checkpoint.save(tmp_path / "best.pt", cfg, cfg.new_network(), epoch=1, validation=validation)

    def told(**how) -> None:
        files.write_whole(tmp_path / "tells.json", json.dumps(how))

    told()
    return told


def load(folder: Path, url: str = "") -> optuna.Study:
    return optuna.load_study(study_name="s", storage=url or f"sqlite:///{folder}/runs/s/study.db")


def states(study: optuna.Study) -> list[str]:
    return [trial.state.name for trial in study.get_trials()]


@pytest.mark.usefixtures("ranges_file")
def test_from_ranges_to_a_front_and_its_training(program, tmp_path, shd_folder):
    """Use real runs, without a test file. The first trial is the unchanged configuration."""
    (shd_folder / "shd_test.h5").unlink()
    done = program(f"{WORDS} --epochs 1 --trials 2")
    assert done.returncode == 0, done.stderr
    assert "stop.after_epoch is 2, but a run ends after epoch 1: none will be given up" in done.stderr
    study = load(tmp_path)
    assert states(study) == ["COMPLETE"] * 2
    first = study.trials[0]
    assert first.params == {"train.lr": 3e-3, "network.layers": '["8F"]', "train.batch_size": 16}
    for trial in study.trials:
        (row,) = rows(tmp_path / "runs" / f"s_{trial.number:04d}" / "metrics.jsonl")
        assert trial.values == [row["validation_fs_accuracy"], row["validation_synaptic_operations_to_decision"]]
        assert row.keys() >= {f"validation_{goal}" for goal in tasks.events.KIND.training.goals}
        assert row["best_epoch"] == 1
    out = tmp_path / "runs" / "s"
    front = {f"{trial.number:04d}.yaml" for trial in study.best_trials}
    assert {path.name for path in (out / "front").iterdir()} == front
    page = (out / "front.html").read_text(encoding="utf-8")
    assert "network.layers" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert (out / "front.png").read_bytes().startswith(b"\x89PNG")

    number = study.best_trials[0].number
    shutil.rmtree(out / "front")
    (out / "front.html").unlink()
    (out / "front").mkdir()
    (out / "front" / "0099.yaml").touch()  # a point of an earlier front
    again = program(f"{WORDS} --epochs 1 --trials 0")
    assert again.returncode == 0, again.stderr
    assert {path.name for path in (out / "front").iterdir()} == front
    path = out / "front" / f"{number:04d}.yaml"
    assert settings.load(path) == settings.load(tmp_path / "runs" / f"s_{number:04d}" / "config.yaml")
    assert program(f"train.py --path_to_yaml {path} --save_name point").returncode == 0
    kept, point = (rows(tmp_path / "runs" / name / "metrics.jsonl")[0] for name in (f"s_{number:04d}", "point"))
    assert kept["train_loss"] == point["train_loss"]


def test_the_study_goes_on_and_is_of_one_configuration(program, tmp_path, tell, ranges_file):
    assert program(f"{WORDS} --trials 1").returncode == 0
    elsewhere = "--path_to_dataset elsewhere"  # where the data lie may differ
    assert program(f"{WORDS} --trials 3 {elsewhere}").returncode == 0
    assert states(load(tmp_path)) == ["COMPLETE"] * 3
    assert program(f"{WORDS} --trials 3").returncode == 0
    assert len(load(tmp_path).trials) == 3
    assert_one_line(program(f"{WORDS} --trials 4 --epochs 7"), "begun with another train.epochs", "--study")
    ranges_file.write_text(RANGES.replace("high: 16", "high: 20"))
    assert_one_line(program(f"{WORDS} --trials 4"), "begun with another ranges")
    ranges_file.write_text(RANGES)
    (tmp_path / "runs" / "s" / "study.db").rename(tmp_path / "study.db")
    assert_one_line(program(f"{WORDS} --trials 4"), "study.db is gone")
    assert_one_line(program(f"{WORDS.replace('--study s', '--study other')} --trials 0"), "there is no study yet")
    assert not (tmp_path / "runs" / "other").exists()
    assert_one_line(program(f"{WORDS.replace('--study s', '--study s_0000')}"), "runs/s_0000 is a run")
    assert program(f"{WORDS} --trials 3 --storage sqlite:///study.db").returncode == 0


def test_trials_of_other_data_do_not_count(program, tmp_path, tell):
    """A study whose data change says so, tries the same parameters again when they are back, and loses nothing."""

    def train_on(held_out: str) -> None:
        cfg, content = checkpoint.load(tmp_path / "best.pt")
        about = {"validation": content["validation"], "trained_on": {"to train on": "a", "held out": held_out}}
        checkpoint.save(tmp_path / "best.pt", cfg, cfg.new_network(), epoch=1, **about)

    assert program(f"{WORDS} --trials 1").returncode == 0  # an earlier version, without fingerprints
    train_on("b")
    assert program(f"{WORDS} --trials 2").returncode == 0
    train_on("c")
    said = ("s_0002: the samples held out are not those of the trials before it", "begin another --study")
    assert_one_line(program(f"{WORDS} --trials 3"), *said)
    assert states(load(tmp_path)) == ["COMPLETE", "COMPLETE", "FAIL", "WAITING"]
    train_on("b")
    assert program(f"{WORDS} --trials 3").returncode == 0
    study = load(tmp_path)
    assert states(study) == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    assert study.trials[3].params == study.trials[2].params
    assert "--resume" not in (tmp_path / "asked.txt").read_text()


def test_a_run_that_is_behind_is_given_up(program, tmp_path, tell):
    assert program(f"{WORDS} --trials 2").returncode == 0
    tell(accuracy=10.0, epochs=100, pace_s=0.2)
    done = program(f"{WORDS} --trials 3")
    assert done.returncode == 0, done.stderr
    assert "trial 2: given up: fs_accuracy 10 after epoch" in done.stdout
    study = load(tmp_path)
    assert states(study) == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert 2 <= len(rows(tmp_path / "runs" / "s_0002" / "metrics.jsonl")) < 100
    assert study.trials[2].user_attrs["course"][-1] == 10.0
    assert "1 given up" in done.stdout


def test_runs_that_fail(program, tmp_path, tell):
    """If a run never begins, the machine is at fault and its parameters are tried again; other runs are given up."""
    tell(not_begun=True)
    assert_one_line(program(f"{WORDS} --trials 2"), "error: no data")
    assert states(load(tmp_path)) == ["FAIL", "WAITING"]
    tell(is_killed=True)
    assert_one_line(program(f"{WORDS} --trials 9"), "the last: train.py ended with code -9")
    tell(fails=True)
    assert_one_line(program(f"{WORDS} --trials 9"), "3 runs failed one after another, the last: out of memory")
    study = load(tmp_path)
    assert states(study) == ["FAIL", *["PRUNED"] * 6]
    assert study.trials[1].params == study.trials[0].params
    assert [study.trials[k].user_attrs["why"] for k in (1, -1)] == ["train.py ended with code -9", "out of memory"]
    assert "no trial of s is complete yet" in program(f"{WORDS} --trials 0").stdout


def test_ctrl_c_and_the_same_command_again(program, tmp_path, tell):
    def interrupt() -> None:
        while not (tmp_path / "runs" / "s_0000" / "metrics.jsonl").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    tell(epochs=100, pace_s=0.2)
    threading.Thread(target=interrupt, daemon=True).start()
    stopped = program(f"{WORDS} --trials 1")
    assert stopped.returncode == 130
    assert stopped.stderr == "interrupted; the same command continues the study\n"
    assert states(load(tmp_path)) == ["FAIL", "WAITING"]
    tell()
    assert program(f"{WORDS} --trials 1").returncode == 0
    study = load(tmp_path)
    assert states(study) == ["FAIL", "COMPLETE"]
    assert study.trials[0].params == study.trials[1].params
    first, second = (tmp_path / "asked.txt").read_text().splitlines()
    assert second == first + " --resume"  # where the run ended, in its folder


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("train.lr", "train.rate", ("ranges.yaml: ranges: train.rate", "not known")),
        ("low: 1e-3", "low: -1", ("ranges.train.lr", "log needs a low above 0")),
        ("low: 1e-3, high: 1e-2, log: true", "low: -1, high: 1", ("ranges: train.lr", "greater than 0")),
        ("low: 1e-3", "low: 1", ("ranges.train.lr", "low = 1 is above high = 0.01")),
        ("low: 8", "low: 8.5", ("ranges.train.batch_size", "number of steps")),
        ("low: 8, high: 16, step: 4", "low: 8.5, high: 16.5", ("ranges: train.batch_size", "integer")),
        ("train.batch_size: {low", "low: {lows", ("ranges.low.lows is not known", "choices")),
        ("step: 4", "steps: 4", ("ranges.train.batch_size.steps is not known", "choices")),
        ("[8F, 8F]", "[8X]", ("ranges: network.layers", "8X")),
        ("[8F, 8F]", "[8F]", ("ranges.network.layers", "is given twice")),
        (
            "train.lr",
            "network.neuron1: {choices: [{tau_mem_steps: 5, tau_syn_steps: 5, theta: 1}]}\n  network.neuron1.theta",
            ("ranges: network.neuron1.theta is part of network.neuron1",),
        ),
        ("train.lr", "data.validation_share", ("ranges: data.validation_share", "the same held-out data")),
        ("train.lr", "data.dataset_name", ("ranges: data.dataset_name", "the same held-out data")),
        ("train.lr", "train.seed", ("ranges: train.seed", "the same held-out data")),
        (
            "train.lr",
            "train: {choices: [{seed: 1}]}\n  train.lr",
            ("ranges: train:", "the same held-out data"),
        ),
        ("fs_accuracy", "accuracy", ("goals: accuracy is not known", "t_d90_ms")),
        ("goals:", "aims:", ("ranges.yaml", "goals is missing")),
        (RANGES, "goals: [fs_accuracy]\nranges: {}", ("ranges = {}: give at least one",)),
        ("[fs_accuracy, synaptic_operations_to_decision]", "[]", ("goals = []: give at least one",)),
        (RANGES, "5", ("ranges.yaml: must hold", "goals")),
    ],
)
def test_ranges_that_no_configuration_allows(program, tmp_path, ranges_file, old, new, parts):
    assert old in RANGES
    ranges_file.write_text(RANGES.replace(old, new))
    assert_one_line(program(WORDS), *parts)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--storage postgresql+psycopg://me:secret@127.0.0.1:1/x", "postgresql+psycopg://me:***@127.0.0.1:1/x"),
        ("--storage nonsense", "not the address of a database"),
        ("--storage sqlite:///nowhere/study.db", "unable to open database file"),
        ("--storage sqlite:///ranges.yaml", "file is not a database"),
        ("--storage mysql+pymysql://127.0.0.1/x", "no driver for this database (No module named 'pymysql')"),
        ("--storage sqlite:///none.db --trials 0", "there is no study yet"),
        ("--trials -1", "--trials -1"),
        ("--set data.validation_share=0", "nothing is held out"),
        ("--ranges none.yaml", "none.yaml: cannot be read"),
    ],
)
@pytest.mark.usefixtures("ranges_file")
def test_what_cannot_begin_is_one_line(program, tmp_path, words, part):
    failed = program(f"{WORDS} {words}")
    assert_one_line(failed, part)
    assert "secret" not in failed.stderr
    assert not (tmp_path / "none.db").exists()
    assert (tmp_path / "ranges.yaml").read_text() == RANGES


def test_without_ranges_the_file_beside_the_configuration_is_named(program):
    failed = program(f"search.py --path_to_yaml {REPOSITORY}/configs/shd.yaml")
    assert_one_line(failed, "shd_search.yaml: there is no such file of goals and ranges", "with --ranges")


def test_missing_packages_are_named(program, monkeypatch):
    monkeypatch.setattr("snn.find_spec", lambda name: None if name == "optuna" else True)
    assert_one_line(program("search.py"), "does not have optuna", "bash run.sh --python search")


@pytest.mark.usefixtures("toy_file")
def test_networks_of_one_spike_a_neuron_have_goals_of_their_own(program, tmp_path):
    goals = tasks.images.KIND.training.goals
    found = {"goals": list(goals), "ranges": {"train.lr": {"low": 1e-3, "high": 9e-3}}}
    (tmp_path / "ranges.yaml").write_text(yaml.safe_dump(found))
    words = TRAIN_IMAGES.replace("train.py", "search.py")
    done = program(f"{words} --epochs 1 --trials 1 --ranges ranges.yaml --study s")
    assert done.returncode == 0, done.stderr
    (trial,) = load(tmp_path).trials
    (row,) = rows(tmp_path / "runs" / "s_0000" / "metrics.jsonl")
    assert trial.values == [row[f"validation_{goal}"] for goal in goals]


@pytest.mark.parametrize("name", ["adlif_shd", "ttfs_mnist_mlp"])
def test_a_file_for_validation_is_held_out(name, tmp_path):
    values = settings.read_yaml(REPOSITORY / "configs" / f"{name}.yaml")
    values["data"] |= {"path": str(tmp_path), "dataset_name": "mine", "validation_share": 0.0, "layout": "shd"}
    values["data"] |= {"window_ms": 100.0} if "ttfs" in values else {}
    cfg = settings.build(values, name)
    holds_out = tasks.kind_of(cfg).training.holds_out
    assert not holds_out(cfg)
    (tmp_path / "mine_validation.h5").touch()
    assert holds_out(cfg)


def test_a_run_may_be_continued_where_the_data_lie_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = settings.load(REPOSITORY / "configs" / "smoke.yaml")
    elsewhere = cfg.model_copy(update={"data": cfg.data.model_copy(update={"path": "elsewhere"})})
    another = cfg.model_copy(update={"train": cfg.train.model_copy(update={"lr": 0.5})})
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "last.pt").touch()
    for kept, expected in ((elsewhere, True), (another, False)):
        (tmp_path / "runs" / "a" / "config.yaml").write_text(settings.as_yaml(kept))
        assert search.is_left("a", cfg) is expected


def work_with(courses: list[list[float]], way: str = "maximize", **stop) -> search.Work:
    study = optuna.create_study(directions=[way, "minimize"])
    for course in courses:
        study.add_trial(create_trial(values=[course[-1], 1.0], user_attrs={"course": course}))
    found = ranges.Search(goals=["goal"], stop=stop, ranges={"train.lr": {"low": 1, "high": 2}})
    cfg = settings.load(REPOSITORY / "configs" / "smoke.yaml")
    return search.Work(cfg, found, None, {"goal": way}, Path(), None, study)


def test_the_rule_by_which_runs_are_given_up():
    courses = [[10.0, 40.0, 60.0], [20.0, 50.0, 70.0], [30.0, 60.0]]  # the last ended early
    work = work_with(courses, after_epoch=2, after_trials=3)
    assert not search.is_behind(work, [1.0])  # too early to say
    assert not search.is_behind(work, [1.0, 50.0])
    assert search.is_behind(work, [1.0, 49.9]) == "goal 49.9 after epoch 2, where 3 complete trials had 50"
    assert not search.is_behind(work, [1.0, 2.0, 60.0])
    assert search.is_behind(work, [1.0, 2.0, 59.0])
    assert not search.is_behind(work_with(courses[:2], after_epoch=2, after_trials=3), [1.0, 2.0])
    assert not search.is_behind(work_with(courses, after_epoch=2, after_trials=3, quantile=0.1), [1.0, 40.0])
    assert search.is_behind(work_with(courses, after_trials=3), [0.0] * 5)  # from a quarter of 20 epochs on
    assert not search.is_behind(work_with(courses, after_trials=3), [0.0] * 4)
    delays = work_with([[9.0], [7.0], [float("inf")]], "minimize", after_epoch=1, after_trials=3)
    assert not search.is_behind(delays, [9.0])
    assert search.is_behind(delays, [9.5])
    assert not search.is_behind(work._replace(search=work.search.model_copy(update={"stop": None})), [0.0] * 9)


@pytest.mark.parametrize(("way", "worst"), [("minimize", float("inf")), ("maximize", float("-inf"))])
def test_the_course_of_a_run_is_that_of_its_best_epoch(way, worst):
    """The first goal need not choose the best epoch: an untrained network decides early, and wrongly."""
    seen = [(None, 1), (20.0, 2), (450.0, 3), (300.0, 3), (400.0, 5)]
    rows = [{"validation_t": value, "best_epoch": best} for value, best in seen]
    assert search.of_best(rows, "t", way) == [worst, 20.0, 450.0, 450.0, 400.0]


@pytest.fixture
def postgresql() -> Iterator[str]:
    """Yield the address of a database on a server that runs during the test."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    pytest.importorskip("psycopg")
    if not programs:
        pytest.skip("PostgreSQL's server is not installed (apt install postgresql)")
    names = {user.pw_name for user in pwd.getpwall()}
    user = next((name for name in ("postgres", "nobody") if name in names), None)
    if os.getuid() == 0 and user is None:
        pytest.skip("PostgreSQL's server refuses root, and there is no other user")
    who = {"user": user} if os.getuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="search"))  # not below tmp_path, which only its owner may enter
    if who:
        shutil.chown(folder, user)

    def run(*words: str) -> None:
        command = [programs[-1] / words[0], "-D", folder / "data", *words[1:]]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, **who)
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        run("initdb", "-U", "search", "--auth=trust", "--no-sync")
        run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", f"-k {folder} -c listen_addresses= -c fsync=off", "start")
        yield f"postgresql+psycopg://search@/postgres?host={folder}"
        run("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def start_worker(folder: Path, url: str) -> subprocess.Popen:
    """Start search.py in a process of its own, with the other train.py and a short heartbeat."""
    script = folder / "worker.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(REPOSITORY)!r})\nfrom pathlib import Path\n"
        "import search\nfrom snn import cli, studies\n"
        "search.REPOSITORY, studies.HEARTBEAT_S, studies.GRACE_S = Path('elsewhere'), 1, 15\ncli.run(search.main)\n"
    )
    command = [sys.executable, script.name, *WORDS.split()[1:], "--trials", "3", "--storage", url]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(is_so, process: subprocess.Popen, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)


@pytest.mark.slow
def test_two_workers_on_postgresql_one_of_them_killed(tmp_path, tell, postgresql):
    """Both begin the study at once. The killed one's run ends by itself, and the other worker continues it there."""
    tell(epochs=10**6, pace_s=0.1)
    workers = [start_worker(tmp_path, postgresql) for _ in range(2)]
    try:
        begun = [tmp_path / "runs" / f"s_{k:04d}" / "metrics.jsonl" for k in range(2)]
        for worker in workers:
            wait_until(lambda: all(path.exists() for path in begun), worker)
        assert states(load(tmp_path, postgresql)) == ["RUNNING"] * 2
        killed, survives = workers
        killed.kill()
        killed.wait()
        processes = [map(int, path.with_name("processes").read_text().split()) for path in begun]
        ((lost, orphan),) = [(k, child) for k, (worker, child) in enumerate(processes) if worker == killed.pid]
        wait_until(lambda: has_ended(orphan), survives)
        tell()  # the other run ends, as do those to come
        _, said = survives.communicate(timeout=600)
    finally:
        for worker in workers:
            worker.kill()
    assert survives.returncode == 0, said
    assert "Traceback" not in said
    study = load(tmp_path, postgresql)
    assert sorted(states(study)) == ["COMPLETE"] * 3 + ["FAIL"]
    assert study.trials[lost].state == TrialState.FAIL
    (again,) = [t for t in study.trials if t.number > 1 and t.params == study.trials[lost].params]
    assert again.user_attrs["run"] == begun[lost].parent.name
    assert (tmp_path / "asked.txt").read_text().count("--resume") == 1
    assert (tmp_path / "runs" / "s" / "front.html").exists()


def has_ended(number: int) -> bool:
    """Return whether the process of this number has ended, even if nobody has asked how."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
