"""Where a bundle does not know its modality, everything says so: commands, the summary, the server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medlight.cli.main import main
from medlight.deploy.bundle import Bundle
from medlight.deploy.runtime import Predictor
from medlight.scans import Volume, read, write_nifti
from tests.deploy.runtime.bundles import bundle, written
from tests.deploy.serve.served import curl, http

SAID = "modality not checked: the bundle was trained on scans that tell none (fit --data.modality=MR names it)"


@pytest.fixture
def from_nifti(tmp_path: Path) -> Bundle:
    return written(tmp_path / "bundle", bundle(3, [16, 16, 8]))


@pytest.mark.parametrize("known", [True, False])
def test_predict_says_it_and_the_summary_keeps_it(
    ct_bundle: Bundle,
    from_nifti: Bundle,
    series: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    known: bool,
) -> None:
    root = (ct_bundle if known else from_nifti).root
    assert main(["predict", str(root), str(series), str(tmp_path / "out"), "--threads", "1"]) == 0
    assert (SAID in capsys.readouterr().err) is not known
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["modality_checked"] is known


@pytest.mark.parametrize("known", [True, False])
def test_the_server_tells_it(ct_bundle: Bundle, from_nifti: Bundle, known: bool) -> None:
    with http(Predictor(ct_bundle if known else from_nifti, threads=1)) as (url, _):
        assert curl(f"{url}/info").json["modality_checked"] is known


def test_so_does_a_watched_folder(
    from_nifti: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("medlight.deploy.runtime.watch.Drop.items", lambda self: iter(()))  # nothing comes
    (tmp_path / "in").mkdir()
    words = ["predict", str(from_nifti.root), str(tmp_path / "in"), str(tmp_path / "out"), "--watch", "--threads", "1"]
    assert main(words) == 0
    assert SAID in capsys.readouterr().err


def test_a_scan_that_tells_none_is_not_said_to_be_checked(
    ct_bundle: Bundle, series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (tmp_path / "in").mkdir()
    scan = read(series)
    write_nifti(Volume(scan.array, scan.affine), tmp_path / "in" / "a.nii.gz")
    assert main(["predict", str(ct_bundle.root), str(tmp_path / "in"), str(out), "--threads", "1"]) == 0
    assert "modality not checked: 1 of 1 scans tell none\n" in capsys.readouterr().err
    told = json.loads((out / "summary.json").read_text())
    assert told["modality_checked"] is False
    assert told["cases"][0]["modality_checked"] is False


def test_an_unknown_model_leaves_no_folder(ct_bundle: Bundle, series: Path, tmp_path: Path) -> None:
    words = ["predict", str(ct_bundle.root), str(series), str(tmp_path / "out"), "--runtime", "abacus"]
    assert main(words) == 2
    assert not (tmp_path / "out").exists()
