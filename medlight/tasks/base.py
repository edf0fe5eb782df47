"""What every task shares: specs, the network, the loss, the optimiser, rows per case."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import lightning as L
import torch
from monai.losses.ds_loss import DeepSupervisionLoss
from torch import Tensor, nn

import medlight
from medlight import config, networks
from medlight.errors import UsageError
from medlight.networks.prune import Pruned, prune
from medlight.tasks import optimisation
from medlight.tasks.deployable import Activation, Deployable, in_graph_scaling
from medlight.tasks.exact_norm import write_out_norms
from medlight.tasks.pretrained import Report, load_into
from medlight.tasks.rows import Row, gather

Spec = dict[str, Any]
Batch = dict[str, Tensor]
Signature = dict[str, Any]
Kind = Literal["segmentation", "classification", "pretraining"]


class Task(L.LightningModule):
    """A template: subclasses say what the loss is, how a batch is scored and which metrics come of it.

    A subclass's constructor lists its own arguments and hands the rest on as ``**common: Any``, so that what follows is
    written down once:

    network, loss, optimizer, scheduler: ``{class_path, init_args}``; ``None`` takes the task's default. Checked at
    construction (UsageError); the network and the loss are built in ``configure_model`` once the data is known.
    data: the data module's signature; ``None`` takes it from the trainer's data module in ``setup``. It is kept in the
    hyper-parameters, so that a checkpoint describes itself.
    channels_last: keep the network and the images in channels-last memory layout.
    pretrained: a file of weights to begin with, or ``{weights: FILE, ...}``; see `medlight.tasks.pretrained`.
    """

    monitor: ClassVar[str] = "val/loss"
    mode: ClassVar[Literal["min", "max"]] = "min"
    kind: ClassVar[Kind]
    default_network: ClassVar[Spec]

    def __init__(
        self,
        network: Spec | None = None,
        loss: Spec | None = None,
        optimizer: Spec | None = None,
        scheduler: Spec | None = None,
        data: Signature | None = None,
        channels_last: bool = False,
        pretrained: str | Spec | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        for name, value in dict(self.hparams).items():
            self.hparams[name] = plain(value, f"model.init_args.{name}")
        self._check()
        self.network: nn.Module | None = None
        self.loss: nn.Module | None = None
        self.pretrained_report: Report | None = None
        self.pruned = 0.0  # share of the channels that were taken out of the network
        self.case_metrics: list[Row] = []
        self._rows: list[Row] = []

    def _check(self) -> None:
        for name in ("network", "loss", "optimizer", "scheduler"):
            spec, key = self.hparams[name], f"model.init_args.{name}"
            if spec is None:
                continue
            if not config.is_spec(spec):
                raise UsageError(f"{key}: expected class_path and init_args, found {spec!r}")
            checks = {
                "network": networks.check,
                "optimizer": optimisation.check_optimizer,
                "scheduler": optimisation.check_scheduler,
            }
            checks.get(name, config.check_spec)(spec, key)
        self._check_monitor()

    def _check_monitor(self) -> None:
        """Refuse a scheduler's monitor that won't be logged; names with a label wait until the labels are known."""
        monitor = (self.hparams["scheduler"] or {}).get("monitor")
        names = self.logged_metrics()
        if monitor and monitor not in names and (self.hparams["data"] or monitor.count("/") < 2):
            near = config.nearest(monitor, names)
            raise UsageError(f"model.init_args.scheduler.monitor: {monitor!r} is not logged{near}")

    # What the data decides.

    @property
    def data(self) -> Signature:
        """The data's signature; UsageError before it is known."""
        self._take_signature()
        return cast(Signature, self.hparams["data"])

    def take_data(self, signature: Signature) -> None:
        """Let the task know its data; UsageError where the scheduler's monitor names a label that the data lacks."""
        self.hparams["data"] = plain(signature, "data signature")
        self._check_monitor()

    def _take_signature(self) -> None:
        if self.hparams["data"] is None:
            trainer = getattr(self, "_trainer", None)
            datamodule: Any = getattr(trainer, "datamodule", None)
            if not hasattr(datamodule, "signature"):
                raise UsageError("model.init_args.data: the task does not know its data; fit it with a data module")
            self.take_data(datamodule.signature())

    @property
    def outputs(self) -> list[str]:
        """Names of the network's output channels, in order."""
        raise NotImplementedError

    @property
    def activation(self) -> Activation:
        """What turns logits into probabilities."""
        return "softmax"

    @classmethod
    def metric_names(cls, data: Signature | None) -> list[str]:
        """Return the name of every metric that is logged; those that carry a label's name need the data's signature."""
        raise NotImplementedError

    def logged_metrics(self) -> list[str]:
        """Return the names of the metrics that this task logs, as far as they are known now."""
        return self.metric_names(self.hparams["data"])

    # Building.

    def setup(self, stage: str) -> None:
        """Take the data's signature from the data module."""
        self._take_signature()
        self._check_monitor()

    def build_network(self) -> nn.Module:
        """Return a new network from its spec and the data's signature."""
        spec = self.hparams["network"] or self.default_network
        try:
            return networks.build(spec, self.data, len(self.outputs))
        except UsageError as error:
            raise UsageError(f"model.network: {str(error).removeprefix('network ')}") from error
        except Exception as error:
            raise UsageError(f"model.network: {spec['class_path']}: {' '.join(str(error).split())}") from error

    def configure_losses(self) -> nn.Module:
        """Return the loss: logits (B, L, ...) and target to one number."""
        return build_loss(self.hparams["loss"] or self.default_loss())

    def default_loss(self) -> Spec:
        """Return the spec of the loss used when none is given."""
        raise NotImplementedError

    def configure_model(self) -> None:
        """Build the network and the loss, once."""
        if self.network is not None:
            return
        self.network = self.build_network()
        self._check_shapes(self.network)
        if self.hparams["pretrained"] is not None:
            self.pretrained_report = load_into(self.network, self.hparams["pretrained"])
        self.loss = DeepSupervisionLoss(cast(Any, self.configure_losses()))
        if self.hparams["channels_last"]:
            self.network = self.network.to(memory_format=self._layout())  # type: ignore[call-overload]

    def prune(self, ratio: float) -> Pruned:
        """Take a share of the channels out of the network, for good; checkpoints remember it.

        Raises UsageError where the network can't be pruned, see `networks.prune`.
        """
        assert self.network is not None, "configure_model() comes first"
        found = self._pruned(self.network, ratio)
        self.pruned = ratio
        return found

    def _pruned(self, network: nn.Module, ratio: float) -> Pruned:
        example = torch.zeros(1, len(self.data["channels"]), *networks.spatial_size(self.data))
        return prune(network, example, ratio, len(self.outputs))

    def _check_shapes(self, network: nn.Module) -> None:
        """Refuse a network that can't take the data's patches or gives back another shape."""
        size = networks.spatial_size(self.data)
        try:
            found = networks.output_shape(network, (1, len(self.data["channels"]), *size))
        except UsageError as error:
            raise UsageError(f"model.init_args.network: {error}; mend: choose sizes that its strides divide") from error
        expected = self.logits_shape(size)
        if found[1:] != expected:
            said = f"gives {list(found[1:])} for patches of {size}, not {list(expected)} (labels or classes first)"
            raise UsageError(f"model.init_args.network: {type(network).__name__} {said}")

    def logits_shape(self, size: list[int]) -> tuple[int, ...]:
        """Return the shape of one sample's logits for an image of this size in voxels."""
        raise NotImplementedError

    def configure_optimizers(self) -> Any:
        """Build the optimiser and the schedule."""
        optimizer = optimisation.build_optimizer(self.hparams["optimizer"] or optimisation.ADAMW, self._trained())
        spec = self.hparams["scheduler"]
        if spec is None:
            return optimizer
        entry = optimisation.build_scheduler(spec, optimizer, self.trainer, self.monitor, self.mode)
        return {"optimizer": optimizer, "lr_scheduler": entry}

    def check_optimizers(self, endless: bool = False) -> None:
        """Build optimiser and schedule once and drop them; UsageError where they refuse what is written.

        endless: whether the fit has no last step.
        """
        trained, optimizer = self._trained(), self.hparams["optimizer"] or optimisation.ADAMW
        if not trained:  # a strategy that shards the parameters builds the network later
            trained = {"network": nn.Parameter(torch.zeros(2, 2))}
            optimizer = {name: value for name, value in optimizer.items() if name not in config.GROUPS}
        optimisation.rehearse(optimizer, self.hparams["scheduler"], trained, endless)

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    # Running.

    def _layout(self) -> torch.memory_format:
        return torch.channels_last if self.data["spatial_dims"] == 2 else torch.channels_last_3d

    def run_network(self, image: Tensor) -> list[Tensor]:
        """Return the logits of every head, the final one first."""
        assert self.network is not None, "configure_model() comes first"
        if self.hparams["channels_last"]:
            image = image.contiguous(memory_format=self._layout())
        return networks.heads(self.network, self.network(image), int(self.data["spatial_dims"]))

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (B, L, ...) for images (B, C, ...)."""
        return self.run_network(image)[0]

    def compute_loss(self, heads: list[Tensor], target: Tensor) -> Tensor:
        """Return the loss over all heads (weights 1, 1/2, 1/4, ...), in float32 whatever the precision."""
        assert self.loss is not None, "configure_model() comes first"
        with torch.autocast(heads[0].device.type, enabled=False):
            floats = [head.float() for head in heads]
            if any(head.shape[2:] != target.shape[2:] for head in floats[1:]):
                target = target.float()  # coarser heads: the loss resizes the target, which torch can't do to integers
            return cast(Tensor, self.loss(floats if len(floats) > 1 else floats[0], target))

    def training_loss(self, batch: Batch, key: str) -> Tensor:
        """Return and log the loss of the labelled samples of a batch; 0 (with gradients) where there are none.

        key: where the batch keeps the truth.
        """
        heads = self.run_network(batch["image"])
        has = labelled(batch, key)
        if not any(has):
            return torch.stack([head.sum() for head in heads]).sum() * 0.0
        target = self.target(batch)
        if not all(has):
            kept = torch.tensor(has, device=target.device)
            heads, target = [head[kept] for head in heads], target[kept]
        loss = self.compute_loss(heads, target)
        self.log_train_loss(loss.detach(), len(target))
        return loss

    def target(self, batch: Batch) -> Tensor:
        """Return the truth of a batch as the loss takes it."""
        raise NotImplementedError

    def log_train_loss(self, loss: Tensor, batch_size: int) -> None:
        """Log ``train/loss_step`` at steps and ``train/loss``, the mean over the epoch and all ranks."""
        self.log("train/loss_step", loss, on_step=True, on_epoch=False, batch_size=batch_size)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=batch_size, sync_dist=True)

    def score(self, batch: Batch) -> list[Row]:
        """Return a row of results for each case of a batch."""
        raise NotImplementedError

    def summary(self, rows: list[Row]) -> dict[str, float]:
        """Return the epoch's metrics (without ``val/`` or ``test/``) from the rows of all cases."""
        raise NotImplementedError

    def predict_case(self, batch: Batch) -> Tensor:
        """Return float32 probabilities (B, L, ...) of whole cases, without gradients, in evaluation mode."""
        raise NotImplementedError

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Run the network in evaluation mode and without gradients; leave it as it was."""
        assert self.network is not None, "configure_model() comes first"
        training = self.network.training
        self.network.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.network.train(training)

    def on_validation_epoch_start(self) -> None:
        """Begin a new list of rows."""
        self._rows = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score whole cases."""
        self._rows += self.score(batch)

    def on_validation_epoch_end(self) -> None:
        """Bring the rows of all ranks together and log their means."""
        self._finish("val")

    def on_test_epoch_start(self) -> None:
        """Begin a new list of rows."""
        self._rows = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Score whole cases."""
        self._rows += self.score(batch)

    def on_test_epoch_end(self) -> None:
        """Bring the rows of all ranks together and log their means."""
        self._finish("test")

    def _finish(self, stage: str) -> None:
        self.case_metrics = gather(self._rows)
        metrics = {f"{stage}/{name}": value for name, value in self.summary(self.case_metrics).items()}
        # Every rank computed the same numbers from the same rows; sync_dist only tells Lightning so.
        self.log_dict(metrics, sync_dist=True)

    # Leaving the house.

    def deployable(self) -> nn.Module:
        """Return a copy of the network with activation, and normalisation where no channel needs scan statistics."""
        self.configure_model()
        assert self.network is not None
        scaling = in_graph_scaling(self.data)
        with torch.random.fork_rng(devices=[]):
            network = self.build_network()  # not deepcopy: DynUNet holds on to its last heads, which can't be copied
            if self.pruned:
                self._pruned(network, self.pruned)
        network.load_state_dict(self.network.state_dict())
        write_out_norms(network)
        return Deployable(network, self.activation, int(self.data["spatial_dims"]), scaling).float().eval()

    def window(self) -> dict[str, Any]:
        """Return how whole cases are covered: ``size`` in voxels, ``overlap`` (share of the size), ``mode``."""
        return {"size": networks.spatial_size(self.data), "overlap": 0.0, "mode": "constant"}

    def signature(self) -> dict[str, Any]:
        """Return what goes into the deployable and what comes out, as plain values."""
        return {
            "data": copy.deepcopy(self.data),
            "task": self.kind,
            "activation": self.activation,
            "outputs": self.outputs,
            "window": self.window(),
            "normalise_in_graph": in_graph_scaling(self.data) is not None,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down which class the checkpoint is of."""
        cls = type(self)
        checkpoint["medlight"] = {
            "class_path": f"{cls.__module__}.{cls.__qualname__}",
            "version": medlight.__version__,
        }
        if self.pruned:
            checkpoint["medlight"]["pruned"] = self.pruned


def plain(value: Any, key: str) -> Any:
    """Return a value made of dict, list, str, int, float, bool and ``None`` only; UsageError where it can't be.

    Hyper-parameters go into checkpoints, which are read with ``weights_only=True``.
    """
    if isinstance(value, Mapping):
        return {str(name): plain(inner, f"{key}.{name}") for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner, f"{key}[{index}]") for index, inner in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    if value is None or type(value) in (str, int, float, bool):
        return value
    raise UsageError(f"{key}: write {type(value).__name__} as class_path and init_args, or as a plain value")


def labelled(batch: Batch, key: str) -> list[bool]:
    """Say for each sample of a batch whether its truth (``key``) is known."""
    if key not in batch:
        return [False] * len(batch["image"])
    return batch["is_labelled"].bool().tolist() if "is_labelled" in batch else [True] * len(batch["image"])


def build_loss(spec: Mapping[str, Any]) -> nn.Module:
    """Return the loss that a spec names; ``weight`` and ``pos_weight`` may be written as lists, one number a class."""
    written = dict(spec.get("init_args") or {})
    for name in {"weight", "pos_weight"} & set(written):
        if isinstance(written[name], list):
            written[name] = torch.tensor(written[name], dtype=torch.float32)
    try:
        loss = config.instantiate({"class_path": spec["class_path"], "init_args": written})
    except ValueError as error:
        raise UsageError(f"model.init_args.loss: {' '.join(str(error).split())}") from error
    return cast(nn.Module, loss)
