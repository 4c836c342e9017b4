"""The study of a search: opened in its database or begun there, and compared with the configuration and the ranges."""

import random
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import optuna
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError

from snn import settings
from snn.errors import InputError
from snn.ranges import Search
from snn.schema import AnyConfig

HEARTBEAT_S, GRACE_S = 30, 120  # between two reports of a worker; without one for GRACE_S, it counts as dead
MOST_RETRIES = 3  # of a trial whose worker dies
MOST_STARTS = 6  # tries of a worker to make the tables, which others may be making


@contextmanager
def answering(url: str) -> Iterator[None]:
    """Turn errors of the database into InputError; the message does not show a password."""
    try:
        yield
    except ArgumentError:
        raise InputError("--storage: not the address of a database, such as sqlite:///study.db") from None
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise InputError(
            f"{shown(url)}: the study's database cannot be used ({' '.join(str(cause).split()):.200}); the runs are as "
            "they were, and the same command continues once the database works"
        ) from None


def shown(url: str) -> str:
    """Return the address of a database without its password."""
    return make_url(url).render_as_string(hide_password=True)


def open_storage(url: str, may_begin: bool) -> RDBStorage:
    """Open a database, and make the tables of studies in one that has none. A file is made only with `may_begin`."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", "Heartbeat of storage is supposed to be used")  # search.py gives its own
    address = make_url(url)
    is_file = address.get_backend_name() == "sqlite"
    if is_file and not may_begin and not Path(address.database or "").is_file():
        raise InputError(f"{shown(url)}: there is no study yet; begin one with --trials")
    options: dict = {"connect_args": {"timeout": 60}} if is_file else {"pool_pre_ping": True}
    for start in range(MOST_STARTS):
        try:
            return RDBStorage(
                url,
                options,
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(MOST_RETRIES),
            )
        except ImportError as error:
            raise InputError(
                f"{shown(url)}: no driver for this database ({error.__cause__ or error}); bash run.sh --python search "
                "installs that of PostgreSQL (postgresql+psycopg://...), others come by pip"
            ) from None
        except SQLAlchemyError as error:
            if start + 1 == MOST_STARTS or (isinstance(error, OperationalError) and not is_file):
                raise
        except RuntimeError as error:  # tables of another version of Optuna
            raise InputError(f"{shown(url)}: {error}") from None
        time.sleep(random.uniform(0.1, 0.5))
    raise AssertionError("the loop returns or raises")


def open_study(
    storage: RDBStorage,
    name: str,
    cfg: AnyConfig,
    search: Search,
    directions: list[Literal["minimize", "maximize"]],
    may_begin: bool,
) -> optuna.Study:
    """Load a study, or begin it. InputError if it is of another configuration, goals or ranges."""
    sampler = optuna.samplers.TPESampler(multivariate=True, constant_liar=True)  # heeds the trials of other workers
    where = f"the study {name} in {shown(storage.url)}"
    try:
        study = optuna.load_study(study_name=name, storage=storage, sampler=sampler)
    except KeyError:
        if not may_begin:
            raise InputError(f"{where}: there is none yet; begin it with --trials") from None
        study = optuna.create_study(
            study_name=name, storage=storage, sampler=sampler, directions=directions, load_if_exists=True
        )
    own = {
        "configuration": cfg.model_dump(mode="json"),
        "search": search.model_dump(mode="json", exclude_defaults=True),
    }
    kept = study.user_attrs
    if not kept.keys() >= own.keys():
        if study.get_trials(deepcopy=False):
            raise InputError(f"{where} was not begun by search.py; choose another --study")
        for key, value in own.items():
            study.set_user_attr(key, value)
        return study
    changed = settings.changes(settings.build(kept["configuration"], where), cfg)
    changed += settings.changes(settings.check(Search, kept["search"], where), search)
    if changed:
        raise InputError(f"{where} was begun with another {', '.join(sorted(changed))}; choose another --study")
    return study
