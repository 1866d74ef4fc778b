"""The storage in a database server repeats its calls while the server is away, whichever statement of a call it interrupts."""

import inspect
import random
import re
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.samplers import RandomSampler
from optuna.storages import _CachedStorage
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from pquant.finetuning import server_storage
from pquant.finetuning.server_storage import ServerStorage

TRIALS = 12


def gone() -> OperationalError:
    return OperationalError("", {}, ConnectionError("the server is restarting"))


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerStorage]:
    monkeypatch.setattr(server_storage.time, "sleep", lambda seconds: None)
    store = ServerStorage(f"sqlite:///{tmp_path / 'study.db'}")
    yield store
    store.engine.dispose()


def lose_statements(store: ServerStorage, seed: int, share: float = 0.1) -> list[str]:
    """The server is away when statements reach it."""
    draw, lost = random.Random(seed), []

    @event.listens_for(store.engine, "before_cursor_execute")
    def lose(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if draw.random() < share:
            lost.append(statement)
            raise gone()

    return lost


def lose_answers(store: ServerStorage, seed: int) -> list[str]:
    """The server executes a transaction and stops before it answers."""
    draw, lost, commit = random.Random(seed), [], store.engine.dialect.do_commit

    def lose(connection: object) -> None:
        commit(connection)
        if draw.random() < 0.2:
            lost.append("commit")
            raise gone()

    store.engine.dialect.do_commit = lose
    return lost


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("lose", [lose_statements, lose_answers])
def test_a_study_ends_although_calls_are_lost(storage, lose, seed):
    lost = lose(storage, seed)
    study = optuna.create_study(study_name="study", storage=storage, direction="maximize", load_if_exists=True, sampler=RandomSampler(seed))
    numbers = []
    while len(numbers) < TRIALS:
        trial = study.ask()
        value = trial.suggest_float("x", 0, 1)
        trial.set_user_attr("owner", "one")
        again = optuna.load_study(study_name="study", storage=storage, sampler=RandomSampler())  # as a job in another process does
        same = optuna.Trial(again, storage.get_trial_id_from_study_id_trial_number(again._study_id, trial.number))
        same.report(value, 1)
        same.should_prune()
        again.tell(trial.number, [value], TrialState.COMPLETE)
        numbers.append(trial.number)
    told = study.get_trials(states=[TrialState.COMPLETE])
    assert [trial.number for trial in told] == numbers
    assert [trial.value for trial in told] == [trial.params["x"] for trial in told]
    assert study.best_trial.value == max(trial.value for trial in told)
    assert len(lost) > 5


def test_every_call_of_optunas_cache_is_repeated():
    called = set(re.findall(r"self\._backend\.(\w+)\(", inspect.getsource(_CachedStorage)))
    heartbeats = {name for name in called if "heartbeat" in name or "stale" in name}
    assert called - heartbeats <= {name for name in vars(ServerStorage)}


def test_other_errors_are_raised_at_once(storage):
    with pytest.raises(KeyError, match="does not exist"):
        storage.get_study_id_from_name("none")


def test_a_server_that_stays_away_is_an_error(storage, monkeypatch):
    monkeypatch.setattr(server_storage, "SECONDS_TO_RESTART", 0)
    lost = lose_statements(storage, seed=0, share=1)
    with pytest.raises(StorageInternalError):
        storage.get_all_studies()
    assert len(lost) == 1
