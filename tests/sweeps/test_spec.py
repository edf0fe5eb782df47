from __future__ import annotations

import re
from pathlib import Path

import optuna
import pytest
import yaml

from medlight.errors import UsageError
from medlight.sweeps import spec
from medlight.sweeps.spec import Objective, check_objectives, load
from tests.sweeps.study import sweep_yaml

PRUNER = {"class_path": "optuna.pruners.MedianPruner"}
TWO = [{"metric": "val/dice", "direction": "maximize"}, {"metric": "val/loss", "direction": "minimize"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = {"class_path": "medlight.tasks.SegmentationTask", "init_args": {}}
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump({"study": "tiny", "model": model}))
    return tmp_path


def read(folder: Path, **changes):
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep_yaml(**changes)))
    return load(folder / "sweep.yaml", [], {})


def test_a_sweep_is_read_with_its_fit_from_the_same_folder(folder):
    sweep = read(folder, pruner=PRUNER)
    assert (sweep.study, sweep.name, sweep.full_name) == ("tiny", "net", "tiny-net")
    assert sweep.config["model"]["class_path"] == "medlight.tasks.SegmentationTask"
    assert isinstance(sweep.build_pruner(), optuna.pruners.MedianPruner)
    assert isinstance(sweep.build_sampler(), optuna.samplers.RandomSampler)


def test_the_command_line_wins_over_the_file(folder):
    read(folder)
    sweep = load(folder / "sweep.yaml", [("model.x", 3)], {"trials": 7, "workers": None, "name": "other"})
    assert (sweep.trials, sweep.workers, sweep.name) == (7, 1, "other")
    assert sweep.config["model"]["init_args"]["x"] == 3


def test_defaults_are_tpe_with_a_seed_and_no_pruner(folder):
    sweep = read(folder, sampler=None)
    assert isinstance(sweep.build_sampler(), optuna.samplers.TPESampler)
    assert isinstance(sweep.build_pruner(), optuna.pruners.NopPruner)
    assert draws(sweep, 0) == draws(sweep, 0) != draws(sweep, 3)


def draws(sweep, before):
    study = optuna.create_study(sampler=sweep.build_sampler(before))
    return [study.ask().suggest_float("x", 0, 1) for _ in range(3)]


def test_identity_names_what_makes_trials_comparable(folder):
    one, two = read(folder).identity({"a": 1}), read(folder, trials=9, workers=2, threads=4).identity({"a": 1})
    assert one == two
    other = read(folder, seed=3).identity({"a": 2})
    assert [part for part in one if one[part] != other[part]] == ["fit", "seed"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trails": 3}, "trails: no such key .did you mean 'trials'"),
        ({"trials": 0}, "trials: expected a whole number above 0, found 0"),
        ({"trials": None}, "trials: missing"),
        ({"workers": "two"}, "workers: expected a whole number"),
        ({"threads": -1}, "threads: expected a whole number"),
        ({"memory_limit_gb": 0}, "memory_limit_gb: expected a number above 0"),
        ({"storage": "here"}, "storage: expected null"),
        ({"seed": -1}, "seed: expected"),
        ({"name": "a/b"}, "name: 'a/b' has characters"),
        ({"fit": "ftt.yaml"}, "no such file .did you mean 'fit.yaml'"),
        ({"fit": None}, "fit: expected text"),
        ({"objectives": []}, "objectives: write a list"),
        ({"objectives": [{"metric": "val/dice"}]}, r"objectives\[0\].direction: None is neither"),
        ({"objectives": [{"metric": "a", "direction": "maximise"}]}, "did you mean 'maximize'"),
        (
            {"objectives": [{"metirc": "a", "direction": "maximize"}]},
            r"objectives\[0\].metirc: .*did you mean 'metric'",
        ),
        ({"objectives": [TWO[0], TWO[0]]}, "objectives: name a metric twice"),
        ({"objectives": TWO, "pruner": PRUNER}, "pruner: can't be used with 2 objectives"),
        ({"sampler": {"class_path": "optuna.samplers.TPESamplr"}}, "sampler.class_path: .*did you mean 'TPESampler'"),
        ({"pruner": {"class_path": "optuna.pruners.MedianPrunr"}}, "pruner.class_path: .*did you mean 'MedianPruner'"),
        ({"sampler": PRUNER}, "sampler.class_path: optuna.pruners.MedianPruner is no optuna.samplers.BaseSampler"),
        ({"pruner": {**PRUNER, "init_args": {"n_warmup_step": 1}}}, "n_warmup_step.*did you mean 'n_warmup_steps'"),
        ({"pruner": {**PRUNER, "init_args": {"n_startup_trials": -1}}}, "pruner: optuna.pruners.MedianPruner: "),
        ({"sampler": "TPESampler"}, "sampler: expected {class_path: optuna.samplers.NAME"),
    ],
)
def test_a_wrong_sweep_is_refused_with_its_key(folder, changes, words):
    with pytest.raises(UsageError, match=words) as error:
        read(folder, **changes)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    assert "sweep.yaml" in str(error.value) or "fit" in changes


def test_an_objective_that_the_task_does_not_log_is_refused_with_the_nearest():
    logged = ["val/loss", "val/dice", "val/dice/hippocampus"]
    check_objectives((Objective("val/dice/hippocampus", "maximize"),), logged, "SegmentationTask")
    words = r"objectives\[0\].metric: SegmentationTask does not log 'val/dcie' \(did you mean 'val/dice'\?\)"
    with pytest.raises(UsageError, match=words):
        check_objectives((Objective("val/dcie", "maximize"),), logged, "SegmentationTask")


def test_the_readme_names_every_key():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    section = readme.split("\n## A sweep\n")[1].split("\n## ")[0]
    named = {word for match in re.findall(r"^(\w+):|`(\w+)[`:]", section, re.M) for word in match}
    assert set(spec.KEYS) - named == set()
