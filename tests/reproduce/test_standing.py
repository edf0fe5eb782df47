"""What counts as there already: the same configuration, data, code (the user's own too) and initial weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from medlight.launch.fit import Launch, fit
from medlight.reproduce import expected, plan
from medlight.reproduce.plan import Item
from medlight.tracking import store
from tests.reproduce import folder

OWN = """
import torch


class Scaled(torch.nn.CrossEntropyLoss):
    def forward(self, logits, target):
        return FACTOR * super().forward(logits, target)
"""


@pytest.fixture
def item(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Item]:
    """A study's run that is there: with a loss and initial weights of the user's own."""
    monkeypatch.syspath_prepend(workdir)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    write_loss(0.5)
    write_weights(0)
    loss = {"class_path": "own_loss.Scaled"}
    arguments = {"loss": loss, "pretrained": {"weights": "w.pt", "least": 0.0}}
    own = {"model": {"class_path": folder.BASE["model"]["class_path"], "init_args": arguments}}
    variants = {"slow": ["base.yaml", "own.yaml"]}
    path = folder.write(workdir, variants=variants, expected=[{"claim": "slow.test/auroc > 0.1"}], seeds=1)
    (path / "own.yaml").write_text(yaml.safe_dump(own))
    (planned,) = plan.items(expected.read(path), "quick", 1)
    run_id = fit(planned.config, Launch(study=planned.study, name=planned.name)).run_id
    manifest = json.loads(store.artifact(run_id, "manifest.json").read_text())
    yield replace(planned, data_digest=manifest["data"]["digest"], tested=False)
    sys.modules.pop("own_loss", None)


def write_loss(factor: float) -> None:
    Path("own_loss.py").write_text(OWN.replace("FACTOR", str(factor)))


def write_weights(seed: int) -> None:
    torch.manual_seed(seed)
    torch.save({"features.conv0.weight": torch.randn(4, 1, 7, 7)}, "w.pt")


def found(item: Item) -> tuple[str, str]:
    """What is to be done, and why what is there does not count, without the run's id."""
    plan.difference.cache_clear()  # a new process knows nothing of the old answers
    standing = plan.standing(item, item.config, store.runs_of(item.study, "fit"))
    return standing.action, standing.note.partition(" is of ")[2]


def test_what_is_there_counts_while_everything_is_as_it_was(item: Item) -> None:
    assert found(item) == ("done", "")
    assert found(replace(item, data_digest="another")) == ("start", "other data")

    write_weights(1)
    assert found(item) == ("start", "other initial weights")
    write_weights(0)
    assert found(item) == ("done", "")

    write_loss(50.0)
    assert found(item) == ("start", "other code (own_loss)")
    write_loss(0.5)
    Path("own_loss.py").write_text("# why\n" + Path("own_loss.py").read_text())
    assert found(item) == ("done", "")

    (run,) = store.runs_of(item.study, "fit")
    manifest = json.loads(store.artifact(run.info.run_id, "manifest.json").read_text())
    resumed = {**manifest, "code": {**manifest["code"], "medlight.tasks.base": "another"}}
    place = store.artifact(run.info.run_id, "manifest.json").parent / "manifest-resumed-1.json"
    place.write_text(json.dumps(resumed))
    assert found(item) == ("start", "other code (medlight.tasks.base)")
    place.unlink()

    Path("w.pt").unlink()
    assert found(item) == ("start", "other initial weights"), "the fit says what is wrong with them"
