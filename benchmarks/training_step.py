"""A training step of medlight against a bare torch loop, and a fit fed from the store against one fed a repeated batch.

    MEDLIGHT_DATA=... python benchmarks/training_step.py [--rounds 3] [--steps 40] [--out FILE.json]

Three arms take turns in one process, on the hippocampus study's configuration:

bare      the network, loss, optimiser and precision of the study in a plain loop over one batch in memory
repeated  `medlight fit` of the study, logging and callbacks as always, its loader replaced by that one batch
fit       `medlight fit` of the study as it is: patches read, augmented and collated by its workers

A round's figure is its median seconds per step; the ratios are of the medians over rounds, with the spread given.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

from medlight.config import Config, set_path
from medlight.launch.fit import fit, quiet, resolve_precision
from medlight.launch.resolve import parse, read

STUDY = Path(__file__).resolve().parents[1] / "experiments" / "hippocampus" / "fit.yaml"
SKIP = 8  # steps until caches and workers are warm
batch: dict[str, torch.Tensor] = {}
times: list[float] = []


class Clock(L.Callback):
    """Notes the time at the end of each training step."""

    def on_train_batch_end(self, *_: Any) -> None:
        """Note the time."""
        times.append(time.perf_counter())


def repeat_one_batch(config: Config) -> Config:
    """The study with its training loader replaced."""
    return set_path(config, "data.class_path", "benchmarks.training_step.Repeated")


def _median_step(marks: list[float]) -> float:
    steps = [after - before for before, after in zip(marks[SKIP:], marks[SKIP + 1 :], strict=False)]
    return statistics.median(steps)


def bare(config: Config, steps: int) -> float:
    """Median seconds per step of the plain loop."""
    cli = parse(config)
    task, data, _ = cli.build()
    data.prepare_data()
    data.setup("fit")
    task.hparams["data"] = data.signature()
    task.hparams["channels_last"] = config["channels_last"]
    task.configure_model()
    network, loss_function = task.network.train(), task.configure_losses()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    half = config["precision"] == "bf16-mixed"
    marks = []
    image = batch["image"]
    if config["channels_last"]:
        image = image.contiguous(memory_format=torch.channels_last_3d)
    for _ in range(steps):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            logits = network(image)
        loss = loss_function(logits.float(), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12.0)
        optimizer.step()
        marks.append(time.perf_counter())
    return _median_step(marks)


def timed_fit(config: Config, steps: int) -> float:
    """Median seconds per step of a fit; no validation inside the timed part."""
    times.clear()
    trainer = {**config["trainer"], "max_steps": steps, "limit_val_batches": 1}
    trainer["callbacks"] = [{"class_path": "benchmarks.training_step.Clock"}]
    config = {**config, "trainer": trainer}
    config = set_path(config, "data.steps_per_epoch", steps)
    fit(config)
    return _median_step(times)


def main() -> None:
    """Let the arms take turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    quiet()
    load_before = os.getloadavg()[0]
    out = args.out.resolve() if args.out else None
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        config = resolve_precision(read([str(STUDY)], []))
        loader = _loader(config)
        batch.update(next(iter(loader)))
        arms = {
            "bare": lambda: bare(config, args.steps),
            "repeated": lambda: timed_fit(repeat_one_batch(config), args.steps),
            "fit": lambda: timed_fit(config, args.steps),
        }
        rounds: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(args.rounds):
            for name, arm in arms.items():
                rounds[name].append(arm())
    report(config, rounds, load_before, out)


def _loader(config: Config) -> Any:
    _, data, _ = parse(config).build()
    data.prepare_data()
    data.setup("fit")
    return data.train_dataloader()


def report(config: Config, rounds: dict[str, list[float]], load: float, out: Path | None) -> None:
    """Print the ratios, and write them."""
    middle = {name: statistics.median(values) for name, values in rounds.items()}
    figures = {
        "command": "python benchmarks/training_step.py",
        "precision": config["precision"],
        "channels_last": config["channels_last"],
        "threads": torch.get_num_threads(),
        "load_before": round(load, 2),
        "seconds_per_step": {name: [round(v, 4) for v in values] for name, values in rounds.items()},
        "step_ratio": round(middle["repeated"] / middle["bare"], 3),
        "fit_throughput_ratio": round(middle["repeated"] / middle["fit"], 3),
    }
    print(json.dumps(figures, indent=1))
    if out:
        out.write_text(json.dumps(figures, indent=1) + "\n")


from medlight.data import ScanDataModule  # noqa: E402 - the class below is found by its import path


class Repeated(ScanDataModule):
    """The study's data, with one batch in memory as every training batch."""

    def train_dataloader(self) -> Any:
        """One batch, again and again."""
        import benchmarks.training_step as shared

        return torch.utils.data.DataLoader([shared.batch] * int(self.steps_per_epoch or 1), batch_size=None)


if __name__ == "__main__":
    import benchmarks.training_step as this

    this.main()
