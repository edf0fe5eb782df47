"""What a user gets wrong in a configuration is refused before anything starts, in one line, with the nearest name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from medlight.config import set_path
from medlight.errors import UsageError
from medlight.launch.resolve import parse, read, resolve

GOOD: dict[str, Any] = {
    "study": "s",
    "model": {
        "class_path": "medlight.tasks.SegmentationTask",
        "init_args": {
            "network": {"class_path": "monai.networks.nets.UNet", "init_args": {"channels": [8, 16], "strides": [2]}}
        },
    },
    "data": {
        "class_path": "medlight.data.ScanDataModule",
        "init_args": {
            "source": {
                "class_path": "medlight.prepare.ImageFolders",
                "init_args": {"images": "images", "labels": "labels"},
            },
            "split": {"class_path": "medlight.prepare.RandomSplit"},
            "patch": {"class_path": "medlight.data.Patch", "init_args": {"size": [16, 16, 16]}},
        },
    },
    "trainer": {"max_epochs": 2},
}


def test_a_good_configuration_gets_its_defaults() -> None:
    whole = resolve(GOOD)
    assert whole["precision"] == "auto"
    assert whole["seed_everything"] == 0
    assert whole["trainer"]["accumulate_grad_batches"] == 1
    assert whole["data"]["init_args"]["batch_size"] == 2
    assert whole["data"]["init_args"]["seed"] == 0, "the data draws from the run's seed"
    assert whole["model"]["init_args"]["network"] == GOOD["model"]["init_args"]["network"]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("modle", {}, "modle: .*did you mean 'model'"),
        ("trainer.max_epoch", 3, "trainer.max_epoch: .*did you mean 'max_epochs'"),
        ("trainer.max_epochs", "many", "trainer.max_epochs"),
        ("trainer.precision", "16-mixed", "trainer.precision: .*top of the file"),
        ("precision", "fp16", "precision: .*32-true"),
        ("data.batchsize", 3, r"data.init_args.batchsize: .*did you mean 'batch_size'"),
        ("data.patch.sise", [4], r"data.init_args.patch.init_args.sise: .*did you mean 'size'"),
        ("data.batch_size", "two", "batch_size"),
        ("model.network.chanels", [4], r"network.init_args.chanels: .*did you mean 'channels'"),
        ("model.network.class_path", "monai.networks.nets.SegResNett", "did you mean 'SegResNet'"),
        ("model.class_path", "medlight.tasks.SegmentatonTask", "did you mean 'SegmentationTask'"),
        ("model.optimizer", {"class_path": "torch.optim.AdamWW"}, "did you mean 'AdamW'"),
    ],
)
def test_a_wrong_key_is_named_with_the_nearest(path: str, value: object, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        resolve(set_path(GOOD, path, value))
    assert "\n" not in str(caught.value)


NOISE = {"class_path": "torchio.RandomNoise", "init_args": {"p": 3}}
RELU = {"class_path": "torch.nn.ReLU"}
SPATIAL = {"class_path": "medlight.data.augment.RandomSpatial", "init_args": {"degrees": "wide"}}


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("data.batch_size", "two", "data.batch_size: 'two' is no int"),
        ("data.batch_size", 2.5, "data.batch_size: 2.5 is no int"),
        ("data.batch_size", None, "data.batch_size: null is no int"),
        ("data.on_bad_case", "skipp", "data.on_bad_case: 'skipp' is none of error, skip (did you mean 'skip'?)"),
        ("data.patch.size", 16, "data.patch.size: 16 is no list of int"),
        ("data.patch", {"class_path": "medlight.data.Patch"}, "data.patch.size: missing; medlight.data.Patch needs it"),
        ("data.augment", [SPATIAL], "data.augment.0.degrees: 'wide' is no float"),
        ("data.source.labels", 3, "data.source.labels: 3 is no text; put it in quotes: '3'"),
        ("data.split", {"class_path": "torch.nn.ReLU"}, "data.split: torch.nn.ReLU is no Splitter"),
        ("trainer.max_epochs", "two", "trainer.max_epochs: 'two' is no int"),
        ("trainer.max_epochs", 0, "trainer.max_epochs: 0 trains nothing"),
        ("seed_everything", "x", "seed_everything: 'x' is no int"),
        ("seed_everything", -4, "seed_everything: -4 is no seed"),
        ("study", 3, "study: 3 is no text; put it in quotes: '3'"),
        ("data.batch_size", -2, "data.batch_size: -2 is too small"),
        ("data.steps_per_epoch", -1, "data.steps_per_epoch: -1 is too small"),
        ("data.patch.size", [16, -16, 16], "data.patch.size: [16, -16, 16] is no patch size"),
        ("data.patch.foreground", 3.3, "data.patch.foreground: 3.3 is no share"),
        ("data.split.val", 1.5, "data.split: val 1.5 and test 0.0 must be shares"),
        ("data.preparation", {"spacing": [-1, 1, 1]}, "data.preparation.spacing: [-1.0, 1.0, 1.0] must be"),
        ("data.augment", [RELU], "data.augment.0: torch.nn.ReLU is no Transform"),
        ("data.augment", [{"class_path": "torchio.RandomNoise"}, RELU], "data.augment.1: torch.nn.ReLU is no Tr"),
        ("data.augment", ["noise"], "data.augment.0: 'noise' is no Transform"),
        ("data.augment", [NOISE], "data.augment.0: RandomNoise: Probability must be"),
        ("model.overlap", 3, "model.overlap: 3.0 is no share"),
        (
            "model.scheduler",
            {"class_path": "torch.optim.lr_scheduler.StepLR", "interval": "steps"},
            "model.init_args.scheduler.interval: 'steps' is neither",
        ),
    ],
)
def test_a_bad_value_is_named_with_its_path(path: str, value: object, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(set_path(GOOD, path, value)).build()
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 160


def test_reading_a_configuration_leaves_it_as_it_was() -> None:
    before = copy.deepcopy(GOOD)
    parse(GOOD).build()
    assert before == GOOD


@pytest.mark.parametrize("key", ["model", "data"])
def test_a_missing_section_is_named(key: str) -> None:
    with pytest.raises(UsageError, match=f"{key}: missing"):
        resolve({k: v for k, v in GOOD.items() if k != key})


def test_files_and_overrides_are_laid_over_one_another(tmp_path: Path) -> None:
    base, over = tmp_path / "base.yaml", tmp_path / "over.yaml"
    base.write_text("study: a\nmodel: {class_path: x.Y, init_args: {network: {class_path: p.Q, init_args: {n: 1}}}}\n")
    over.write_text("name: second\n")
    config = read([str(base), str(over)], [("model.network.n", 5)])
    assert config["study"] == "a"
    assert config["name"] == "second"
    assert config["model"]["init_args"]["network"]["init_args"]["n"] == 5


def test_an_override_of_an_unknown_section_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "fit.yaml"
    file.write_text("study: a\n")
    with pytest.raises(UsageError, match="did you mean 'trainer'"):
        read([str(file)], [("trainr.max_epochs", 3)])
