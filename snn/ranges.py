"""The goals of a search, and the ranges of the fields that it may change."""

import itertools
import json
import math
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from snn import settings
from snn.errors import InputError
from snn.schema import AnyConfig, Section

if TYPE_CHECKING:
    from optuna.trial import Trial

Number = int | float


class Range(Section):
    """The values that a field may take: numbers from low to high, or one of several choices."""

    low: Number | None = None
    high: Number | None = None
    log: bool = Field(False, description="draw the logarithm")
    step: PositiveInt | PositiveFloat | None = Field(None, description="only low, low + step, low + 2 step, ...")
    choices: Annotated[tuple[Any, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _is_one_thing(self) -> "Range":
        if self.choices:
            if not self.model_fields_set <= {"choices"}:
                raise ValueError("give choices, or low and high, and not both")
            if len(self.by_name) < len(self.choices):
                raise ValueError("one of the choices is given twice")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give low and high, or choices")
        if self.low > self.high:
            raise ValueError(f"low = {self.low:g} is above high = {self.high:g}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs a low above 0, and no step")
        if self.step is not None and not self._is_on_a_step(self.high):
            raise ValueError(f"high = {self.high:g} is not low plus a number of steps")
        return self

    @property
    def by_name(self) -> dict[str, Any]:
        """Return the choices by the text that a study keeps of them, as databases do not take lists."""
        return {choice if isinstance(choice, str) else json.dumps(choice): choice for choice in self.choices}

    def spans(self, value: Any) -> bool:
        """Return whether the value is one of the numbers from low to high."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and not self.choices
        return is_number and self.low <= value <= self.high and (self.step is None or self._is_on_a_step(value))

    def _is_on_a_step(self, value: Number) -> bool:
        steps = (value - self.low) / self.step
        return math.isclose(steps, round(steps), abs_tol=1e-6)


class Stop(Section):
    """The rule for giving up a run whose first goal is behind those of complete trials at the same epoch."""

    after_epoch: PositiveInt | None = Field(None, description="not before this epoch; default a quarter of them")
    after_trials: PositiveInt = Field(5, description="not before this number of trials is complete")
    quantile: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5, description="give up a run behind this quantile of the complete trials; 0.5 is their median"
    )


class Search(Section):
    """A file of ranges."""

    goals: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    stop: Stop | None = Stop()
    ranges: Annotated[dict[str, Range], Field(min_length=1)]

    @field_validator("goals")
    @classmethod
    def _stand_once(cls, goals: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(goals)) < len(goals):
            raise ValueError("one of the goals is given twice")
        return goals


def read(path: Path, known_goals: dict[str, str]) -> Search:
    """Read a file of ranges for a kind of network that knows these goals. InputError says what is wrong where."""
    search = settings.check(Search, settings.read_yaml(path, Search), str(path))
    if unknown := [goal for goal in search.goals if goal not in known_goals]:
        raise InputError(f"{path}: goals: {unknown[0]} is not known; known for this network: {', '.join(known_goals)}")
    return search


class Space:
    """All configurations that the ranges allow around one. InputError names a range with an end that is not allowed."""

    def __init__(self, base: AnyConfig, ranges: dict[str, Range], where: str):
        self.values, self.ranges = base.model_dump(mode="json"), ranges
        self.takes_whole_numbers = set()
        for field, other in itertools.permutations(ranges, 2):
            if other.startswith(f"{field}."):
                raise InputError(f"{where}: ranges: {other} is part of {field}, which has a range, too; leave one out")
        for field, allowed in ranges.items():
            for value in allowed.choices or (allowed.low, allowed.high):
                try:
                    built = self._with({field: value}, f"with {value!r:.60}")
                except InputError as error:
                    raise InputError(f"{where}: ranges: {field}: {error}") from None
            if isinstance(_value(built, field), int) and not allowed.choices:
                self.takes_whole_numbers.add(field)
                if isinstance(allowed.step, float):
                    raise InputError(f"{where}: ranges: {field}: the field takes whole numbers; give a whole step")
        self.own = self._own(base)  # the parameters of the configuration itself, if the ranges allow it

    def sample(self, trial: "Trial") -> dict[str, Any]:
        """Return a trial's parameters, drawn where they are not given yet."""
        for field, allowed in self.ranges.items():
            if allowed.choices:
                trial.suggest_categorical(field, list(allowed.by_name))
            elif field in self.takes_whole_numbers:
                trial.suggest_int(field, allowed.low, allowed.high, step=allowed.step or 1, log=allowed.log)
            else:
                trial.suggest_float(field, allowed.low, allowed.high, step=allowed.step, log=allowed.log)
        return trial.params

    def at(self, params: dict[str, Any]) -> AnyConfig:
        """Return the configuration with these parameters. InputError if they contradict each other."""
        choices = {field: self.ranges[field].by_name for field in params}
        return self._with({f: choices[f][value] if choices[f] else value for f, value in params.items()}, "together")

    def _own(self, base: AnyConfig) -> dict[str, Any] | None:
        own = {}
        for field, allowed in self.ranges.items():
            names = [name for name, choice in allowed.by_name.items() if self._with({field: choice}, field) == base]
            if not names and not allowed.spans(_value(base, field)):
                return None
            own[field] = names[0] if names else _value(base, field)
        return own

    def _with(self, changes: dict[str, Any], where: str) -> AnyConfig:
        values = deepcopy(self.values)
        for field, value in changes.items():
            settings.override(values, field, value)
        return settings.build(values, where)


def _value(cfg: AnyConfig, field: str) -> Any:
    """Return the value of a field by its dotted name."""
    value: Any = cfg
    for name in field.split("."):
        value = getattr(value, name)
    return value
