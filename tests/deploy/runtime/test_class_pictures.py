"""A picture for each case of a classification: the scan, with the likeliest classes below it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medlight.cli.main import main
from medlight.deploy.bundle import Bundle
from medlight.deploy.registered import RegisteredBundle
from medlight.deploy.runtime import Predictor, files
from medlight.deploy.runtime.files import predict_item
from medlight.deploy.runtime.journal import Item
from medlight.scans import Volume, write_nifti
from tests.data import fake_dicom
from tests.deploy.runtime.bundles import bundle, written

FILM = np.linspace(0, 255, 70 * 80).reshape(70, 80).astype(np.uint8)


def run(*words: str | Path) -> int:
    return main(["predict", *map(str, words), "--threads", "1"])


def test_a_picture_a_case(classifier: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[str]] = []
    panel = files.panel

    def noted(*words, **named):
        told.append(list(words[5]))
        return panel(*words, **named)

    monkeypatch.setattr(files, "panel", noted)
    Image.fromarray(FILM).save(tmp_path / "one.png")
    predictor = Predictor(classifier, threads=1)
    item = Item("one", {"image": tmp_path / "one.png"}, tmp_path / "out" / "one.nii.gz")
    result = predict_item(predictor, item)
    assert result["files"] == ["one.png"]
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["one.png"]
    ranked = sorted(result["probabilities"].items(), key=lambda pair: -pair[1])
    assert told == [[f"{100 * chance:.1f} %  {name}" for name, chance in ranked]]
    shown = np.asarray(Image.open(tmp_path / "out" / "one.png").convert("RGB")).astype(int)
    strip = shown[-48:]
    assert (strip[:24].max(), strip[24:].max()) == (225, 225)  # a line of text for each class
    part = shown[:-48]
    assert np.corrcoef(part.mean(axis=(1, 2)), np.arange(len(part)))[0, 1] > 0.99  # the film itself, upright


def test_of_many_classes_the_likeliest_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"class {number}" for number in range(8)]
    made = written(tmp_path / "bundle", bundle(8, [16, 16, 16], task="classification", outputs=names, classes=names))
    told: list[list[str]] = []
    panel = files.panel
    monkeypatch.setattr(files, "panel", lambda *words: (told.append(list(words[5])), panel(*words))[1])
    values = np.random.default_rng(0).uniform(0, 100, (1, 20, 22, 12)).astype(np.float32)
    write_nifti(Volume(values, np.diag([1, 1, 2, 1])), tmp_path / "one.nii.gz")
    result = predict_item(
        Predictor(made, threads=1), Item("one", {"image": tmp_path / "one.nii.gz"}, tmp_path / "out" / "one.nii.gz")
    )
    (lines,) = told
    ranked = sorted(result["probabilities"], key=result["probabilities"].__getitem__, reverse=True)
    assert [line.split("%  ")[-1] for line in lines] == [*ranked[:5], "and 3 less likely"]
    width, height = Image.open(tmp_path / "out" / "one.png").size
    assert width > 1.5 * height  # three slices beside each other


def test_colours_stay_what_they_are(tmp_path: Path) -> None:
    window = [{"class_path": "medlight.prepare.Window", "init_args": {"low": 0.0, "high": 255.0}}]
    changes = {"spatial_dims": 2, "channels": ["red", "green", "blue"], "normalise": window}
    made = written(tmp_path / "bundle", bundle(2, [32, 32], task="classification", **changes))
    image = np.zeros((40, 40, 3), np.uint8)
    image[:20, :, 0], image[20:, :, 2] = 255, 128
    Image.fromarray(image).save(tmp_path / "one.png")
    predict_item(
        Predictor(made, threads=1), Item("one", {"image": tmp_path / "one.png"}, tmp_path / "out" / "one.nii.gz")
    )
    shown = np.asarray(Image.open(tmp_path / "out" / "one.png"))
    rows = shown.shape[0] - 48
    assert shown[rows // 4, shown.shape[1] // 2].tolist() == [255, 0, 0]
    assert shown[3 * rows // 4, shown.shape[1] // 2].tolist() == [0, 0, 128]


def test_nothing_of_the_patient_is_in_the_picture(classifier: Bundle, tmp_path: Path) -> None:
    film = fake_dicom.instance(FILM.astype(np.uint16) * 16, "DX", PixelSpacing=[0.2, 0.2])
    fake_dicom.save(film, tmp_path / "Doe^Jane.dcm")
    assert run(classifier.root, tmp_path / "Doe^Jane.dcm", tmp_path / "out") == 0
    (case,) = json.loads((tmp_path / "out" / "summary.json").read_text())["cases"]
    assert case["files"] == [f"{case['name']}_sr.json", f"{case['name']}.png"]
    with Image.open(tmp_path / "out" / f"{case['name']}.png") as picture:
        assert picture.info == {}
    content = (tmp_path / "out" / f"{case['name']}.png").read_bytes()
    assert not any(secret.encode() in content for secret in fake_dicom.SECRETS)


def test_a_picture_never_takes_the_place_of_an_input(
    classifier: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    Image.fromarray(FILM).save(folder / "one.png")
    before = (folder / "one.png").read_bytes()
    assert run(classifier.root, folder, folder) == 2
    assert "one.png would be overwritten; mend: give another OUT" in capsys.readouterr().err
    table = pd.DataFrame([{"image": str(folder / "one.png")}])
    found = RegisteredBundle(classifier.root).predict(table, {"output": str(folder)})
    assert "would be overwritten" in found["error"][0]
    assert (folder / "one.png").read_bytes() == before
    shutil.copy(folder / "one.png", folder / "two.png")
    assert run(classifier.root, folder, tmp_path / "out") == 0
    assert {file.name for file in (tmp_path / "out").glob("*.png")} == {"one.png", "two.png"}
