"""What the ways of learning without labels share: features, a probe, neighbours, signs of collapse."""

from __future__ import annotations

from itertools import islice
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, distributed, nn

from medlight import networks
from medlight.errors import UsageError
from medlight.losses.gather import world
from medlight.tasks.base import Batch, Kind, Signature, Spec, Task
from medlight.tasks.probe import OnlineProbe
from medlight.tasks.representation import UNKNOWN, accuracy, effective_rank, feature_std, knn_accuracy
from medlight.tasks.rows import Row
from medlight.tasks.truth import class_count, class_of


class PretrainingTask(Task):
    """Learn features from images alone; a subclass says by what loss.

    network: the network of the task to come, written in the same way: its weights are in the checkpoint under the names
        that fine-tuning looks for (``pretrained: run:RUN_ID``). Features (B, F) are what `medlight.networks.features`
        takes from it; what it computes after them (the output layer, the decoder of a U-Net) is left at its random
        start. Default MONAI's 18-layer ResNet.
    neighbours: how many of the training samples vote in ``val/knn_accuracy``.
    probe_lr: the step size of the linear probe.

    No label has a part in what is learnt. Where the data have classes (or label maps: the class of a patch is then the
    label with most of its voxels, background only where there is no other), they are used to look at the features:
    ``val/probe_accuracy`` is the accuracy of a linear classifier that is trained beside the network, on features cut
    off from it, with the samples that are labelled; ``val/knn_accuracy`` that of the nearest training samples (fewer of
    them where ``trainer.limit_val_batches`` is set). Data in which a case has several classes have neither.

    Validation is on whole images or fixed patches as they are: ``val/loss``, ``val/feature_std`` and
    ``val/effective_rank`` of the features (see `medlight.tasks.representation`). Nothing can be predicted with such a
    network: fine-tune it.
    """

    kind: ClassVar[Kind] = "pretraining"
    default_network: ClassVar[Spec] = {"class_path": "monai.networks.nets.resnet18", "init_args": {}}
    needs_views: ClassVar[int] = 0

    def __init__(self, neighbours: int = 20, probe_lr: float = 1.0, **common: Any) -> None:
        super().__init__(**common)
        if neighbours < 1:
            raise UsageError(f"model.neighbours: {neighbours} is too small; write a whole number of at least 1")
        if not probe_lr > 0:
            raise UsageError(f"model.probe_lr: {probe_lr} must be above 0")
        self.place: networks.Place | None = None
        self.probe: OnlineProbe | None = None
        self.untrained: list[str] = []
        self._bank: tuple[Tensor, Tensor] | None = None

    # What the data decides.

    @property
    def outputs(self) -> list[str]:
        """Names of what the network will put out once it is fine-tuned, as far as the data tell."""
        named = [str(label["name"]) for label in self.data["labels"]]
        return [str(name) for name in self.data["classes"]] or named or ["output"]

    @classmethod
    def metric_names(cls, data: Signature | None) -> list[str]:
        """Return the names of the metrics; those that need classes where the data have them, or are not known yet."""
        scores = ["loss", "feature_std", "effective_rank"]
        scores += ["probe_accuracy", "knn_accuracy"] if data is None or class_count(data) else []
        return ["train/loss", "train/loss_step"] + [f"{stage}/{score}" for stage in ("val", "test") for score in scores]

    def setup(self, stage: str) -> None:
        """Take the data's signature; refuse data that are made for another way of learning."""
        super().setup(stage)
        self.check_training_data(self.trainer.datamodule)  # type: ignore[attr-defined]

    def check_training_data(self, data: Any) -> None:
        """Raise UsageError, in one line, where a data module has not the views that the method learns from."""
        views = list(getattr(data, "views", ()))
        if not hasattr(data, "train_bank_dataloader") or len(views) < self.needs_views:
            wanted = f" with {self.needs_views} views" if self.needs_views else ""
            raise UsageError(f"data: {type(self).__name__} learns from medlight.data.PretrainingDataModule{wanted}")
        if self.needs_views and not any(views):
            raise UsageError(
                "data.views: no view has a transform, so those of a sample are the same, and "
                f"{type(self).__name__} learns nothing; mend: list transforms in them"
            )

    # Building.

    def configure_model(self) -> None:
        """Build the network and what stands beside it, once."""
        if self.network is not None:
            return
        super().configure_model()
        self.loss = self.configure_losses()
        width = self.configure_encoder()
        self.configure_heads(width)
        classes = class_count(self.data)
        self.probe = OnlineProbe(width, classes, float(self.hparams["probe_lr"])) if classes else None

    def configure_encoder(self) -> int:
        """Find where features are taken and leave the rest of the network out; return how many there are."""
        assert self.network is not None
        device = next(self.network.parameters()).device
        image = torch.zeros(2, len(self.data["channels"]), *networks.spatial_size(self.data), device=device)
        self.place = networks.find_place(self.network, tuple(image.shape))
        networks.freeze_unused(self.network, lambda: self.encode(image))
        named = self.network.named_parameters(remove_duplicate=False)  # by every name, as a state dict has them
        self.untrained = [name for name, parameter in named if not parameter.requires_grad]
        return self.place.width

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the parameters that are as random as at the start, so that nobody takes them for learnt ones."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["medlight"]["untrained"] = self.untrained

    def configure_heads(self, width: int) -> None:
        """Build what the loss needs beside the network, for features of this width."""

    def _check_shapes(self, network: nn.Module) -> None:
        """Refuse a network that can't take the data's patches; what it puts out is not looked at."""
        size = networks.spatial_size(self.data)
        try:
            networks.output_shape(network, (1, len(self.data["channels"]), *size))
        except UsageError as error:
            raise UsageError(f"model.init_args.network: {error}; mend: choose sizes that its strides divide") from error

    # Learning.

    def encode(self, image: Tensor) -> Tensor:
        """Return the features (B, F) of images (B, C, ...)."""
        assert self.network is not None, "configure_model() comes first"
        if self.hparams["channels_last"]:
            image = image.contiguous(memory_format=self._layout())
        return networks.features(self.network, image, self.place)

    def learn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss of a training batch, and features (V * B, F), those of one sample beside each other."""
        raise NotImplementedError

    def measure(self, batch: Batch) -> Batch:
        """Return what ``val/loss`` needs to know of each sample of a validation batch: tensors (B, ...)."""
        raise NotImplementedError

    def measured_loss(self, parts: Batch) -> Tensor:
        """Return ``val/loss`` from what `measure` gave for all samples of all ranks, in any order."""
        raise NotImplementedError

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch; let the probe learn from its features."""
        loss, features = self.learn(batch)
        if self.probe is not None:
            truth = class_of(batch, self.data)
            self.probe.learn(features.detach(), truth.repeat_interleave(len(features) // len(truth)))
        self.log_train_loss(loss.detach(), len(batch["image"]))
        return loss

    # Looking at it.

    def on_validation_epoch_start(self) -> None:
        """Begin anew, with the training samples' features."""
        super().on_validation_epoch_start()
        self._bank = self._encoded_bank()

    def on_test_epoch_start(self) -> None:
        """Begin anew, with the training samples' features."""
        super().on_test_epoch_start()
        self._bank = self._encoded_bank()

    def score(self, batch: Batch) -> list[Row]:
        """Return one entry a batch: features and classes of its samples, and what their loss needs."""
        with self.evaluating():
            parts = {"features": self.encode(batch["image"]), "truth": class_of(batch, self.data)}
            parts |= self.measure(batch)
        return [{name: part.float().cpu() if part.is_floating_point() else part.cpu() for name, part in parts.items()}]

    def _encoded_bank(self) -> tuple[Tensor, Tensor] | None:
        """Features and classes of all ranks' labelled training samples, as they are."""
        if self.probe is None:
            return None
        rows: list[Row] = []
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        loader, limit = datamodule.train_bank_dataloader(), self.trainer.limit_val_batches
        for batch in islice(loader, int(limit * len(loader)) if isinstance(limit, float) else limit):
            truth = class_of(batch, self.data)
            known = truth != UNKNOWN
            if known.any():
                image = batch["image"][known].to(self.device)
                with self.evaluating(), self.trainer.precision_plugin.val_step_context():
                    rows.append({"features": self.encode(image).float().cpu(), "truth": truth[known]})
        found = together(rows)
        return (found["features"], found["truth"]) if found else None

    def _finish(self, stage: str) -> None:
        """Bring the samples of all ranks together and log what they show."""
        parts, self._rows = together(self._rows), []
        metrics = {"loss": float(self.measured_loss(parts))}
        metrics |= {name: measure(parts["features"]) for name, measure in INDICATORS.items()}
        if self.probe is not None:
            metrics |= self._accuracies(parts["features"], parts["truth"])
        self._bank = None
        # Every rank computed the same numbers from the same samples; sync_dist only tells Lightning so.
        self.log_dict({f"{stage}/{name}": value for name, value in metrics.items()}, sync_dist=True)

    def _accuracies(self, features: Tensor, truth: Tensor) -> dict[str, float]:
        assert self.probe is not None
        found = {"probe_accuracy": accuracy(self.probe(features.to(self.device)).cpu(), truth)}
        neighbours = int(self.hparams["neighbours"])
        known = knn_accuracy(features, truth, *self._bank, neighbours) if self._bank else float("nan")
        return found | {"knn_accuracy": known}

    # Not leaving the house.

    @property
    def predict_case(self) -> NoReturn:
        """There is none: callbacks that draw what a task predicts look for it and leave this one out."""
        raise AttributeError("predict_case")

    def deployable(self) -> NoReturn:
        """Refuse: there is nothing to predict with."""
        raise UsageError(NO_MODEL)

    def signature(self) -> NoReturn:
        """Refuse: there is nothing to predict with."""
        raise UsageError(NO_MODEL)


INDICATORS = {"feature_std": feature_std, "effective_rank": effective_rank}
NO_MODEL = (
    "a pre-training run has no model that predicts; mend: fine-tune it (model.pretrained: run:RUN_ID) and export that"
)


def together(rows: list[Row]) -> dict[str, Tensor]:
    """Return the tensors of all ranks' rows, one behind the other; empty where there is no row."""
    parts = [rows]
    if world() > 1:
        parts = [[] for _ in range(world())]
        distributed.all_gather_object(parts, rows)
    found = [row for part in parts for row in part]
    return {name: torch.cat([row[name] for row in found]) for name in found[0]} if found else {}
