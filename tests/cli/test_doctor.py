"""``medlight doctor``: true on this machine, and on broken ones."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from medlight.cli import doctor, machine, probe
from tests.compare.recorded import Recorder

BROKEN = {
    "torchvision": "raise RuntimeError('operator torchvision::nms does not exist')",
    "monai": "raise ImportError('libsomething.so.1: cannot open shared object file\\nsecond line')",
    "optuna": "import os; os._exit(139)",
}


def call(workdir: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run the command in a folder; returns exit code, what it printed and its errors."""
    done = subprocess.run(
        [sys.executable, "-m", "medlight", "doctor", *arguments],
        cwd=workdir,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def broken_packages(folder: Path, names: list[str]) -> str:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(BROKEN[name] + "\n")
        info = folder / f"{name}-0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    return str(folder)


@pytest.fixture
def patient(monkeypatch):
    """Enough time for every import: the tests' machine may be busy."""
    monkeypatch.setattr(doctor, "_PATIENCE", 120.0)


def test_here_a_fit_can_run_and_it_is_told_in_ten_seconds(workdir):
    start = time.monotonic()
    code, said, errors = call(workdir)
    assert time.monotonic() - start < (10 if os.getloadavg()[0] < 3 else 40)  # a machine busy with other work is slow
    assert code == 0, said + errors
    assert "A fit can run here" in said
    assert "Traceback" not in said + errors
    for name in ("processor", "memory", "disk", "MEDLIGHT_DATA", "tracking", "git", "torch", "onnxruntime"):
        assert f"{name} " in said
    assert list(workdir.iterdir()) == []


def test_what_is_found_here_is_true(workdir, patient, data_root, monkeypatch):
    monkeypatch.setenv("MEDLIGHT_DATA", str(data_root))
    Recorder(workdir).run("a-run")
    facts = doctor.examine()
    assert facts["can_fit"], facts["problems"]
    assert {facts["packages"][name]["state"] for name in machine.NEEDED} == {"ok"}
    import torch

    assert facts["packages"]["torch"]["version"] == torch.__version__
    assert len(facts["gpus"]) == torch.cuda.device_count()
    assert facts["providers"].get("CPUExecutionProvider", True) is True
    assert facts["tracking"]["state"] == "answers, 1 runs"
    assert "hippocampus" in facts["data"]["folders"]
    assert facts["threads_allowed"] == len(os.sched_getaffinity(0))
    text = "\n".join(doctor.report(facts))
    assert "runs on CPU" in text
    assert "!!" not in text


def test_broken_packages_are_lines_and_not_tracebacks(workdir, patient, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", broken_packages(tmp_path / "packages", list(BROKEN)))
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    facts = doctor.examine()
    lines = doctor.report(facts)
    assert not facts["can_fit"]
    assert (
        "!! monai does not import (ImportError: libsomething.so.1: cannot open shared object file second line)" in lines
    )
    assert "!! optuna does not import (the import ends Python (exit code 139))" in lines
    assert any(line.startswith("!  torchvision 0.1 does not fit this torch") for line in lines)
    assert any("mend: pip uninstall torchvision" in line for line in lines)
    assert facts["packages"]["torch"]["state"] == "ok"
    assert any("lightning does not import (RuntimeError: operator torchvision::nms" in line for line in lines)
    assert lines[-1] == "A fit can't run here yet: see !! above."


def test_both_kinds_of_onnxruntime_are_warned_of(workdir, patient, monkeypatch, tmp_path):
    facts = doctor.examine()
    said = "onnxruntime and onnxruntime-gpu overwrite each other; mend: pip uninstall both"
    assert not any("overwrite" in line for line in doctor.report(facts))
    for name in ("onnxruntime", "onnxruntime_gpu"):
        info = tmp_path / "packages" / f"{name}-1.32.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.32.0\n")
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    facts["warnings"] = doctor._warnings(facts)
    assert any(line.startswith(f"!  {said}") for line in doctor.report(facts))
    assert facts["can_fit"]


def test_uv_refuses_both_kinds_of_onnxruntime():
    """Whichever extras bring them."""
    written = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    extras = written["project"]["optional-dependencies"]

    def packages(extra):
        for line in extras[extra]:
            if found := re.fullmatch(r"medlight\[(.*)\]", line):
                yield from (name for other in found[1].split(",") for name in packages(other))
            else:
                yield re.split(r"[^\w-]", line)[0]

    having = {kind: [e for e in extras if kind in packages(e)] for kind in ("onnxruntime", "onnxruntime-gpu")}
    assert having == {"onnxruntime": ["onnx", "dev"], "onnxruntime-gpu": ["gpu"]}
    refused = [{entry["extra"] for entry in pair} for pair in written["tool"]["uv"]["conflicts"]]
    for cpu, gpu in itertools.product(*having.values()):
        assert {cpu, gpu} in refused


def test_the_warning_of_both_takes_no_torch():
    code = "import sys; from medlight.cli.machine import say_clash; say_clash(); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_imports_that_never_end_are_not_waited_for(workdir, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_PATIENCE", 2.0)
    monkeypatch.setitem(BROKEN, "monai", "import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", broken_packages(tmp_path / "packages", ["monai"]))
    start = time.monotonic()
    facts = doctor.examine()
    assert time.monotonic() - start < 20
    assert facts["packages"]["monai"]["state"] == doctor._LATE
    assert any("monai" in warning and "busy" in warning for warning in facts["warnings"])


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("http://127.0.0.1:9", "tracking store http://127.0.0.1:9: URLError"),
        ("file:///tmp/x", "no runs in plain folders"),
    ],
)
def test_a_tracking_store_that_does_not_answer_is_a_problem(workdir, patient, monkeypatch, uri, said):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    facts = doctor.examine()
    assert not facts["can_fit"]
    assert any(said in problem for problem in facts["problems"])


def test_json(workdir):
    code, said, _ = call(workdir, "--json", "-", MEDLIGHT_DATA=str(workdir / "nowhere"))
    facts = json.loads(said)
    assert code == 0
    assert facts["data"] == {"set": True, "path": str(workdir / "nowhere"), "exists": False, "folders": []}
    assert any("nowhere: no such folder" in warning for warning in facts["warnings"])
    call(workdir, "--json", "found.json")
    assert json.loads((workdir / "found.json").read_text())["can_fit"] is True


def test_extras_that_are_missing_are_named(monkeypatch):
    required = [
        "torch>=2",
        "onnx>=1 ; extra == 'onnx'",
        "onnxruntime>=1 ; extra == 'onnx'",
        "medlight[onnx] ; extra == 'dev'",
    ]
    required += ["onnxruntime-gpu>=1 ; extra == 'gpu'", 'openvino>=2025.4; extra == "openvino"']
    monkeypatch.setattr(machine.importlib.metadata, "requires", lambda name: required)
    monkeypatch.setattr(machine, "version", {"onnx": "1"}.get)
    assert machine.extras(gpu=False) == {"onnx": ["onnxruntime"], "openvino": ["openvino"]}
    assert machine.extras(gpu=True)["gpu"] == ["onnxruntime-gpu"]
    monkeypatch.setattr(machine, "version", {"onnx": "1", "onnxruntime-gpu": "1"}.get)
    assert machine.extras(gpu=True) == {"openvino": ["openvino"]}


def test_the_probe_of_an_absent_package():
    assert probe._imported("no_such_package_at_all") == {"state": "absent"}
