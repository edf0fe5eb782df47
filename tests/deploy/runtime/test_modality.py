"""Where a bundle does not know its modality, everything says so: commands, the summary, the server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medlight.cli.main import main
from medlight.deploy.bundle import Bundle
from medlight.deploy.runtime import Predictor
from tests.deploy.runtime.bundles import bundle, written
from tests.deploy.serve.served import curl, http

SAID = "modality not checked: the bundle was trained on scans that tell none (mend: data.modality of the fit)"


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
