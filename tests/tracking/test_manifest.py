"""What a run says of its code, machine, configuration and data."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from medlight.prepare.case import BadCase
from medlight.tracking import manifest


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "net.py").write_text("a = 1\n")
    (tmp_path / "patients.csv").write_text("name\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_git_state_and_diff(repository: Path) -> None:
    state = manifest.git_state(repository)
    assert state is not None
    assert len(state["commit"]) == 40
    assert not state["dirty"]
    assert manifest.uncommitted_diff(repository) == ""
    (repository / "net.py").write_text("a = 2\n")
    (repository / "patients.csv").write_text("name\nDOE^JANE\n")
    state = manifest.git_state(repository)
    assert state is not None
    assert state["dirty"]
    diff = manifest.uncommitted_diff(repository)
    assert "+a = 2" in diff
    assert "DOE" not in diff  # tables are data, not code


def test_diff_is_capped(repository: Path) -> None:
    (repository / "net.py").write_text("a = 3  # long\n" * 200_000)
    assert len(manifest.uncommitted_diff(repository)) < 1_000_100


def test_no_repository(tmp_path: Path) -> None:
    assert manifest.git_state(tmp_path) is None
    assert manifest.uncommitted_diff(tmp_path) == ""


def test_environment_is_plain_and_whole() -> None:
    found = json.loads(json.dumps(manifest.environment()))
    assert found["packages"]["torch"].startswith("2.")
    assert found["hardware"]["logical_cores"] >= 1
    assert found["threads"]["torch"] >= 1
    assert len(found["code_digest"]) == 64


def test_code_digest_is_of_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "medlight"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(manifest.medlight, "__file__", str(package / "__init__.py"))

    def digest() -> str:
        manifest.code_digest.cache_clear()
        return manifest.code_digest()

    first = digest()
    (package / "README.md").write_text("words")
    assert digest() == first
    (package / "a.py").write_text("a = 1")
    second = digest()
    assert second != first
    (package / "a.py").rename(package / "b.py")
    assert digest() != second
    manifest.code_digest.cache_clear()


def test_config_digest_ignores_order_only() -> None:
    assert manifest.config_digest({"a": 1, "b": {"c": 2, "d": 3}}) == manifest.config_digest(
        {"b": {"d": 3, "c": 2}, "a": 1}
    )
    assert manifest.config_digest({"a": 1}) != manifest.config_digest({"a": 2})


def test_fingerprint_names_no_files() -> None:
    split = SimpleNamespace(to_dict=lambda: {"train": ("a",), "val": ("b",), "test": ()})
    bad = [BadCase("c", "/data/DOE^JANE/c.nii.gz: the file is empty; copy it again")]
    data = SimpleNamespace(split=split, digests={"b": "2", "a": "1"}, bad=bad)
    found = manifest.data_fingerprint(data)
    assert found["cases"] == {"a": "1", "b": "2"}
    assert found["split"] == {"train": ["a"], "val": ["b"], "test": []}
    assert found["left_out"] == ["unreadable"]
    assert "DOE" not in json.dumps(found)
    data.digests = {"b": "2", "a": "changed"}
    assert manifest.data_fingerprint(data)["digest"] != found["digest"]
    assert manifest.data_fingerprint(None)["cases"] == {}


def _digest_of(text: str, folder: Path) -> str:
    file = folder / f"{len(list(folder.iterdir()))}.py"
    file.write_text(text)
    return manifest._module_digest(file)


def test_comments_docstrings_and_lines_are_no_code(tmp_path: Path) -> None:
    first = _digest_of('"""Doc."""\ndef f(x):\n    """Says."""\n    return x in {"a", "b", "c"}\n', tmp_path)
    assert (
        _digest_of(
            '"""Other words."""\n\n# why\ndef f(x):\n    """Is it?"""\n    # here\n    return x in {"a", "b", "c"}\n',
            tmp_path,
        )
        == first
    )
    assert _digest_of('def f(x):\n    return x in {"a", "b", "d"}\n', tmp_path) != first


def test_the_code_of_a_process_is_the_same_in_another_and_names_what_changed() -> None:
    here = "import medlight.tasks.segmentation, medlight.cli.fit; from medlight.tracking import manifest as m"
    said = [
        subprocess.run(
            [sys.executable, "-c", f"import json; {here}; print(json.dumps(m.code()))"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    recorded = json.loads(said[0])
    assert said[0] == said[1]
    assert "medlight.tasks.base" in recorded
    assert "medlight.tasks.classification" not in recorded
    assert not any(name.startswith(("medlight.cli", "medlight.tracking")) for name in recorded)
    assert manifest.changed_code(recorded) == []
    changed = {**recorded, "medlight.tasks.base": "0", "medlight.tasks.gone": "1"}
    assert manifest.changed_code(changed) == ["medlight.tasks.base", "medlight.tasks.gone"]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a user's modules, some imported."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    package = tmp_path / "own_net"
    package.mkdir()
    (package / "__init__.py").write_text("from .loss import Half\n")
    (package / "loss.py").write_text("from own_maths import FACTOR\n\n\nclass Half:\n    factor = FACTOR\n")
    (package / "unused.py").write_text("import yaml\n")
    (tmp_path / "own_maths.py").write_text("FACTOR = 0.5\n")
    (tmp_path / "own_tool.py").write_text("")
    for name in ("own_net.unused", "own_net", "own_tool"):
        importlib.import_module(name)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


CLASSES = {"model": {"loss": {"class_path": "own_net.Half"}, "optimizer": {"class_path": "torch.optim.Adam"}}}


def test_the_user_s_own_classes_are_code_and_what_they_import(own: Path) -> None:
    recorded = manifest.code(CLASSES)
    assert {name for name in recorded if not name.startswith("medlight.")} == {"own_net", "own_net.loss", "own_maths"}
    assert not {name for name in manifest.code() if not name.startswith("medlight.")}
    named = manifest.class_paths(CLASSES)
    assert named == ("own_net.Half", "torch.optim.Adam")
    assert manifest.changed_code(recorded, named) == []
    (own / "own_tool.py").write_text("a = 1\n")
    (own / "own_net" / "loss.py").write_text(
        "# why\nfrom own_maths import FACTOR\n\n\nclass Half:\n    factor = FACTOR\n"
    )
    assert manifest.changed_code(recorded, named) == []
    (own / "own_maths.py").write_text("FACTOR = 50.0\n")
    assert manifest.changed_code(recorded, named) == ["own_maths"]
    assert manifest.code(CLASSES) == recorded, "what this process runs is as it was"
    (own / "own_maths.py").unlink()
    assert manifest.changed_code(recorded, named) == ["own_maths"]


def test_a_run_that_recorded_nothing_of_the_user_s_own_code_does_not_count(own: Path) -> None:
    only_ours = {name: digest for name, digest in manifest.code(CLASSES).items() if name.startswith("medlight.")}
    assert manifest.changed_code(only_ours, manifest.class_paths(CLASSES)) == ["own_net"]
    assert manifest.changed_code(only_ours, ("torch.optim.Adam", "medlight.tasks.Gone", "gone.Class", "Adam")) == []


def test_what_a_process_runs_otherwise_than_recorded_is_named(own: Path) -> None:
    recorded = {**manifest.code(CLASSES), "own_maths": "another"}
    assert manifest.running_otherwise(recorded, CLASSES) == ["own_maths"]
    assert manifest.running_otherwise({}, CLASSES) == []
