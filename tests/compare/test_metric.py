"""Names, directions and values per case."""

from __future__ import annotations

import math

import pytest

from medlight.compare.metric import Metric, case_values, choose, per_case
from medlight.errors import UsageError

DICE = {"a": {"dice/x": 0.8, "dice/y": 0.6, "hd95": math.nan}, "b": {"dice/x": math.nan, "dice/y": 0.5, "hd95": 2.0}}


@pytest.mark.parametrize("base", ["loss", "hd95", "hd95/Anterior", "ece", "dice_loss", "rmse"])
def test_losses_errors_and_distances_go_down(base):
    assert Metric(base, "val").lower_is_better


@pytest.mark.parametrize("base", ["dice", "nsd", "dice/loss of volume", "auroc", "f1", "accuracy", "shd"])
def test_the_others_go_up(base):
    assert not Metric(base, "val").lower_is_better


def test_the_task_knows_better_than_the_name():
    assert Metric("sharpness", "val", "min").lower_is_better
    logged = [{"val/sharpness"}]
    assert choose(None, ["val/sharpness"], logged, tested=False, modes={"sharpness": "min"}).lower_is_better
    assert not choose("val/sharpness", [], logged, tested=False).lower_is_better


def test_a_metric_by_label_is_the_mean_over_the_labels_that_count():
    assert case_values(DICE, "dice") == {"a": pytest.approx(0.7), "b": 0.5}
    assert case_values(DICE, "dice/y") == {"a": 0.6, "b": 0.5}
    assert case_values(DICE, "nsd") == {}


def test_accuracy_from_answers():
    one = {"a": {"target": 1.0, "predicted": 1.0, "probability/x": 0.1}, "b": {"target": 0.0, "predicted": 1.0}}
    assert case_values(one, "accuracy") == {"a": 1.0, "b": 0.0}
    several = {"a": {"target/x": 1.0, "predicted/x": 1.0, "target/y": 0.0, "predicted/y": 1.0}}
    assert case_values(several, "accuracy") == {"a": 0.5}
    assert per_case(one) == {"accuracy"}
    assert per_case(DICE) == {"dice", "dice/x", "dice/y", "hd95"}


def test_the_monitor_is_the_default_on_the_best_split_there_is():
    logged = [{"val/dice", "val/loss", "test/dice"}, {"val/dice", "val/loss", "test/dice"}]
    assert choose(None, ["val/loss", "val/loss"], logged, tested=True) == Metric("loss", "val")
    assert choose(None, ["val/dice"], logged, tested=True) == Metric("dice", "test")
    assert choose(None, ["val/dice"], logged, tested=False) == Metric("dice", "val")
    assert choose("val/dice", [], logged, tested=True) == Metric("dice", "val")
    assert choose("dice", [], logged, tested=True) == Metric("dice", "test")


def test_without_a_monitor_the_first_that_all_have():
    assert choose(None, [], [{"val/f1", "val/loss"}, {"val/f1"}], tested=False) == Metric("f1", "val")
    assert choose(None, [], [{"val/odd"}, {"val/odd"}], tested=False) == Metric("odd", "val")
    with pytest.raises(UsageError, match="no metric in common"):
        choose(None, [], [{"val/f1"}, {"val/dice"}], tested=False)


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(UsageError, match=r"--metric val/dise: no run has it \(did you mean 'val/dice'\?\)"):
        choose("val/dise", [], [{"val/dice", "val/dice/Anterior"}], tested=False)
