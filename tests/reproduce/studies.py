"""Fits of seconds, one of each kind of learning: ``NAME(folder)`` writes the data and returns the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.data import fake
from tests.launch import study

Config = dict[str, Any]
NOISE = {"class_path": "torchio.RandomNoise", "init_args": {"std": [0.05, 0.2]}}
BRIGHT = {"class_path": "torchio.RandomGamma", "init_args": {"log_gamma": 0.3}}


def segmentation(folder: Path) -> Config:
    """Patches of two blobs; dropout, augmentation, a test case."""
    fake.folders(folder, cases=6, shape=(20, 20, 20))
    whole = study.config(max_epochs=2)
    whole["data"]["init_args"]["split"]["init_args"] = {"val": 0.34, "test": 0.17}
    return whole


def classification(folder: Path) -> Config:
    """Whole pictures of two classes."""
    fake.medmnist(folder / "pictures.npz", counts=(24, 8, 8), size=16)
    whole = _pictures()
    whole["model"] = {
        "class_path": "medlight.tasks.ClassificationTask",
        "init_args": {
            "network": {
                "class_path": "monai.networks.nets.ResNet",
                "init_args": {"block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [4, 8, 8, 8]},
            }
        },
    }
    whole["data"]["class_path"] = "medlight.data.ScanDataModule"
    return whole


def simclr(folder: Path) -> Config:
    """The same pictures without their classes."""
    whole = classification(folder)
    whole["model"]["class_path"] = "medlight.tasks.SimCLRTask"
    whole["data"]["class_path"] = "medlight.data.PretrainingDataModule"
    whole["data"]["init_args"]["views"] = [[NOISE, BRIGHT], [BRIGHT]]
    return whole


def mean_teacher(folder: Path) -> Config:
    """One labelled scan, the others unlabelled."""
    whole = segmentation(folder)
    whole["model"]["class_path"] = "medlight.tasks.MeanTeacherSegmentation"
    whole["data"]["class_path"] = "medlight.data.FewLabelsDataModule"
    whole["data"]["init_args"] |= {"labelled": 1, "labelled_per_batch": 1, "views": [[NOISE], [BRIGHT]]}
    return whole


def _pictures() -> Config:
    """What the fits of pictures share."""
    data = {
        "source": {"class_path": "medlight.prepare.MedMNIST", "init_args": {"path": "pictures.npz"}},
        "split": {"class_path": "medlight.prepare.GivenSplit"},
        "augment": [{"class_path": "medlight.data.augment.RandomSpatial", "init_args": {"degrees": 15}}],
        "batch_size": 8,
    }
    trainer = {"accelerator": "cpu", "max_epochs": 2, "log_every_n_steps": 1}
    names = {"study": "pictures", "name": "tiny", "seed_everything": 3, "precision": "32-true", "channels_last": False}
    return {**names, "data": {"init_args": data}, "trainer": trainer}
