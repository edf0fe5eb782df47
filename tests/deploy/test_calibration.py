"""Calibration patches, and INT8 of networks trained on them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from medlight import tasks
from medlight.data import Patch, ScanDataModule
from medlight.deploy.calibration import calibration_batches
from medlight.deploy.onnx_export import export_onnx
from medlight.deploy.quantise import quantise
from medlight.deploy.runtime.sliding import fitted
from medlight.errors import UsageError
from medlight.prepare import ImageFolders, RandomSplit, ZScore
from medlight.tasks import SegmentationTask
from tests.deploy.trained import UNET, Trained, classification, fit, segmentation


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return segmentation(tmp_path_factory.mktemp("patches"), patch=[8, 8, 12])


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Normalised in the graph; the patch is larger than the scan along one axis, so there is padding."""
    return segmentation(tmp_path_factory.mktemp("windowed"), window=True, patch=[8, 8, 24])


def drawn(trained: Trained, count: int = 6, seed: int = 0, **changed: Any) -> list[np.ndarray]:
    signature = tasks.load(trained.checkpoint).signature() | changed
    return calibration_batches(trained.data.prepared["train"], signature, count, seed)


def occurs(patch: np.ndarray, image: np.ndarray) -> bool:
    """Whether a patch is a part of an image (I, J, K)."""
    views = np.lib.stride_tricks.sliding_window_view(image, patch.shape)
    return bool(np.isclose(views, patch, atol=1e-5).all(axis=(-1, -2, -3)).any())


def test_patches_are_parts_of_training_scans_with_their_own_mean_and_deviation(trained: Trained) -> None:
    images = [prepared.image()[0] for prepared in trained.data.prepared["train"]]
    scaled = [(image - image.mean()) / image.std() for image in images]
    for batch in drawn(trained):
        assert batch.shape == (1, 1, 8, 8, 12)
        assert batch.dtype == np.float32
        assert any(occurs(batch[0, 0, :, :, :], image) for image in scaled)


def test_the_same_seed_gives_the_same_patches(trained: Trained) -> None:
    assert all(np.array_equal(a, b) for a, b in zip(drawn(trained), drawn(trained), strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(drawn(trained), drawn(trained, seed=1), strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(drawn(trained, 2), drawn(trained, 6), strict=False))


def test_a_graph_that_normalises_gets_the_scanners_values(windowed: Trained) -> None:
    raw, scaled = drawn(windowed), drawn(windowed, normalise_in_graph=False)
    images = [prepared.image()[0] for prepared in windowed.data.prepared["train"]]
    assert min(image.shape[2] for image in images) < 24  # so there is padding
    for one, two in zip(raw, scaled, strict=True):
        assert one.max() > 2
        np.testing.assert_allclose(np.clip(one, 0, 800) / 800, two, atol=1e-6)  # Window(0, 800); padding is 0 in both
        depth = np.flatnonzero(one[0, 0].any(axis=(0, 1)))
        assert any(occurs(one[0, 0][..., depth[0] : depth[-1] + 1], image) for image in images)


def test_whole_images_are_brought_to_the_size_the_predictor_gives_them(tmp_path: Path) -> None:
    trained = classification(tmp_path)
    signature = tasks.load(trained.checkpoint).signature()
    size = [side - 3 for side in signature["window"]["size"]]
    cases = trained.data.prepared["train"]
    for window in (size, [side + 5 for side in size]):
        found = calibration_batches(cases, signature | {"window": {"size": window}}, len(cases))
        images = [case.image() for case in cases]
        expected = [fitted(((i - i.mean()) / i.std())[..., 0], window) for i in images]
        for batch in found:
            assert any(np.allclose(batch[0], other, atol=1e-5) for other in expected)


def test_no_case_is_refused(trained: Trained) -> None:
    with pytest.raises(UsageError, match="no training case"):
        calibration_batches([], tasks.load(trained.checkpoint).signature())


def probabilities(file: Path, batches: list[np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(file)
    return [session.run(None, {"image": batch})[0] for batch in batches]


def few(data_root: Path, root: Path, count: int) -> ScanDataModule:
    """The first hippocampi."""
    for folder in ("images", "labels"):
        (root / folder).mkdir()
        for file in sorted((data_root / "hippocampus" / "labels").glob("*.nii.gz"))[:count]:
            shutil.copy(data_root / "hippocampus" / folder / file.name, root / folder)
    return ScanDataModule(
        ImageFolders(str(root / "images"), str(root / "labels"), {1: "anterior", 2: "posterior"}),
        RandomSplit(val=0.34),
        normalise=ZScore(),
        patch=Patch([16, 16, 16], foreground=0.5),
        store_dir=str(root / "store"),
    )


def test_int8_of_a_network_trained_on_real_scans_says_what_it_said(data_root: Path, tmp_path: Path) -> None:
    """Calibrated on training patches, compared on patches of other cases, that it never saw."""
    options = {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}}}
    data = few(data_root, tmp_path, 6)
    task = tasks.load(fit(SegmentationTask(network=UNET, **options), data, tmp_path, steps=20).checkpoint)
    source, out = tmp_path / "model.onnx", tmp_path / "int8.onnx"
    export_onnx(task.deployable(), 1, [16, 16, 16], source)
    quantise(source, out, calibration_batches(data.prepared["train"], task.signature(), 8))
    unseen = calibration_batches(data.prepared["val"], task.signature(), 8)
    exact, found = np.stack(probabilities(source, unseen)), np.stack(probabilities(out, unseen))
    assert np.abs(found - exact).mean() < 0.01
    assert np.mean(found.argmax(2) == exact.argmax(2)) > 0.98
    assert exact.std() > 0.1  # it says something
