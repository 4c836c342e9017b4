"""Search for hyper-parameters: python search.py --path_to_yaml configs/fsdd.yaml

The file of ranges (configs/fsdd_search.yaml) names the goals, such as accuracy, time and operations of a decision, and
the fields that may change. Optuna proposes their values. Each trial is a run of train.py in a folder of its own,
runs/<study>_<trial>, and is measured by its best epoch on held-out data. No test file is read.

The study is in a database: SQLite in runs/<study>/, or any that Optuna takes, so that many machines work on one study.
The same command again continues it, until the study has --trials trials. If a worker is killed, another one (or the
same command again) takes over its trial: it continues the run if its folder is there, and otherwise starts it again.

A run that is behind is given up: from an epoch on, its first goal must not be worse than a quantile of those of the
complete trials at the same epoch. The front is written to runs/<study>/: front.html, front.png, and each point as a
configuration, front/<trial>.yaml, whenever it changes and at the end; --trials 0 only writes it.
"""

import argparse
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import snn  # comes first, because it says which packages are missing
from snn import cli

if __name__ == "__main__":
    cli.end_at_ctrl_c()

# isort: split
from snn import arguments

if __name__ == "__main__":
    cli.run(arguments.search_parser(__doc__).parse_args)  # answers --help and wrong options before torch is imported
    cli.end_at_ctrl_c()
    snn.need("matplotlib", "jinja2", extra="report")
    snn.need("optuna", extra="search")

# isort: split
import numpy as np
import optuna
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState
from tqdm import tqdm

import tasks
from snn import checkpoint, front, ranges, report, runs, settings, studies
from snn.errors import InputError
from snn.files import REPOSITORY, write_whole
from snn.schema import AnyConfig
from tasks.kind import HELD_OUT_BY, changed_samples

POLL_S = 0.5
SAME_DATA = HELD_OUT_BY | {"data.dataset_name", "data.path", "data.layout"}  # in all trials
MOST_FAILURES = 3  # runs that fail one after another
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


class Failed(optuna.TrialPruned):
    """An error for a run that train.py ended by itself. Its parameters count as those of a run that was given up."""


class Work(NamedTuple):
    """Everything that a worker knows about the search."""

    cfg: AnyConfig
    search: ranges.Search
    space: ranges.Space
    goals: dict[str, str]  # -> maximize or minimize
    out: Path
    storage: RDBStorage
    study: optuna.Study

    @property
    def stop_epoch(self) -> int:
        return self.search.stop.after_epoch or max(1, self.cfg.train.epochs // 4)


def main() -> None:
    args, cfg = read_command_line()
    known = tasks.kind_of(cfg).training.goals
    search = ranges.read(args.ranges, known)
    if not tasks.kind_of(cfg).training.holds_out(cfg):
        raise InputError("nothing is held out to measure a trial by: set data.validation_share")
    after = search.stop.after_epoch if search.stop else None
    if args.trials and after and after >= cfg.train.epochs and "train.epochs" not in search.ranges:
        print(
            f"warning: {args.ranges}: stop.after_epoch is {after}, but a run ends after epoch {cfg.train.epochs}: none "
            "will be given up",
            file=sys.stderr,
        )
    if fields := [name for name in search.ranges for held in SAME_DATA if f"{held}.".startswith(f"{name}.")]:
        raise InputError(
            f"{args.ranges}: ranges: {min(fields)}: trials are compared on the same held-out data; leave this field out"
        )
    space = ranges.Space(cfg, search.ranges, str(args.ranges))
    goals = {goal: known[goal] for goal in search.goals}
    out = runs.folder(args.study)
    if (out / "config.yaml").exists():
        raise InputError(f"{out} is a run; choose another --study")
    url, file = args.storage, out / "study.db"
    if url is None:
        if (out / "front.html").exists() and not file.exists():
            raise InputError(f"{file} is gone, but {out} is of its study; bring it back or choose another --study")
        url = f"sqlite:///{file}"
        if args.trials:
            out.mkdir(parents=True, exist_ok=True)
    with studies.answering(url):
        storage = studies.open_storage(url, args.trials > 0)
        study = studies.open_study(storage, args.study, cfg, search, list(goals.values()), args.trials > 0)
        work = Work(cfg, search, space, goals, out, storage, study)
        if args.trials:
            work_on(work, args.trials)
        conclude(work)


def read_command_line() -> tuple[argparse.Namespace, AnyConfig]:
    parser = arguments.search_parser(__doc__)
    args = parser.parse_args()
    if args.trials < 0:
        parser.error(f"--trials {args.trials}: must not be below 0")
    path = args.path_to_yaml = arguments.find_yaml(args.path_to_yaml or arguments.default_yaml(sys.argv[1:]))
    args.study = args.study or f"{path.stem}_search"
    if args.ranges is None:
        args.ranges = path.with_name(f"{path.stem}_search.yaml")
        if not args.ranges.exists():
            raise InputError(f"{args.ranges}: there is no such file of goals and ranges; name another with --ranges")
    return args, parser.override(settings.read_yaml(path), args)


def work_on(work: Work, wanted: int) -> None:
    """Run trials until the study has as many as are wanted."""
    study, failures = work.study, 0
    if work.space.own and not study.get_trials(deepcopy=False):  # begin with the configuration as it stands
        study.enqueue_trial(work.space.own)
    on_front = {trial.number for trial in study.best_trials}
    advice = "interrupted; the same command continues the study"
    with (
        cli.Interruption(advice) as interruption,
        tqdm(total=wanted, desc=study.study_name, unit="trial", leave=False, disable=None) as bar,
    ):
        while trial := next_trial(work, wanted, interruption, bar):
            values = why = None
            try:
                try:
                    values = run_trial(work, trial, interruption, bar)
                except optuna.TrialPruned as given_up:
                    why = given_up
                    trial.set_user_attr("why", str(why))
                study.tell(trial, values, TrialState.PRUNED if why else None, skip_if_finished=True)
            except optuna.exceptions.UpdateFinishedTrialError:
                why = "another worker assumed that this one had died, and repeats the trial"
            except BaseException:
                give_back(study, trial)
                raise
            said = f"given up: {why}" if why else described(work.goals, values)
            tqdm.write(f"trial {trial.number}: {said}")
            failures = failures + 1 if isinstance(why, Failed) else 0
            if failures == MOST_FAILURES:
                raise InputError(f"{failures} runs failed one after another, the last: {why}")
            if on_front != (on_front := {best.number for best in study.best_trials}):
                write_front(work)
        if interruption.number:
            raise cli.Interrupted(advice, interruption.number)


def described(goals: dict[str, str], values: list[float]) -> str:
    return ", ".join(f"{goal} {value:.5g}" for goal, value in zip(goals, values, strict=True))


def next_trial(work: Work, wanted: int, interruption: cli.Interruption, bar: tqdm) -> Trial | None:
    """Ask for a trial. Return None if the study is complete or a signal came.

    If other workers run the last trials, wait for them, and take a trial over if its worker dies.
    """
    seen: set[int] = set()
    while not interruption.number:
        fail_stale_trials(work.study)
        trials = work.study.get_trials(deepcopy=False)
        finished = sum(trial.state in FINISHED for trial in trials)
        bar.n = min(finished, wanted)
        bar.refresh()
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        if finished >= wanted:
            return None
        if finished + len(running) < wanted:
            trial = work.study.ask()
            work.storage.record_heartbeat(trial._trial_id)
            return trial
        for trial in running:
            if trial.number not in seen:  # its worker may have died before it first reported that it was alive
                seen.add(trial.number)
                work.storage.record_heartbeat(trial._trial_id)
        bar.set_postfix_str(f"waiting for {len(running)} trials of other workers")
        time.sleep(2 * POLL_S)
    return None


def give_back(study: optuna.Study, trial: Trial) -> None:
    """End a trial without a result, and let the next worker take up its run."""
    study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
    if trial.params:
        study.enqueue_trial(trial.params, {"run": trial.user_attrs["run"]} if "run" in trial.user_attrs else None)


def run_trial(work: Work, trial: Trial, interruption: cli.Interruption, bar: tqdm) -> list[float]:
    """Train with a trial's parameters and return the values of the goals. TrialPruned if the run is given up."""
    params = work.space.sample(trial)
    try:
        cfg = work.space.at(params)
    except InputError as error:
        raise optuna.TrialPruned(str(error)) from None
    name = trial.user_attrs.get("run")
    more = ["--resume"]
    if name is None or not is_left(name, cfg):
        base, more = f"{work.study.study_name}_{trial.number:04d}", []
        names = (base, *(f"{base}_{k}" for k in range(2, 1000)))  # another study of that name may have been here
        name = next(name for name in names if not runs.folder(name).exists())
    trial.set_user_attr("run", name)
    run, path = runs.folder(name), work.out / f"{name}.yaml"
    work.out.mkdir(parents=True, exist_ok=True)
    write_whole(path, settings.as_yaml(cfg))
    words = [sys.executable, str(REPOSITORY / "train.py"), "--path_to_yaml", str(path), "--save_name", name, *more]
    child = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,  # when this worker is killed, train.py ends as it writes its next line
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        said = follow(work, trial, child, run, interruption, bar)
    finally:
        child.terminate()  # it saves its last.pt
        child.wait()
        path.unlink(missing_ok=True)
    if child.returncode:
        has_reason = said.startswith("error: ")  # a process that is killed leaves its last progress instead
        said = said.removeprefix("error: ") if has_reason else f"train.py ended with code {child.returncode}"
        if not (run / "last.pt").exists():  # not even begun: a fault of the data or the machine, not of the parameters
            raise InputError(said)
        raise Failed(said)
    content = checkpoint.load(run / "best.pt")[1]
    if changed := other_data(work.study, content.get("trained_on", {})):
        trial.set_user_attr("run", None)  # such a run cannot be continued when the data are back
        raise InputError(
            f"{run}: the samples {' and '.join(changed)} are not those of the trials before it; their files have "
            "changed since: bring those back, or begin another --study"
        )
    validation = content["validation"]
    if missing := [goal for goal in work.goals if validation[goal] is None]:
        raise optuna.TrialPruned(f"it has no {missing[0]}, as no decision was right")
    return [float(validation[goal]) for goal in work.goals]


def other_data(study: optuna.Study, trained_on: Mapping[str, str]) -> list[str]:
    """Name the samples whose fingerprints are not those of the study's first complete trial."""
    first = study.user_attrs.get("trained_on")
    if not first:  # this is the first, or those before it were of an earlier version
        study.set_user_attr("trained_on", trained_on)
        return []
    return changed_samples(first, trained_on)


def is_left(name: str, cfg: AnyConfig) -> bool:
    """Return whether the folder of a run of this configuration is here and no process trains in it."""
    run = runs.folder(name)
    try:
        with runs.locked(run):
            return (run / "last.pt").exists() and not settings.changes(cfg, settings.load(run / "config.yaml"))
    except InputError:
        return False


def follow(
    work: Work, trial: Trial, child: subprocess.Popen, run: Path, interruption: cli.Interruption, bar: tqdm
) -> str:
    """Wait for a run, report its course to the study, and return its last line. TrialPruned if it falls behind."""
    goal, way = next(iter(work.goals.items()))
    lines: deque[str] = deque(maxlen=1)
    reader = Thread(target=lines.extend, args=(child.stdout,), daemon=True)
    reader.start()
    beaten, course = time.monotonic(), []
    epochs = trial.params.get("train.epochs", work.cfg.train.epochs)
    is_over = False
    while not is_over:
        try:
            child.wait(POLL_S)
            is_over = True
        except subprocess.TimeoutExpired:
            pass
        if interruption.number:
            child.terminate()
            child.wait()
            raise cli.Interrupted(interruption.advice, interruption.number)
        if time.monotonic() - beaten > studies.HEARTBEAT_S:
            work.storage.record_heartbeat(trial._trial_id)
            beaten = time.monotonic()
        rows = report.read_log(run / "metrics.jsonl")
        if len(rows) > len(course):
            course = of_best(rows, goal, way)
            trial.set_user_attr("course", course)
            bar.set_postfix_str(f"trial {trial.number}: epoch {len(rows)}/{epochs}, {goal} {course[-1]:.5g}")
            if not is_over and len(rows) < epochs and (why := is_behind(work, course)):
                raise optuna.TrialPruned(why)
    reader.join()
    return " ".join(lines).strip()


def of_best(rows: list[dict], goal: str, way: str) -> list[float]:
    """Return, for each epoch, the goal at the best epoch so far, which train.py chooses; None counts as the worst."""
    worst = -np.inf if way == "maximize" else np.inf
    values = [worst if row[f"validation_{goal}"] is None else row[f"validation_{goal}"] for row in rows]
    return [values[row.get("best_epoch", k) - 1] for k, row in enumerate(rows, 1)]  # earlier versions do not write it


def is_behind(work: Work, course: list[float]) -> str:
    """Explain why a run with this course is behind; return "" if it is not."""
    stop, epoch = work.search.stop, len(course)
    if stop is None or epoch < work.stop_epoch:
        return ""
    complete = work.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    courses = [trial.user_attrs["course"] for trial in complete]
    others = [one[min(epoch, len(one)) - 1] for one in courses]  # a run that ended early keeps its best
    goal, way = next(iter(work.goals.items()))
    sign = 1 if way == "maximize" else -1
    if len(others) < stop.after_trials:
        return ""
    bound = sign * float(np.quantile([sign * value for value in others], stop.quantile, method="lower"))
    if sign * course[-1] >= sign * bound:
        return ""
    return f"{goal} {course[-1]:.5g} after epoch {epoch}, where {len(others)} complete trials had {bound:.5g}"


def write_front(work: Work) -> None:
    """Write the front of the complete trials so far."""
    trials = work.study.get_trials(deepcopy=False)
    best = {trial.number for trial in work.study.best_trials}

    def point(trial: FrozenTrial) -> front.Point:
        return front.Point(trial.number, trial.values, trial.params, trial.user_attrs["run"], trial.number in best)

    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    given_up = sum(trial.state == TrialState.PRUNED for trial in trials)
    points = [point(trial) for trial in complete]
    so_far = front.Study(work.study.study_name, work.cfg, work.search, work.goals, points, given_up)
    configurations = {trial.number: work.space.at(trial.params) for trial in complete if trial.number in best}
    front.write(so_far, configurations, work.out)


def conclude(work: Work) -> None:
    """Write the front and say where it is."""
    states = [trial.state for trial in work.study.get_trials(deepcopy=False)]
    if TrialState.COMPLETE not in states:
        print(f"no trial of {work.study.study_name} is complete yet, so there is no front")
        return
    write_front(work)
    complete, given_up = states.count(TrialState.COMPLETE), states.count(TrialState.PRUNED)
    print(
        f"{complete} complete trials, {given_up} given up, {len(work.study.best_trials)} on the front\n"
        f"read {work.out / 'front.html'}; train a point by: "
        f"python train.py --path_to_yaml {work.out / 'front'}/<trial>.yaml"
    )


if __name__ == "__main__":
    cli.run(main)
