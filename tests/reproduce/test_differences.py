"""Which commits and uncommitted changes can change a result."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from medlight.reproduce import differences
from medlight.tracking import manifest


def git(*arguments: str) -> None:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a run in a repository would record, with an uncommitted change of code."""
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    Path("net.py").write_text("a = 1\n")
    Path("fit.yaml").write_text("a: 1\n")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    Path("net.py").write_text("a = 2\n")
    environment = {"git": manifest.git_state(), "code_digest": manifest.code_digest()}
    return {"environment": environment, "code": manifest.code(), "diff": manifest.uncommitted_diff()}


def test_the_user_s_own_modules_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Path("own_loss.py").write_text("class Half:\n    factor = 0.5\n")
    monkeypatch.setitem(sys.modules, "own_loss", sys)  # so that it is taken away in the end
    del sys.modules["own_loss"]
    config = {"model": {"loss": {"class_path": "own_loss.Half"}}}
    importlib.import_module("own_loss")
    recorded = {"environment": {"git": manifest.git_state()}, "code": manifest.code(config)}

    def said() -> list[tuple[str, str, bool]]:
        return [(one.what, one.note, one.matters) for one in differences.of_code(recorded, "", config)]

    assert said() == []
    Path("own_loss.py").write_text("class Half:\n    factor = 50.0\n")
    assert said() == [("own code", "own_loss", True)]
    Path("own_loss.py").write_text("class Half:\n    factor = 0.5\n")
    recorded["code"]["own_loss"] = "another"
    assert said() == [("own code", "own_loss", True)]


def found(recorded: dict[str, Any]) -> dict[str, bool]:
    return {one.what: one.matters for one in differences.of_code(recorded, recorded["diff"])}


def test_nothing_differs(recorded: dict[str, Any]) -> None:
    assert found(recorded) == {}


def test_committing_what_the_run_had_uncommitted_changes_no_code(recorded: dict[str, Any]) -> None:
    git("commit", "-q", "-am", "second")
    assert found(recorded) == {"commit": False, "uncommitted changes": False}


def test_other_files_are_no_code(recorded: dict[str, Any]) -> None:
    Path("fit.yaml").write_text("a: 2\n")
    Path("README.md").write_text("words")
    git("add", "fit.yaml", "README.md")
    git("commit", "-q", "-m", "words")
    assert found(recorded) == {"commit": False}


def test_another_line_of_code_matters(recorded: dict[str, Any]) -> None:
    Path("net.py").write_text("a = 3\n")
    assert found(recorded) == {"uncommitted changes": True}
    git("commit", "-q", "-am", "third")
    assert found(recorded)["commit"]


def test_an_unknown_commit_matters(recorded: dict[str, Any]) -> None:
    recorded["environment"]["git"]["commit"] = "0" * 40
    assert found(recorded) == {"commit": True}
