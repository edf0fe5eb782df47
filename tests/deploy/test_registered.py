"""A table of scans through a registered bundle, without MLflow: a row that can't be predicted stops no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from medlight.deploy import registered
from medlight.deploy.registered import RegisteredBundle
from medlight.deploy.runtime.files import predict_item
from medlight.deploy.runtime.journal import Item
from medlight.errors import MedlightError
from medlight.scans import write_nifti
from tests.data import fake
from tests.deploy.runtime.bundles import bundle, written


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (MedlightError("gap: 1 slice is missing"), "gap: 1 slice is missing"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (MemoryError(), "needs more memory than there is"),
        (
            ValueError("Doe^Jane is no\nnumber"),
            r"^ValueError at .*test_registered\.py:\d+, which is a fault of the program$",
        ),
    ],
)
def test_a_bad_row_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception, said: str) -> None:
    made = written(tmp_path / "bundle", bundle(3, [8, 8, 8]))
    write_nifti(fake.volume((12, 12, 12), seed=3)[0], tmp_path / "scan.nii.gz")

    def failing(predictor: Any, item: Item, **options: Any) -> Any:
        if item.name == "bad":
            raise fault
        return predict_item(predictor, item, **options)

    monkeypatch.setattr(registered, "predict_item", failing)
    rows = [{"id": name, "image": str(tmp_path / "scan.nii.gz")} for name in ("bad", "good")]
    found = RegisteredBundle(made.root).predict(pd.DataFrame(rows), {"output": str(tmp_path / "out")})
    bad, good = found.to_dict("records")
    assert bad["id"] == "bad"
    assert re.search(said, bad["error"]), bad["error"]
    assert "Doe" not in bad["error"]
    assert good["error"] == ""
    assert Path(good["label_map"]).is_file()


def test_a_fault_on_the_way_to_a_scan_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = written(tmp_path / "bundle", bundle(3, [8, 8, 8]))
    write_nifti(fake.volume((12, 12, 12), seed=3)[0], tmp_path / "scan.nii.gz")
    (tmp_path / "Doe^Jane").mkdir()

    def failing(scan: Path) -> str:
        raise RuntimeError(f"{scan} can't be told")

    monkeypatch.setattr(registered, "content_of", failing)  # which names a folder of DICOM
    rows = [{"image": str(tmp_path / "Doe^Jane")}, {"image": str(tmp_path / "scan.nii.gz")}]
    found = RegisteredBundle(made.root).predict(pd.DataFrame(rows), {"output": str(tmp_path / "out")})
    assert re.match(r"RuntimeError at .*test_registered\.py:", found["error"][0])
    assert "Doe" not in found["error"][0]
    assert found["error"][1] == ""
