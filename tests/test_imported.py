"""A process knows the code that it runs, whatever is written into the files meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import medlight

PROBE = """
import importlib

def said(report, name):
    module = importlib.import_module(name)
    from medlight.tracking import manifest
    return module.VALUE, manifest.code()[name]
"""
SCRIPT = """
import json
from pathlib import Path
import medlight
from medlight.launch import workers
from medlight.launch.workers import Job

folder = Path(medlight.__file__).parent

def write(value):
    for name in ("early", "late"):
        (folder / "losses" / f"{name}.py").write_text(f"VALUE = {value!r}\\n")

if __name__ == "__main__":
    write("first")
    workers.warm_up(["medlight.losses.early"])
    found = [workers.run(Job("probe.said", {"name": "medlight.losses.early"}))]
    write("second one")
    found += [workers.run(Job("probe.said", {"name": f"medlight.losses.{name}"})) for name in ("early", "late")]
    from medlight.tracking import manifest
    print(json.dumps([*found, manifest._module_digest(folder / "losses" / "early.py")]))
"""


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A folder with a copy of the package, which may be edited."""
    source = Path(medlight.__file__).parent
    shutil.copytree(source, tmp_path / "medlight", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def python(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_job_of_an_old_server_says_what_it_runs(copied: Path) -> None:
    (copied / "probe.py").write_text(PROBE)
    (copied / "script.py").write_text(SCRIPT)
    before, after, late, on_disk = json.loads(python(copied, "script.py"))
    assert before[0] == after[0] == "first", "the server has imported it"
    assert before[1] == after[1] != on_disk, "so that is what its jobs say"
    assert late[0] == "second one", "imported by the job itself"
    assert late[1] == on_disk


def test_nothing_is_imported_for_it(tmp_path: Path) -> None:
    code = "import sys, medlight.imported; print([name for name in ('json', 'ast', 'torch') if name in sys.modules])"
    assert python(tmp_path, "-c", code).strip() == "[]"


def test_what_is_installed_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import email.mime, yaml\n")
    code = "import medlight.errors, own; from medlight import imported; print(*imported._sources)"
    read = {Path(file).name for file in python(tmp_path, "-c", code).split()}
    assert read == {"errors.py", "own.py"}


def test_a_module_that_can_t_be_imported_fails_as_ever(tmp_path: Path) -> None:
    code = "import medlight\ntry:\n    import gone_module.x\nexcept ModuleNotFoundError as e:\n    print(e.name)"
    assert python(tmp_path, "-c", code).strip() == "gone_module"
