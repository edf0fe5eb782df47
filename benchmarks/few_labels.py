"""What learning with few labels costs: a SimCLR step, a Mean Teacher step, and the wait for two views of each patch.

    MEDLIGHT_DATA=... python benchmarks/few_labels.py [--rounds 3] [--steps 40] [--out FILE.json]

Arms take turns in one process, on hippocampus patches of 40 x 56 x 40 voxels and the residual-encoder U-Net:

simclr_bare   encoder, projection head, NT-Xent, AdamW and the fit's precision in a plain loop over one batch of views
simclr        `medlight fit` of SimCLR, logging and callbacks as always, its loader replaced by that batch
supervised    `medlight fit` of the network, its loader replaced by one batch in which all images are labelled
mean_teacher  `medlight fit` of Mean Teacher with it, its loader replaced by as many images, half labelled

A round's figure is its median seconds per step; the ratios are of the medians over rounds. ``data_wait_share`` is what
`medlight fit` logs for its second epoch with one worker, for both methods with their own loaders; each round once.
Targets: simclr / simclr_bare at most 1.05, mean_teacher / supervised at most 1.6, both shares below 0.03.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch

from medlight import networks
from medlight.config import Config, merge, set_path
from medlight.data import FewLabelsDataModule, PretrainingDataModule
from medlight.launch.fit import Launch, fit, quiet, resolve_precision
from medlight.launch.resolve import parse, read
from medlight.tracking import store

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
SKIP = 8  # steps until caches are warm
SPATIAL = "medlight.data.augment.RandomSpatial"
MOVED = {"class_path": SPATIAL, "init_args": {"scales": 0.2, "degrees": 20}}
BENT = {"class_path": SPATIAL, "init_args": {**MOVED["init_args"], "max_displacement": 3.0, "elastic_probability": 0.3}}
NOISY = [
    {"class_path": "torchio.RandomGamma", "init_args": {"log_gamma": 0.3, "p": 0.5}},
    {"class_path": "torchio.RandomNoise", "init_args": {"std": [0, 0.1], "p": 0.3}},
]
batches: dict[str, dict[str, torch.Tensor]] = {}
times: list[float] = []


class Clock(L.Callback):
    """Notes the time at the end of each training step."""

    def on_train_batch_end(self, *_: Any) -> None:
        """Note the time."""
        import benchmarks.few_labels as shared

        shared.times.append(time.perf_counter())


class _Repeated:
    """One batch in memory, again and again, instead of what a data module loads."""

    batch: str

    def train_dataloader(self) -> Any:
        """The batch that the arm's name stands for."""
        import benchmarks.few_labels as shared

        steps = int(self.steps_per_epoch)  # type: ignore[attr-defined]
        return torch.utils.data.DataLoader([shared.batches[self.batch]] * steps, batch_size=None)


class RepeatedViews(_Repeated, PretrainingDataModule):
    """Views for SimCLR."""

    batch = "simclr"


class RepeatedMixture(_Repeated, FewLabelsDataModule):
    """Labelled and unlabelled patches."""

    batch = "mean_teacher"


class RepeatedLabels(_Repeated, FewLabelsDataModule):
    """Labelled patches."""

    batch = "supervised"


def _arm(method: str) -> Config:
    """A method of the study mean_teacher, with the network of the study hippocampus and views that cost something.

    The benchmark's own network and views: those of the study change with what it finds.
    """
    files = [EXPERIMENTS / "mean_teacher" / name for name in (f"{method}.yaml", "hippocampus.yaml")]
    config = read([str(file) for file in files], [])
    other = read([str(EXPERIMENTS / "hippocampus" / "fit.yaml")], [])
    config = set_path(config, "model.network", other["model"]["init_args"]["network"])
    config = set_path(config, "data.augment", [BENT, *([] if method == "mean_teacher" else NOISY)])
    return {**config, "precision": "auto", "channels_last": "auto"}


def mean_teacher() -> Config:
    """Mean Teacher on hippocampi; both views are moved together and noisy by themselves."""
    return set_path(_arm("mean_teacher"), "data.views", [NOISY, NOISY])


def supervised() -> Config:
    """The same network on the same number of images, all of them labelled."""
    return set_path(_arm("supervised"), "data.batch_size", mean_teacher()["data"]["init_args"]["batch_size"])


def simclr() -> Config:
    """The same network's encoder and the same patches without labels; each view is moved and noisy by itself."""
    whole = mean_teacher()
    given = {**whole["data"]["init_args"], "batch_size": 4}
    for name in ("labelled", "labelled_per_batch", "augment"):
        given.pop(name, None)
    images = given["source"]["init_args"]["images"]
    given["source"] = merge(given["source"], {"init_args": {}})
    given["source"]["init_args"] = {"images": images, "unlabelled": True}
    given["views"] = [[MOVED, *view] for view in given["views"]]
    model = whole["model"]["init_args"]
    model = {name: model[name] for name in ("network", "optimizer")}
    return {
        **{name: value for name, value in whole.items() if name != "trainer"},
        "name": "simclr",
        "model": {"class_path": "medlight.tasks.SimCLRTask", "init_args": model},
        "data": {"class_path": "medlight.data.PretrainingDataModule", "init_args": given},
        "trainer": {},
    }


def _median_step(marks: list[float]) -> float:
    skip = min(SKIP, len(marks) // 2)
    return statistics.median(after - before for before, after in zip(marks[skip:], marks[skip + 1 :], strict=False))


def bare_simclr(config: Config, steps: int) -> float:
    """Median seconds per step of the plain loop."""
    task: Any
    data: Any
    task, data, _ = parse(config).build()
    data.prepare_data()
    data.setup("fit")
    task.take_data(data.signature())
    task.hparams["channels_last"] = config["channels_last"]
    task.configure_model()
    task.train()
    spec = config["model"]["init_args"]["optimizer"]["init_args"]
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], **spec)
    half = config["precision"] == "bf16-mixed"
    views, marks = batches["simclr"]["views"], []
    for _ in range(steps):
        images = views.flatten(0, 1)
        if config["channels_last"]:
            images = images.contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            vectors = task.projection(networks.features(task.network, images, task.place))
        one, two = vectors.float().unflatten(0, (len(views), 2)).unbind(1)
        loss = task.loss(one, two)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        marks.append(time.perf_counter())
    return _median_step(marks)


def timed_fit(config: Config, repeated: str, steps: int) -> float:
    """Median seconds per step of a fit over one batch; no validation inside the timed part."""
    times.clear()
    config = set_path(config, "data.class_path", f"benchmarks.few_labels.{repeated}")
    clock = {"class_path": "benchmarks.few_labels.Clock"}
    trainer = {**config["trainer"], "max_epochs": 1, "limit_val_batches": 1, "callbacks": [clock]}
    fit(set_path({**config, "trainer": trainer}, "data.steps_per_epoch", steps))
    return _median_step(times)


def wait_share(config: Config, steps: int) -> float:
    """The share of the second epoch in which a fit with one worker waited for its data."""
    trainer = {**config["trainer"], "max_epochs": 2, "limit_val_batches": 1}
    config = set_path(set_path({**config, "trainer": trainer}, "data.steps_per_epoch", steps), "data.workers", 1)
    run_id = fit(config, Launch(name="wait")).run_id
    points = store.client().get_metric_history(run_id, "train/data_wait_share")
    return float(max(points, key=lambda point: int(point.step)).value)


def _one_batch(config: Config) -> dict[str, torch.Tensor]:
    data: Any
    _, data, _ = parse(config).build()
    data.prepare_data()
    data.setup("fit")
    return dict(next(iter(data.train_dataloader())))


def measure(rounds: int, steps: int) -> tuple[dict[str, Config], dict[str, list[float]]]:
    """Let the arms take turns."""
    configs = {"simclr": simclr(), "supervised": supervised(), "mean_teacher": mean_teacher()}
    configs = {name: resolve_precision(config) for name, config in configs.items()}
    settled = {key: configs["supervised"][key] for key in ("precision", "channels_last")}
    configs["mean_teacher"] |= settled  # as the probe may fall either way, the two compared share it
    batches.update({name: _one_batch(config) for name, config in configs.items()})
    arms: dict[str, Callable[[], float]] = {
        "simclr_bare": lambda: bare_simclr(configs["simclr"], steps),
        "simclr": lambda: timed_fit(configs["simclr"], "RepeatedViews", steps),
        "supervised": lambda: timed_fit(configs["supervised"], "RepeatedLabels", steps),
        "mean_teacher": lambda: timed_fit(configs["mean_teacher"], "RepeatedMixture", steps),
        "wait_simclr": lambda: wait_share(configs["simclr"], steps),
        "wait_mean_teacher": lambda: wait_share(configs["mean_teacher"], steps),
    }
    found: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            found[name].append(arm())
    return configs, found


def report(configs: dict[str, Config], found: dict[str, list[float]], load: float) -> dict[str, Any]:
    """Return the ratios and what they were made of."""
    middle = {name: statistics.median(values) for name, values in found.items()}
    return {
        "command": "python benchmarks/few_labels.py",
        "precision": {name: [config["precision"], config["channels_last"]] for name, config in configs.items()},
        "images_per_step": {name: len(batch["image"]) for name, batch in batches.items()},
        "threads": torch.get_num_threads(),
        "load_before": round(load, 2),
        "seconds_per_step": {
            name: [round(v, 4) for v in values] for name, values in found.items() if not name.startswith("wait")
        },
        "simclr_ratio": round(middle["simclr"] / middle["simclr_bare"], 3),
        "mean_teacher_ratio": round(middle["mean_teacher"] / middle["supervised"], 3),
        "data_wait_share": {
            name.removeprefix("wait_"): [round(v, 4) for v in values]
            for name, values in found.items()
            if name.startswith("wait")
        },
    }


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    quiet()
    load = os.getloadavg()[0]
    out = args.out.resolve() if args.out else None
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        figures = report(*measure(args.rounds, args.steps), load)
    text = json.dumps(figures, indent=1)
    print(text)
    if out:
        out.write_text(text + "\n")


if __name__ == "__main__":
    import benchmarks.few_labels as this

    this.main()
