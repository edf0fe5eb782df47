"""Every study in one list; the page in docs/ is what the command writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medlight.cli.main import main
from medlight.reproduce import expected, listing
from medlight.reproduce.report import files_digest, thinned
from tests.reproduce import folder

ROOT = Path(__file__).parents[2]


def test_the_page_in_docs_is_what_the_command_writes(workdir: Path) -> None:
    page = ROOT / "docs" / "reproductions.md"
    assert listing.page(listing.listed(ROOT / "experiments"), page) == page.read_text(encoding="utf-8")


def test_states(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = folder.write(workdir)
    assert main(["reproduce", "--list", "studies"]) == 0
    assert "fakes\tnot run\t–\t–" in capsys.readouterr().out
    ours = {"per_seed": {"0": 0.9}, "mean": 0.9, "sd": None, "low": None, "high": None, "over": "nothing", "cases": 0}
    verdict = {**folder.EXPECTED["expected"][0], "at_least": False, "verdict": "reproduced"}
    verdict |= {"ours": {**ours, "p": None, "test": ""}, "sides": []}
    results = {"state": "complete", "date": "today", "seeds": 2, "runs": [], "verdicts": [verdict]}
    results["files_digest"] = files_digest(expected.read(study))
    (study / "results.json").write_text(json.dumps(results))
    assert main(["reproduce", "--list", "studies", "--markdown", "page.md", "--json", "list.json"]) == 0
    assert "fakes\tcomplete\t1 reproduced\ttoday" in capsys.readouterr().out
    page = Path("page.md").read_text()
    assert "[fakes](studies/fakes)" in page
    assert "| slow test/auroc | 0.9 ± 0.6 | 0.9000 (1 seed) | – | – | **reproduced** |" in page
    assert json.loads(Path("list.json").read_text())[0]["verdicts"][0]["verdict"] == "reproduced"
    (study / "fast.yaml").write_text("trainer: {max_epochs: 7}\n")
    assert main(["reproduce", "--list", "studies"]) == 0
    assert "complete, its files changed since" in capsys.readouterr().out
    (study / "expected.yaml").write_text("variants: 1\n")
    assert main(["reproduce", "--list", "studies"]) == 0
    told = capsys.readouterr()
    assert "expected.yaml can't be read" in told.out
    assert "variants: expected keys and values" in told.err


def test_a_thinned_curve_keeps_its_ends_and_its_best() -> None:
    curve = [(10 * step, 0.5 + 0.4 * (step == 77)) for step in range(200)]
    kept = thinned(curve)
    assert len(kept) <= 50
    assert kept[0][0] == 0
    assert kept[-1][0] == 1990
    assert [770, 0.9] in kept
    assert thinned(curve[:50]) == [list(point) for point in curve[:50]]


def test_the_page_names_the_command_that_wrote_it(tmp_path: Path) -> None:
    own = "medlight reproduce --list . --markdown own.md"
    assert f"Written by `{own}`." in listing.page([], tmp_path / "own.md", own)
