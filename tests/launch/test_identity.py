"""A patient's name in a file's name reaches nothing that a fit leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from medlight.cli.main import main
from tests.launch import study

NAME = "DOE_JOHN_1970"


def test_file_names_reach_no_run_and_no_artifact(workdir: Path) -> None:
    study.write(workdir, study.config(max_epochs=1))
    for folder in ("images", "labels"):
        for number, path in enumerate(sorted((workdir / folder).iterdir())):
            path.rename(path.with_name(f"{NAME}_{number}.nii.gz"))
    (workdir / "images" / f"{NAME}_extra.nii.gz").write_bytes(b"")
    assert main(["fit", "-c", "fit.yaml", "--on-bad-case", "skip"]) == 0
    left = [path for path in (workdir / "mlruns").rglob("*") if path.is_file()]
    assert len(left) > 8
    for path in left:
        assert NAME not in str(path.relative_to(workdir))
        assert NAME.encode() not in path.read_bytes(), path


def test_a_failure_s_reason_names_no_file(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study.write(workdir, study.config(max_epochs=1))
    (workdir / "images" / f"{NAME}.nii.gz").write_bytes(b"not a scan")
    assert main(["fit", "-c", "fit.yaml"]) == 1
    assert NAME in capsys.readouterr().err, "the terminal says which file"
    for path in (workdir / "mlruns").rglob("*"):
        assert not path.is_file() or NAME.encode() not in path.read_bytes(), path
