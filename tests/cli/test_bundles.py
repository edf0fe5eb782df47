"""What names a bundle and its runtime: one check for every command, and for machines that only predict."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medlight.cli.main import main
from medlight.deploy.bundle import Bundle, sha256
from medlight.scans import Volume, write_nifti
from tests.deploy.serve.served import tiny

# As after `pip install --no-deps medlight`: what a bundle's requirements.txt does not have.
ABSENT = ("torch", "lightning", "monai", "torchio", "mlflow", "optuna", "filelock", "jsonargparse", "tensorrt")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """One with a model for each runtime; the files are the same, as none of them is opened."""
    made = Bundle.load(tiny(tmp_path / "bundle"))
    (made.root / "model.pt2").write_bytes(b"a program")
    digest = sha256(made.root / "model.pt2")
    others = [
        dataclasses.replace(made.models[0], runtime=runtime, file="model.pt2", sha256=digest)
        for runtime in ("torch", "tensorrt")
    ]
    dataclasses.replace(made, models=[*made.models, *others]).save()
    return made.root


def without(packages: tuple[str, ...], *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command as where some packages are not installed."""
    code = "import sys; sys.modules |= dict.fromkeys(sys.argv[1].split(','))\n"
    code += "from medlight.cli.main import main; sys.exit(main(sys.argv[2:]))"
    command = [sys.executable, "-c", code, ",".join(packages), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("runtime", ["torch", "tensorrt", "tensorrt-fp32"])
@pytest.mark.parametrize("command", ["predict", "serve"])
def test_a_runtime_that_is_not_installed(bundle: Path, tmp_path: Path, command: str, runtime: str) -> None:
    words = ["scan.nii.gz", tmp_path / "out"] if command == "predict" else ["--http", "0"]
    done = without(ABSENT, command, bundle, *words, "--runtime", runtime)
    assert done.returncode == 2, done.stderr
    assert "torch is not installed; mend: pip install torch, or take another --runtime" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_tensorrt_beside_torch(bundle: Path, tmp_path: Path) -> None:
    words = ["predict", bundle, "scan.nii.gz", tmp_path / "out", "--runtime", "tensorrt"]
    done = without(("tensorrt", "tensorrt_rtx"), *words)
    assert done.returncode == 2
    assert "TensorRT is not installed; mend: pip install 'medlight[tensorrt]' or" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("missing", [ABSENT, ("mlflow",), ("filelock",)])
@pytest.mark.parametrize("command", ["predict", "serve"])
def test_a_mistyped_folder_where_runs_can_not_be_looked_up(
    bundle: Path, command: str, missing: tuple[str, ...]
) -> None:
    words = ["scan.nii.gz", "out"] if command == "predict" else ["--http", "0"]
    done = without(missing, command, bundle.with_name("bundel"), *words)
    assert done.returncode == 2, done.stderr
    assert f"{bundle.with_name('bundel')}: no such bundle folder, and runs can't be looked up, for" in done.stderr
    assert "is not installed; mend: name a folder that export wrote, or pip install medlight" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [(), ("--runtime", "onnxruntime")])
def test_the_rest_works_there(bundle: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 900, (1, 20, 22, 12)).astype(np.int16)
    write_nifti(Volume(array, np.diag([1.0, 1.0, 2.5, 1.0])), tmp_path / "scan.nii.gz")
    done = without(ABSENT, "predict", bundle, tmp_path / "scan.nii.gz", tmp_path / "out", "--threads", "1", *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "scan.nii.gz").is_file()


def test_both_commands_know_the_same_models(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spool = tmp_path / "spool"
    node = ["--dicom", "0", "--send-to", "PACS@127.0.0.1:104", "--spool", str(spool)]
    words = {"predict": ["scan.nii.gz", str(tmp_path / "out")], "serve": node}
    for command, more in words.items():
        assert main([command, str(bundle), *more, "--runtime", "abacus"]) == 2
        assert "no model 'abacus' (there: onnxruntime-fp32, " in capsys.readouterr().err
    assert not spool.exists()
    for name in ("onnxruntime-tensorrt", "onnxruntime-tensorrt-fp32"):
        assert main(["predict", str(bundle), "absent.nii.gz", str(tmp_path / "out"), "--runtime", name]) == 2
        assert "absent.nii.gz: no such file or folder" in capsys.readouterr().err  # the model is one


def test_a_bundle_that_cannot_be_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "b" * 300  # longer than a file's name may be
    assert main(["predict", name, "scan.nii.gz", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        f"medlight predict: {name}: can't be read (File name too long); mend: make it readable, or name another\n"
    )
