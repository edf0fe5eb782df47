from __future__ import annotations

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medlight.config import get_path
from medlight.errors import UsageError
from medlight.sweeps import space

UNET = "monai.networks.nets.UNet"
CONFIG = {
    "model": {
        "class_path": "medlight.tasks.SegmentationTask",
        "init_args": {
            "network": {"class_path": UNET, "init_args": {"channels": [4, 8], "strides": [2]}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
        },
    },
    "data": {"class_path": "medlight.data.ScanDataModule", "init_args": {"batch_size": 2}},
    "trainer": {"max_epochs": 3},
}


def suggested(written: dict, params: dict) -> dict:
    return space.suggest(space.parse(written), CONFIG, optuna.trial.FixedTrial(params))


def test_values_land_at_their_paths_and_nothing_else_changes():
    written = {
        "model.optimizer.lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
        "data.batch_size": {"type": "int", "low": 1, "high": 8},
        "model.network.channels": {"type": "categorical", "choices": [[4, 8], [8, 16]]},
    }
    params = {"model.optimizer.lr": 0.01, "data.batch_size": 4, "model.network.channels": "[8, 16]"}
    config = suggested(written, params)
    assert get_path(config, "model.init_args.optimizer.init_args.lr") == 0.01
    assert get_path(config, "data.init_args.batch_size") == 4
    assert get_path(config, "model.init_args.network.init_args.channels") == [8, 16]
    assert config["trainer"] == CONFIG["trainer"]
    assert get_path(CONFIG, "model.optimizer.lr") == 1e-3


def test_a_class_is_replaced_whole_and_its_own_space_goes_into_it():
    basic = {
        "class_path": "monai.networks.nets.BasicUNet",
        "space": {"dropout": {"type": "float", "low": 0.0, "high": 0.5}},
    }
    unet = {"class_path": UNET, "init_args": {"channels": [2, 4], "strides": [2]}}
    written = {"model.network": {"type": "categorical", "choices": {"unet": unet, "basic": basic}}}
    config = suggested(written, {"model.network": "basic", "model.network.basic.dropout": 0.25})
    assert get_path(config, "model.network") == {
        "class_path": "monai.networks.nets.BasicUNet",
        "init_args": {"dropout": 0.25},
    }
    assert get_path(suggested(written, {"model.network": "unet"}), "model.network") == unet
    assert space.names(space.parse(written)) == ["model.network", "model.network.basic.dropout"]


@given(st.floats(1e-6, 1.0), st.floats(1.0, 1e3), st.booleans(), st.integers(0, 2**31 - 1))
def test_a_suggestion_lies_in_its_range(low, high, log, seed):
    written = {"model.optimizer.lr": {"type": "float", "low": low, "high": high, "log": log}}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    value = get_path(space.suggest(space.parse(written), CONFIG, study.ask()), "model.optimizer.lr")
    assert low <= value <= high


def test_corners_cover_both_ends_and_every_choice():
    written = {
        "model.optimizer.lr": {"type": "float", "low": 1e-4, "high": 1e-1},
        "model.network": {
            "type": "categorical",
            "choices": {
                "unet": {
                    "class_path": UNET,
                    "init_args": {"channels": [2, 4], "strides": [2]},
                    "space": {"num_res_units": {"type": "int", "low": 0, "high": 2}},
                }
            },
        },
    }
    found = [(key, get_path(config, "model.network.init_args")) for key, config in corners(written)]
    assert [key for key, _ in found] == [
        "space.model.optimizer.lr",
        "space.model.optimizer.lr",
        "space.model.network.choices.unet",
        "space.model.network.unet.num_res_units",
        "space.model.network.unet.num_res_units",
    ]
    assert [inner.get("num_res_units") for _, inner in found[3:]] == [0, 2]


def corners(written):
    return list(space.corners(space.parse(written), CONFIG))


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({}, "space: write at least one PATH"),
        ({"a": 3}, "space.a: expected"),
        ({"a": {"type": "flaot", "low": 0, "high": 1}}, "space.a.type: 'flaot' is none of float, int, categorical"),
        ({"a": {"type": "flaot"}}, "did you mean 'float'"),
        ({"a": {"type": "float", "low": 0, "hihg": 1}}, "space.a.hihg: .*did you mean 'high'"),
        ({"a": {"type": "float", "low": 0}}, "space.a.high: missing"),
        ({"a": {"type": "float", "low": 2, "high": 1}}, "space.a.low: 2 is above high, 1"),
        ({"a": {"type": "float", "low": 0, "high": 1, "log": True}}, "space.a.low: 0 with log"),
        ({"a": {"type": "float", "low": "x", "high": 1}}, "space.a.low: expected a number, found 'x'"),
        ({"a": {"type": "int", "low": 0.5, "high": 1}}, "space.a.low: expected an int, found 0.5"),
        ({"a": {"type": "int", "low": True, "high": 1}}, "space.a.low: expected an int, found True"),
        ({"a": {"type": "float", "low": 0, "high": 1, "log": "yes"}}, "space.a.log: expected true or false"),
        ({"a": {"type": "int", "low": 1, "high": 9, "log": True, "step": 2}}, "space.a.step: can't be used with log"),
        ({"a": {"type": "float", "low": 1, "high": 9, "step": 0}}, "space.a.step: 0 is not above 0"),
        ({"a": {"type": "categorical"}}, "space.a.choices: write a list"),
        ({"a": {"type": "categorical", "choices": []}}, "space.a.choices: write a list"),
        ({"a": {"type": "categorical", "choices": [1, 1]}}, "space.a.choices: holds a value twice"),
        (
            {"a": {"type": "categorical", "choices": [{"class_path": UNET}]}},
            r"space.a.choices\[0\]: give classes names",
        ),
        ({"a": {"type": "categorical", "choices": {"u": 3}}}, "space.a.choices.u: expected {class_path"),
        (
            {"a": {"type": "categorical", "choices": {"u": {"class_path": "monai.networks.nets.UNte"}}}},
            "space.a.choices.u.class_path: monai.networks.nets has no class 'UNte' .did you mean 'UNet'",
        ),
        (
            {"a": {"type": "categorical", "choices": {"u": {"class_path": UNET, "init_args": {"chanels": []}}}}},
            "space.a.choices.u.init_args.chanels: .*did you mean 'channels'",
        ),
        (
            {"a": {"type": "categorical", "choices": {"u": {"class_path": UNET, "init_arg": {}}}}},
            "space.a.choices.u.init_arg: no such key .did you mean 'init_args'",
        ),
        (
            {
                "a": {
                    "type": "categorical",
                    "choices": {"u": {"class_path": UNET, "space": {"dropuot": {"type": "int", "low": 0, "high": 1}}}},
                }
            },
            "space.a.choices.u.space.dropuot: .*did you mean 'dropout'",
        ),
        (
            {"a": {"type": "int", "low": 0, "high": 1}, "a.b": {"type": "int", "low": 0, "high": 1}},
            "space.a.b: lies inside 'a'",
        ),
    ],
)
def test_a_wrong_space_is_refused_with_its_key(written, words):
    with pytest.raises(UsageError, match=words):
        space.parse(written)


@pytest.mark.parametrize(
    "path", ["model.optimizer.lr", "model.network.dropout", "model.init_args.network", "model.loss"]
)
def test_a_path_into_the_configuration_or_to_an_argument_that_a_class_has_is_taken(path):
    space.check_path(CONFIG, path, "space", "fit.yaml")


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("model.optimzer.lr", "model.optimizer.lr"),
        ("model.network.chanels", "model.network.channels"),
        ("model.network.dropuot", "model.network.dropout"),
        ("data.batchsize", "data.batch_size"),
        ("trainer.max_epoch", "trainer.max_epochs"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused_with_the_nearest(path, near):
    with pytest.raises(UsageError, match=rf"space.{path}: fit.yaml has no such key \(did you mean '{near}'\?\)"):
        space.check_path(CONFIG, path, f"space.{path}", "fit.yaml")
