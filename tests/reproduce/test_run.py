"""A study from its folder to its verdicts: nothing is run twice, what was cut goes on, what is wrong is said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from medlight.cli.main import main
from medlight.tracking import store
from tests.reproduce import folder

COMMAND = [sys.executable, "-m", "medlight", "reproduce"]


@pytest.fixture
def study(workdir: Path) -> Path:
    return folder.write(workdir)


def reproduce(path: Path, *more: str) -> int:
    return main(["reproduce", str(path), *more])


def runs() -> dict[str, Any]:
    return {run.info.run_id: run for run in store.runs_of("fakes", "fit")}


def test_a_study_is_run_once_and_judged(study: Path, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce(study, "--workers", "2") == 0
    results = json.loads((study / "results.json").read_text())
    assert results["verdicts"][0]["verdict"] == "reproduced"
    assert results["verdicts"][1]["verdict"] in ("claim holds", "claim fails", "undecided")
    assert results["state"] == "complete"
    assert {(run["variant"], run["seed"]) for run in results["runs"]} == {
        ("slow", 0), ("slow", 1), ("fast", 0), ("fast", 1),
    }  # fmt: skip
    assert all(run["minutes"] > 0 and len(run["curve"]) >= 2 for run in results["runs"])
    first = runs()
    assert len(first) == 4
    for run in first.values():
        tags = run.data.tags
        assert tags["mlflow.parentRunId"] == results["parent_run"]
        assert run.data.metrics["test/auroc"] == run.data.metrics["test/auroc"]
        assert (tags["medlight.budget"], tags["medlight.state"]) == ("full", "complete")
        assert f"{tags['medlight.variant']}-seed{tags['medlight.seed']}" == tags["medlight.name"]
        assert tags["medlight.data_digest"]
    text = (study / "results.md").read_text()
    for part in ("| slow test/auroc | 0.9 ± 0.6 |", "Table 1", "the pictures are fake", "medlight reproduce", "rule"):
        assert part in text
    (parent,) = store.runs_of("fakes", "study")
    assert parent.info.run_id == results["parent_run"]
    for name in ("results.json", "results.md", "results.html", "expected.yaml"):
        assert store.artifact(parent.info.run_id, name).is_file()

    capsys.readouterr()
    (study / "base.yaml").write_text("# a comment\n" + (study / "base.yaml").read_text())
    assert reproduce(study) == 0
    assert "4 there already, 0 to do" in capsys.readouterr().err
    assert set(runs()) == set(first)
    assert len(store.runs_of("fakes", "study")) == 1

    slow = next(run_id for run_id, run in first.items() if run.data.tags["medlight.name"] == "slow-seed1")
    manifest = store.artifact(slow, "manifest.json")
    written = json.loads(manifest.read_text())
    written["code"]["medlight.tasks.base"] = "another"
    manifest.write_text(json.dumps(written))
    from medlight.reproduce import plan

    plan.difference.cache_clear()  # a new process knows nothing of the old answers
    assert reproduce(study) == 0
    said = capsys.readouterr().err
    assert "is of other code (medlight.tasks.base)" in said
    assert len(runs()) == 5


def test_a_quick_budget_is_a_smoke_run_with_files_of_its_own(study: Path, workdir: Path) -> None:
    assert reproduce(study, "--budget", "quick", "--seeds", "1", "--json", "out.json") == 0
    results = json.loads(Path("out.json").read_text())
    assert [row["verdict"] for row in results["verdicts"]] == ["smoke", "smoke"]
    assert not (study / "results.json").exists()
    assert (workdir / "mlruns" / "reproductions" / "fakes-quick" / "results.md").is_file()
    assert len(runs()) == 2


def test_fewer_seeds_than_the_study_asks_for_are_incomplete(study: Path) -> None:
    git = ["git", "-C", str(study), "-c", "user.name=a", "-c", "user.email=a@b"]  # the study's, not where it is run
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "a study"]):
        subprocess.run([*git, *words], check=True)
    assert reproduce(study, "--seeds", "1") == 0
    results = json.loads((study / "results.json").read_text())
    assert results["commit"] == subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    assert [row["verdict"] for row in results["verdicts"]] == ["incomplete", "incomplete"]
    assert results["state"] == "2 of 4 runs"


def test_results_of_more_runs_are_kept(study: Path, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce(study, "--seeds", "1") == 0
    results = json.loads((study / "results.json").read_text())
    for run in results["runs"]:
        run["state"] = "done"  # as if another machine had finished all four
    (study / "results.json").write_text(json.dumps(results))
    capsys.readouterr()
    assert reproduce(study, "--seeds", "1") == 0
    assert f"kept: {study / 'results.md'}, which is of more finished runs" in capsys.readouterr().out
    assert json.loads((study / "results.json").read_text()) == results
    here = workdir / "mlruns" / "reproductions" / "fakes" / "results.json"
    assert json.loads(here.read_text())["state"] == "2 of 4 runs"
    (study / "base.yaml").write_text("# another file\n" + (study / "base.yaml").read_text())
    assert reproduce(study, "--seeds", "1") == 0
    assert json.loads((study / "results.json").read_text())["state"] == "2 of 4 runs"


def test_a_variant_starts_from_the_run_of_another(workdir: Path) -> None:
    variants = {"tuned": {"files": ["base.yaml", "tuned.yaml"], "after": "slow"}, "slow": ["base.yaml"]}
    study = folder.write(workdir, variants=variants, expected=[{"claim": "tuned.test/auroc > 0.1"}], seeds=1)
    assert reproduce(study) == 0
    found = {run.data.tags["medlight.name"]: run for run in runs().values()}
    config = store.artifact(found["tuned-seed0"].info.run_id, "config.yaml").read_text()
    assert f"pretrained: run:{found['slow-seed0'].info.run_id}" in config
    assert reproduce(study) == 0
    assert len(runs()) == 2


def test_a_variant_that_fails_is_named_and_the_others_go_on(
    study: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (study / "fast.yaml").write_text("trainer: {callbacks: [{class_path: tests.reproduce.targets.Explodes}]}\n")
    assert reproduce(study, "--seeds", "1") == 1
    assert "fast-seed0 failed: RuntimeError: bang" in capsys.readouterr().err
    results = json.loads((study / "results.json").read_text())
    states = {run["variant"]: run["state"] for run in results["runs"] if run["seed"] == 0}
    assert states == {"slow": "done", "fast": "failed"}


BAD = [
    ([{"claim": "slow.test/aurco > 0.1"}], {}, "variant slow does not log 'test/aurco' (did you mean 'test/auroc'?)"),
    ([{"claim": "slwo.auroc > 0.1"}], {}, "no variant 'slwo' (did you mean 'slow'?)"),
    (None, {"quick": {"trainer.max_epoch": 1}}, "trainer.max_epoch: Trainer has no argument 'max_epoch'"),
    (None, {"variants": {"slow": ["base.yaml", "fast.yaml", "gone.yaml"]}}, "no file 'gone.yaml'"),
    (
        [{"claim": "tuned.auroc > 0.1"}],
        {"variants": {"tuned": ["base.yaml", "tuned.yaml"], "slow": ["base.yaml"]}},
        "variant tuned: model.pretrained: variant:slow; mend: write `after: slow` at the variant too",
    ),
    (
        [{"claim": "fast.auroc > 0.1"}],
        {"variants": {"fast": {"files": ["base.yaml"], "after": "slow"}, "slow": ["base.yaml"]}},
        "variant fast: after: slow; mend: write model.pretrained: variant:slow in its YAML too",
    ),
]


@pytest.mark.parametrize(("entries", "changes", "said"), BAD, ids=[said for *_, said in BAD])
def test_what_is_wrong_is_said_before_anything_starts(
    workdir: Path, capsys: pytest.CaptureFixture[str], entries: list[Any] | None, changes: dict[str, Any], said: str
) -> None:
    study = folder.write(workdir, **changes, **({"expected": entries} if entries else {}))
    assert reproduce(study, "--budget", "quick") == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not (workdir / "mlruns" / "mlflow.db").exists()


def test_data_that_are_not_there_are_refused(study: Path, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workdir / "fake.npz").unlink()
    assert reproduce(study) == 2
    error = capsys.readouterr().err
    assert "variant slow: fake.npz: looked for" in error
    assert len(error.strip().splitlines()) == 1
    assert not (workdir / "mlruns" / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{model: {init_args: {pretrained: gone.pt}}}", "gone.pt: no such file of weights"),
        ("{model: {init_args: {pretrained: package:no-such-weights}}}", "no-such-weights"),
        ("{trainer: {callbacks: [{class_path: medlight.callbacks.Freeze, init_args: {until: {nope: 1}}}]}}", "nope"),
        (
            "{model: {init_args: {optimizer: {class_path: torch.optim.Adam, init_args: {lr: -1.0}}}}}",
            "Invalid learning rate",
        ),
        ("{trainer: {devices: 40}}", "ranks"),
    ],
)
def test_what_the_last_variant_would_be_refused_for_is_said_before_the_first_starts(
    study: Path, workdir: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    fast = folder.FAST["model"]["class_path"]
    (study / "fast.yaml").write_text(text.replace("{model: {", f"{{model: {{class_path: {fast}, "))
    assert reproduce(study) == 2
    error = capsys.readouterr().err
    assert "variant fast: " in error
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not (workdir / "mlruns" / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a study's folder, or --list"),
        (["x", "--markdown", "y.md"], "--markdown goes with --list"),
        (["x", "--seeds", "0"], "--seeds 0: write a whole number"),
        (["x", "--workers", "-1"], "--workers -1: write a whole number"),
        (["x"], "x: no such study folder"),
        (["--list", "x"], "x: no such folder"),
    ],
)
def test_a_wrong_call(workdir: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert main(["reproduce", *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_what_was_cut_goes_on(
    study: Path, workdir: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    (study / "base.yaml").write_text((study / "base.yaml").read_text().replace("max_epochs: 2", "max_epochs: 200"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([*COMMAND, str(study), "--seeds", "1"], env=environment)
    _until_trained(workdir)
    assert reproduce(study) == 2
    assert "another medlight reproduce works on it" in capsys.readouterr().err
    process.send_signal(number)
    assert process.wait(60) != 0
    (cut,) = runs()
    assert reproduce(study, "--seeds", "1") == 0
    found = runs()
    assert cut in found
    assert len(found) == 2
    assert all(run.info.status == "FINISHED" for run in found.values())
    assert float(found[cut].data.tags["medlight.minutes_before"]) > 0
    steps = [point.step for point in store.client().get_metric_history(cut, "val/auroc")]
    assert steps == sorted(set(steps))
    assert len(steps) == 200


def _until_trained(workdir: Path) -> None:
    limit = time.monotonic() + 120
    while time.monotonic() < limit:
        if list(workdir.glob("mlruns/artifacts/*/artifacts/checkpoints/last.ckpt")):
            return
        time.sleep(0.2)
    raise AssertionError("nothing was trained")
