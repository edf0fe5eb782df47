"""The comparison of runs that a SQLite store holds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import wilcoxon

from medlight.compare.notes import NO_INTERVAL
from medlight.compare.records import Record, Selection, at_best, collect
from medlight.compare.stats import holm
from medlight.compare.summary import summary
from medlight.compare.table import compare
from medlight.compare.text import interval
from medlight.errors import UsageError
from tests.compare.recorded import Recorder, dice_cases, dice_curves, spec, sweep


@pytest.fixture
def recorder(workdir):
    return Recorder(workdir)


def record(name: str, values: dict[str, float], split: str = "val", **more: object) -> Record:
    cases = {split: {case: {"dice": value} for case, value in values.items()}}
    return replace(Record(name, name, "complete", monitor="val/dice", cases=cases), **more)


def numbered(values: list[float], first: int = 0) -> dict[str, float]:
    return {f"c{first + i}": value for i, value in enumerate(values)}


def test_a_sweep_becomes_its_trials_best_first_and_the_unfinished_last(recorder):
    parent, children = sweep(recorder)
    found = compare(collect([parent[:8]]))
    assert [row.record.run_id for row in found.rows[:5]] == [children[i] for i in (0, 3, 1, 2, 4)]
    assert [(row.record.state, row.record.reason) for row in found.rows[5:]] == [
        ("failed", "over 4 GB"),
        ("pruned", "below the median at step 20"),
    ]
    assert found.sweeps == ["hippocampus-sweep"]
    assert found.metric.name == "val/dice"
    assert found.parameters == ["network", "channels", "lr"]
    assert [row.best for row in found.rows] == [True] + [False] * 6
    assert all(row.why == "not compared" and row.mean is None for row in found.rows[5:])


def test_names_and_repeats(recorder):
    children = sweep(recorder)[1]
    named = collect(["hippocampus-sweep", children[1], "hippocampus-sweep-2"])
    assert len(named.records) == 7
    with pytest.raises(UsageError, match="did you mean 'hippocampus-sweep'"):
        collect(["hippocampus-swep"])


def test_figures_against_numpy_and_scipy(recorder):
    _, children = sweep(recorder)
    found = compare(collect(children[:3]))
    scores = [[row["dice"] for row in dice_cases(level, seed=i).values()] for i, level in enumerate((0.88, 0.86, 0.84))]
    assert [row.mean.mean for row in found.rows] == pytest.approx([np.mean(s) for s in scores])
    raw = [wilcoxon(np.subtract(s, scores[0]), zero_method="zsplit").pvalue for s in scores[1:]]
    assert [row.paired.p for row in found.rows[1:]] == pytest.approx(raw)
    assert [row.p for row in found.rows[1:]] == pytest.approx(holm(raw))
    assert found.rows[1].paired.difference.n == 20
    assert found.rows[1].paired.difference.mean == pytest.approx(np.mean(scores[1]) - np.mean(scores[0]))


def test_metrics_are_those_of_the_best_epoch(recorder):
    run = recorder.run("one", curves=dice_curves(0.8), cases={"val": dice_cases(0.8)})
    (found,) = collect([run]).records
    assert found.metrics["val/dice"] == 0.8
    assert found.metrics["val/hd95"] == 4.0
    assert found.metrics["val/loss"] == 0.4
    assert found.metrics["train/loss"] == 0.3  # training has no best epoch: the last one


def test_best_epoch_of_a_loss_ignores_nan():
    curves = {"val/loss": [(1, math.nan), (2, 0.5), (3, 0.7)], "val/dice": [(1, 0.1), (2, 0.2), (3, 0.3)]}
    assert at_best(curves, "val/loss")["val/dice"] == 0.2
    assert at_best(curves, None)["val/dice"] == 0.3


def test_cases_are_paired_by_id_and_not_by_place():
    values = [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97]
    first = record("first", numbered(values))
    second = record("second", dict(reversed(list(numbered([v - 0.1 for v in values]).items()))))
    row = compare(Selection([second, first], [])).rows[1]
    assert row.record.name == "second"
    assert row.paired.difference.mean == pytest.approx(-0.1)
    assert row.paired.difference.low == pytest.approx(-0.1)


def test_different_case_sets_are_cut_to_what_all_have_and_it_is_said():
    first, second = record("a", numbered([0.9] * 12)), record("b", numbered([0.8] * 12, first=4))
    found = compare(Selection([first, second], []))
    assert found.cases == sorted(f"c{i}" for i in range(4, 12))
    assert found.rows[1].paired.difference.n == found.rows[0].mean.n == 8
    assert any("compared on the 8 that all have (of 12 each)" in note for note in found.notes)


def test_no_case_in_common_means_no_pairs():
    found = compare(Selection([record("a", numbered([0.9] * 8)), record("b", numbered([0.8] * 8, first=8))], []))
    assert found.rows[1].why == "no case in common"
    assert found.rows[1].paired is None
    assert [row.mean.n for row in found.rows] == [8, 8]
    assert any("share no case" in note for note in found.notes)


def test_too_few_pairs_have_no_p_and_a_reason():
    found = compare(Selection([record("a", numbered([0.9] * 5)), record("b", numbered([0.8] * 5))], []))
    assert found.rows[1].p is None
    assert found.rows[1].why == "5 pairs, 6 needed"
    assert found.rows[1].paired.difference.mean == pytest.approx(-0.1)


def test_too_few_cases_have_no_interval_and_a_note():
    found = compare(Selection([record("a", numbered([0.9] * 5)), record("b", numbered([0.8] * 5))], []))
    assert interval(found.rows[0].mean) == "0.9000 [–]"
    assert NO_INTERVAL in found.notes
    enough = compare(Selection([record("a", numbered([0.9] * 6)), record("b", numbered([0.8] * 6))], []))
    assert interval(enough.rows[0].mean) == "0.9000 [0.9000, 0.9000]"
    assert NO_INTERVAL not in enough.notes


def test_a_failed_run_without_anything_is_only_listed():
    whole = [
        record(n, numbered([v] * 7), params={"lr": lr, "seed": "0"}) for n, v, lr in (("a", 0.9, "1"), ("b", 0.8, "2"))
    ]
    found = compare(Selection([Record("x", "x", "failed", "out of memory"), *whole], []))
    assert found.parameters == ["lr"]
    assert [row.record.name for row in found.rows] == ["a", "b", "x"]
    assert found.rows[2].params == {}
    alone = compare(Selection([replace(whole[0], state="running"), Record("x", "x", "failed")], []))
    assert alone.parameters == []
    assert [row.record.name for row in alone.rows] == ["a", "x"]


def test_lower_is_better_turns_the_order():
    runs = [
        record(name, {}, cases={"val": {f"c{i}": {"hd95": v} for i in range(7)}})
        for name, v in (("a", 4.0), ("b", 2.0))
    ]
    found = compare(Selection(runs, []), "hd95")
    assert [row.record.name for row in found.rows] == ["b", "a"]
    assert found.rows[1].paired.difference.mean == 2.0


def test_test_cases_win_where_all_runs_have_them():
    def both(name: str, level: float) -> Record:
        cases = {s: {f"{s}{i}": {"dice": level} for i in range(7)} for s in ("val", "test")}
        return Record(name, name, "complete", monitor="val/dice", cases=cases)

    found = compare(Selection([both("a", 0.9), both("b", 0.8)], []))
    assert found.metric.name == "test/dice"
    assert not any("Optimistic" in note for note in found.notes)
    mixed = compare(Selection([both("a", 0.9), record("c", {f"val{i}": 0.7 for i in range(7)})], []))
    assert mixed.metric.name == "val/dice"
    assert any("Optimistic" in note for note in mixed.notes)


def test_a_run_without_cases_is_ranked_last_and_says_why():
    bare = Record("bare", "bare", "complete", metrics={"val/dice": 0.99}, monitor="val/dice")
    found = compare(Selection([bare, record("a", numbered([0.8] * 7)), record("b", numbered([0.7] * 7))], []))
    assert [row.record.name for row in found.rows] == ["a", "b", "bare"]
    assert found.rows[2].why == "no values per case"


def test_a_score_of_the_whole_set_is_ranked_without_a_test():
    def classifier(name: str, auroc: float) -> Record:
        cases = {"val": {f"c{i}": {"target": 1.0, "predicted": 1.0} for i in range(7)}}
        return Record(name, name, "complete", metrics={"val/auroc": auroc}, monitor="val/auroc", cases=cases)

    found = compare(Selection([classifier("a", 0.7), classifier("b", 0.9)], []))
    assert [row.record.name for row in found.rows] == ["b", "a"]
    assert any("auroc is no score of a single case" in note and "accuracy" in note for note in found.notes)


def test_runs_that_did_not_end_are_shown_as_they_are_when_there_are_no_others():
    running = record("a", numbered([0.8] * 7), state="running"), record("b", numbered([0.7] * 7), state="running")
    found = compare(Selection(list(running), []))
    assert found.rows[1].p is not None
    assert any("None of these runs is complete" in note for note in found.notes)


def test_json_has_no_nan(recorder):
    import json

    _, children = sweep(recorder)
    found = compare(collect(children), "hd95").to_dict()
    text = json.dumps(found, allow_nan=False)
    assert found["lower_is_better"] is True
    assert found["runs"][1]["difference"]["n"] == 19  # one case has no distance
    assert '"no_p_because": "not compared"' in text


def test_a_sweep_without_trials(recorder):
    recorder.run("empty-sweep", kind="sweep")
    with pytest.raises(UsageError, match="no trials yet"):
        collect(["empty-sweep"])


def test_summary_of_one_run(recorder):
    run = recorder.run("one", params=spec("UNet", "4", 0.1), curves=dice_curves(0.8), cases={"val": dice_cases(0.8)})
    lines = {line["metric"]: line for line in summary(collect([run]).records[0])["val"]}
    scores = {case: row["dice"] for case, row in dice_cases(0.8).items()}
    assert list(lines) == ["dice", "dice/Anterior", "dice/Posterior", "hd95", "loss"]
    assert lines["dice"]["worst_case"] == min(scores, key=scores.get)
    assert lines["dice"]["median"] == pytest.approx(np.median(list(scores.values())))
    assert lines["hd95"]["n"] == 19
    with pytest.raises(UsageError, match="no values per case"):
        summary(Record("x" * 32, "x", "complete"))
