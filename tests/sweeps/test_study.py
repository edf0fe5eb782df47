from __future__ import annotations

import time

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from medlight.errors import MedlightError, UsageError
from medlight.sweeps import rows, study


def created(storage, name="tiny-net") -> optuna.Study:
    return optuna.create_study(study_name=name, storage=storage, direction="maximize")


def ask(found: optuna.Study) -> optuna.Trial:
    trial = found.ask()
    trial.suggest_float("x", 0, 1)
    return trial


def test_an_interrupted_trial_is_tried_again_with_its_parameters_and_counts_once(workdir):
    with study.opened("tiny-net", None) as storage:
        found = created(storage)
        first = ask(found)
        dead = study.revive(found, storage)
        assert [trial.number for trial in dead] == [0]
        assert study.ended(found) == []
        again = ask(found)
        assert (again.number, again.params) == (1, first.params)
        found.tell(again, 0.5)
        table = rows.rows(found)
        assert [(row.state, row.retry_of) for row in table] == [("failed", None), ("complete", 0)]
        assert table[0].reason == study.INTERRUPTED
        assert table[1].reason == ""
        assert [trial.number for trial in study.ended(found)] == [1]


def test_a_trial_that_always_dies_is_not_tried_for_ever(workdir):
    with study.opened("tiny-net", None) as storage:
        found = created(storage)
        ask(found)
        for _ in range(study.ATTEMPTS):
            study.revive(found, storage)
            assert study.ended(found) == []
            ask(found)
        study.revive(found, storage)
        assert len(study.ended(found)) == 1
        assert not found.get_trials(states=(TrialState.WAITING,))


def test_a_second_sweep_of_the_same_name_is_refused_while_the_first_runs(workdir):
    again = study.opened("tiny-net", None)
    with study.opened("tiny-net", None), pytest.raises(UsageError, match="tiny-net is running already"):
        again.__enter__()
    with study.opened("tiny-net", None):
        pass


def test_a_journal_torn_by_a_kill_is_mended(workdir):
    with study.opened("tiny-net", None) as storage:
        found = created(storage)
        found.tell(ask(found), 0.5)
    file = study.journal("tiny-net")
    with file.open("ab") as stream:
        stream.write(b'{"op_code": 4, "half a li')
    file.with_name(file.name + ".lock").symlink_to(file.name)
    with study.opened("tiny-net", None) as storage:
        found = study.find(storage, "tiny-net")
        assert found is not None
        found.tell(ask(found), 0.7)
        assert found.best_value == 0.7


def test_a_sweep_is_named_in_whole_or_by_its_last_part(workdir):
    for name in ("tiny-net", "tiny-lr", "other-lr"):
        with study.opened(name, None) as storage:
            created(storage, name)
    assert study.named("tiny-lr", None).study_name == "tiny-lr"
    assert study.named("net", None).study_name == "tiny-net"
    with pytest.raises(UsageError, match="several sweeps: other-lr, tiny-lr"):
        study.named("lr", None)
    with pytest.raises(UsageError, match=r"no sweep 'tiny-nte' .*did you mean 'tiny-net'"):
        study.named("tiny-nte", None)


def test_a_database_that_is_not_there_is_said_without_its_password(workdir):
    with pytest.raises(MedlightError, match=r"storage: can't use localhost:1/none.*; start the server") as error:
        study.database("postgresql://me:secret@localhost:1/none")
    assert "secret" not in str(error.value)
    with pytest.raises(MedlightError, match="storage: "):
        study.database("nosuch://x/y")


def test_a_silent_trial_in_a_database_goes_back_to_the_queue(workdir, monkeypatch):
    monkeypatch.setattr(study, "SILENT", 1)
    storage = study.database("sqlite:///study.db")
    assert isinstance(storage, RDBStorage)
    found = created(storage)
    dead, alive = ask(found), ask(found)
    study.claim(storage, dead)
    study.claim(storage, alive)
    assert study.revive(found, storage) == []
    time.sleep(2.2)
    study.beat(storage, alive)
    assert [trial.number for trial in study.revive(found, storage)] == [dead.number]
    again = ask(found)
    assert again.params == dead.params
    assert rows.rows(found)[again.number].retry_of == dead.number
    assert rows.rows(found)[dead.number].reason == study.INTERRUPTED


def test_the_table_as_csv_has_a_column_for_each_parameter(workdir):
    with study.opened("tiny-net", None) as storage:
        found = created(storage)
        found.tell(ask(found), 0.5)
        failed = ask(found)
        failed.set_user_attr("reason", "DOE_JOHN.nii.gz: out of, memory")
        found.tell(failed, state=TrialState.FAIL)
        lines = rows.to_csv(found, ["val/dice"]).splitlines()
    assert lines[0] == "trial,state,val/dice,x,seconds,retry_of,run_id,reason"
    assert lines[1].startswith("0,complete,0.5,")
    assert lines[2].endswith('"<file>: out of, memory"')
