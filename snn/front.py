"""The result of a search: its Pareto front as a picture, as a page, and as configurations to train."""

import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from snn import report, settings, yaml12
from snn.files import write_whole
from snn.machine import find_device, machine, versions
from snn.pictures import BLUE, GREY, ORANGE, WIDTH, pyplot, styled
from snn.ranges import Search
from snn.report import Tile, keep, render
from snn.schema import AnyConfig
from snn.tables import Table, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NUMBERED = 25  # points of a front; more are not numbered in the picture
BETTER = {"maximize": "higher is better", "minimize": "lower is better"}


class Point(NamedTuple):
    """A complete trial."""

    trial: int
    values: Sequence[float]  # of the goals
    params: dict[str, Any]
    run: str
    is_best: bool  # no other trial is as good in all goals and better in one


class Study(NamedTuple):
    """A search so far."""

    name: str
    base: AnyConfig
    search: Search
    goals: dict[str, str]  # -> maximize or minimize
    points: Sequence[Point]
    given_up: int  # trials

    @property
    def front(self) -> list[Point]:
        """Return the points of the front, the best in the first goal first."""
        sign = -1 if next(iter(self.goals.values())) == "maximize" else 1
        return sorted((p for p in self.points if p.is_best), key=lambda p: (sign * p.values[0], p.trial))

    def best(self, goal: int) -> float:
        """Return the best value of a goal, by its place."""
        better = max if list(self.goals.values())[goal] == "maximize" else min
        return better(point.values[goal] for point in self.points)


def write(study: Study, configurations: dict[int, AnyConfig], out: Path) -> None:
    """Write front.html, front.png and front/<trial>.yaml of each point to `out`.

    `configurations` are those of the front by the number of the trial.
    """
    folder = out / "front"
    folder.mkdir(parents=True, exist_ok=True)
    for point in study.front:
        head = f"# Trial {point.trial} of the study {study.name}, trained in runs/{point.run}; on held-out data:\n"
        said = [f"# {goal} = {number(value)}\n" for goal, value in zip(study.goals, point.values, strict=True)]
        write_whole(path_of(folder, point), head + "".join(said) + settings.as_yaml(configurations[point.trial]))
    kept = {path_of(folder, point) for point in study.front}
    for path in folder.iterdir():
        if re.fullmatch(r"\d{4,}\.yaml", path.name) and path not in kept:  # points that others have left behind
            path.unlink(missing_ok=True)
    words = "Complete trials by their goals, as measured on held-out data; on the front, with their numbers, in orange"
    picture = keep(draw(study), out, "front.png", words)
    n, best = len(study.points), len(study.front)
    lead = f"{n} complete trials of the study {study.name}, {best} of them on the front of {', '.join(study.goals)}."
    origin = {
        "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "written": time.strftime("%Y-%m-%d %H:%M:%S"),
        "machine": machine(find_device(study.base.train.device)),
        "versions": versions(),
    }
    sections = [
        report.Section(
            "Front",
            "No other trial is as good in all goals and better in one. Each row is a configuration in "
            f"{folder}/<trial>.yaml that train.py takes as it is. The values are those of the run's best epoch on the "
            "held-out data that also chose the trial, so the best of many look better than they are: test.py says how "
            "good a network is.",
            [front_table(study)],
            [picture],
        ),
        report.Section("All complete trials", tables=[trials_table(study)]),
        report.Section(
            "Goals and ranges", code=yaml12.text(study.search.model_dump(mode="json", exclude_defaults=True))
        ),
        report.Section(
            "Configuration", "Trials change the fields that the ranges name.", code=settings.as_yaml(study.base)
        ),
        report.Section("Provenance", tables=[report.provenance_table([origin], names=tuple(origin))]),
    ]
    tiles = [
        *(
            Tile(f"best {goal}", number(study.best(k)), BETTER[way])
            for k, (goal, way) in enumerate(study.goals.items())
        ),
        Tile("on the front", str(best), f"of {n} complete trials"),
        Tile("given up", str(study.given_up), "runs that were behind or failed"),
    ]
    write_whole(out / "front.html", render(study.name, lead, tiles, sections))


def path_of(folder: Path, point: Point) -> Path:
    """Return the path of a point's configuration."""
    return folder / f"{point.trial:04d}.yaml"


def front_table(study: Study) -> Table:
    """Return the table of the front: goals and parameters, a row for each point."""
    fields = list(study.front[0].params)
    rows = [(str(p.trial), *map(number, p.values), *(_words(p.params[field]) for field in fields)) for p in study.front]
    return Table("", ("trial", *study.goals, *fields), rows)


def trials_table(study: Study) -> Table:
    """Return the table of all complete trials: goals and runs."""
    rows = [
        (str(p.trial), *map(number, p.values), f"runs/{p.run}", "on the front" if p.is_best else "")
        for p in study.points
    ]
    return Table("", ("trial", *study.goals, "run", ""), rows, is_words=True)


@styled
def draw(study: Study) -> "Figure":
    """Draw the first goal against each of the others; of a single goal, its value trial by trial."""
    first, *others = study.goals
    figure, axes = pyplot().subplots(
        max(1, len(others)), squeeze=False, figsize=(WIDTH, 0.4 + 2.9 * max(1, len(others)))
    )
    for k, axis in enumerate(axes[:, 0], 1):
        for points, colour, size in (([p for p in study.points if not p.is_best], GREY, 14), (study.front, ORANGE, 28)):
            x = [p.values[k] if others else p.trial for p in points]
            axis.scatter(x, [p.values[0] for p in points], s=size, color=colour, zorder=2 + (colour == ORANGE))
        for p in study.front if len(study.front) <= MOST_NUMBERED else ():
            place = (p.values[k] if others else p.trial, p.values[0])
            axis.annotate(str(p.trial), place, xytext=(4, 4), textcoords="offset points", fontsize=7, color=BLUE)
        axis.set_xlabel(f"{others[k - 1]} ({BETTER[study.goals[others[k - 1]]]})" if others else "trial")
        axis.set_ylabel(f"{first}\n({BETTER[study.goals[first]]})")
        axis.grid(color=GREY, lw=0.4)
    return figure


def _words(value: Any) -> str:
    return value if isinstance(value, str) else number(value) if isinstance(value, float) else str(value)
