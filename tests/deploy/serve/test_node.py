"""Which bundles can be a DICOM node: those that predict a series that comes by itself, and say it in a DICOM-SEG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medlight.cli.main import main
from medlight.deploy.serve.dicom import check_node
from tests.deploy.runtime.bundles import bundle
from tests.deploy.serve.served import tiny

WINDOW = {"class_path": "medlight.prepare.Window", "init_args": {"low": 0.0, "high": 800.0}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "classification"}, "--dicom: sends DICOM-SEGs, and this bundle is for classification; use --http"),
        (
            {"channels": ["T1", "T2"], "normalise": [WINDOW, WINDOW]},
            "--dicom: predicts each series by itself, and this bundle takes several together (T1, T2); use --http, or "
            "predict with a manifest",
        ),
        (
            {"preparation": {"frames": "clip"}},
            "--dicom: sends DICOM-SEGs, and this bundle has a label map for each frame of a clip (frames: clip); use "
            "--http",
        ),
    ],
)
def test_bundles_that_can_never_serve_are_refused_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    found = tiny(tmp_path / "bundle", **changes)
    words = ["--threads", "1", "--dicom", "0", "--send-to", "PACS@127.0.0.1:104", "--spool", str(tmp_path / "spool")]
    assert main(["serve", str(found), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "spool").exists()


@pytest.mark.parametrize("channels", [["image"], ["T1"], ["image:red", "image:green", "image:blue"]])
def test_the_channels_of_one_series_are_no_contrasts(channels: list[str]) -> None:
    check_node(bundle(3, channels=channels))
