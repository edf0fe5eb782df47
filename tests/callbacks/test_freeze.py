"""What is frozen keeps every bit, however the fit runs; what is not learns."""

from __future__ import annotations

import copy
import itertools
import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn

from medlight.callbacks import Checkpoint, Freeze, StepSeed
from medlight.errors import UsageError
from medlight.tasks import ClassificationTask
from tests.tasks.blobs import Pictures, trainer

NETWORK = {
    "class_path": "monai.networks.nets.ResNet",
    "init_args": {"block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [4, 8, 8, 8]},
}
FIRST = {"network.conv1*": None, "network.bn1*": 2, "network.layer1*": 1}


class States(L.Callback):
    """The network's tensors after every epoch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_train_start(self, trainer, module):
        self.seen.append(copy.deepcopy(module.state_dict()))

    def on_train_epoch_end(self, trainer, module):
        self.seen.append(copy.deepcopy(module.state_dict()))


def task(**options) -> ClassificationTask:
    torch.manual_seed(0)
    rate = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01, "weight_decay": 0.1}}
    return ClassificationTask(network=NETWORK, optimizer=rate, **options)


def fit(*callbacks: L.Callback, epochs: int = 3, **settings) -> tuple[list[dict[str, torch.Tensor]], L.Trainer]:
    states = States()
    run = trainer(max_epochs=epochs, callbacks=[StepSeed(1), *callbacks, states], **settings)
    run.fit(task(), Pictures(cases=16))
    return states.seen, run


def changed(before: dict, after: dict) -> set[str]:
    return {".".join(n.split(".")[:2]) for n in before if not torch.equal(before[n], after[n])}


ROOT = Path(__file__).parents[2]
EVERY = {f"network.{n}" for n in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc")}
SETTINGS = {
    "plain": {},
    "accumulated": {"accumulate_grad_batches": 2},
    "clipped": {"gradient_clip_val": 0.1},
    "validated in between": {"val_check_interval": 1},
    "bf16": {"precision": "bf16-mixed"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_each_part_is_let_go_when_its_epoch_begins(name):
    seen, _ = fit(Freeze(FIRST), **SETTINGS[name])
    kept = [{"network.conv1", "network.bn1", "network.layer1"}, {"network.conv1", "network.bn1"}, {"network.conv1"}]
    assert [EVERY - changed(a, b) for a, b in itertools.pairwise(seen)] == kept


def test_without_it_everything_changes():
    seen, _ = fit(epochs=1)
    assert changed(*seen) == EVERY


def test_several_devices_freeze_as_one():
    """Where gradients are computed all the same, they are dropped before the step."""

    class Several(Freeze):
        def on_train_epoch_start(self, trainer, module):
            for parameter in module.parameters():
                parameter.requires_grad_(True)

    one, _ = fit(Freeze(FIRST), gradient_clip_val=0.5)
    several, _ = fit(Several(FIRST), gradient_clip_val=0.5)
    assert all(torch.equal(a[n], b[n]) for a, b in zip(one, several, strict=True) for n in a)


def test_two_processes_freeze_as_one(tmp_path):
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PL_", "MEDLIGHT_"))}
    environment = inherited | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for ranks in (1, 2):
        command = [sys.executable, "-m", "tests.callbacks.frozen_ranks", str(ranks), str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    one, first, second = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in ("1-0", "2-0", "2-1"))
    for epoch, (alone, together) in enumerate(zip(one, first, strict=True)):
        assert all(torch.equal(together[n], second[epoch][n]) for n in together)
        assert all(torch.allclose(alone[n], together[n], atol=1e-4) for n in alone)
    moved = [changed(a, b) for a, b in itertools.pairwise(first)]
    assert "network.downsamples" not in moved[0]
    assert "network.downsamples" in moved[1]
    assert all("network.input_block" not in names and "network.output_block" in names for names in moved)


def test_averaged_weights_keep_what_is_frozen(tmp_path):
    checkpoint = Checkpoint("val/auroc", "max")
    seen, _ = fit(
        EMAWeightAveraging(decay=0.7),
        Freeze({"network.conv1*": None, "network.bn1*": None}),
        checkpoint,
        default_root_dir=tmp_path,
        enable_checkpointing=True,
    )
    best = torch.load(checkpoint.best_model_path, weights_only=True)["state_dict"]
    for name in seen[0]:
        if name.startswith(("network.conv1", "network.bn1")):  # Lightning's average of equal numbers rounds
            torch.testing.assert_close(best[name], seen[0][name], rtol=1e-6, atol=1e-7)
    assert "network.layer1" in changed(seen[0], best)


def test_a_resumed_fit_takes_the_same_course(tmp_path):
    whole, _ = fit(Freeze(FIRST), epochs=4)
    fit(Freeze(FIRST), Checkpoint("val/auroc", "max"), epochs=2, default_root_dir=tmp_path, enable_checkpointing=True)
    states, again = States(), task()
    more = [StepSeed(1), Freeze(FIRST), Checkpoint("val/auroc", "max"), states]
    run = trainer(max_epochs=4, callbacks=more, default_root_dir=tmp_path, enable_checkpointing=True)
    run.fit(again, Pictures(cases=16), ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"), weights_only=True)
    assert len(states.seen) == 3
    for a, b in zip(whole[2:], states.seen, strict=True):
        assert not changed(a, b)


@given(st.dictionaries(st.sampled_from(["*", "a.*", "a.b.*", "c*"]), st.none() | st.integers(0, 4)), st.integers(0, 5))
def test_the_last_pattern_that_fits_decides(until, epoch):
    freeze = Freeze(until)
    fits = {"a.b.weight": {"*", "a.*", "a.b.*"}, "c.bias": {"*", "c*"}, "d": {"*"}}
    for name, patterns in fits.items():
        wanted = ([0] + [e for p, e in until.items() if p in patterns])[-1]
        assert freeze.frozen(name, epoch) == (wanted is None or epoch < wanted)


@pytest.mark.parametrize(
    ("until", "said"),
    [
        ({"network.layr1*": 2}, r"no parameter is named like .* \(did you mean 'network.layer1'"),
        ({"*": 1}, "every parameter is frozen in epoch 0"),
    ],
)
def test_what_fits_nothing_or_all_is_refused(until, said):
    module = task(data=Pictures().signature())
    module.configure_model()
    with pytest.raises(UsageError, match=said):
        Freeze(until).check(module)


@pytest.mark.parametrize("epoch", [-1, "soon", 1.5, True])
def test_what_is_no_epoch_is_refused(epoch):
    with pytest.raises(UsageError, match="is no epoch"):
        Freeze({"network.*": epoch})


def test_a_layer_s_statistics_are_kept_with_its_weights():
    module = task(data=Pictures().signature())
    module.configure_model()
    run = trainer(max_epochs=1, limit_val_batches=0, callbacks=[Freeze({"network.layer2*": None})])
    run.fit(module, Pictures(cases=16))
    norms = {n: m for n, m in module.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert {n for n, m in norms.items() if int(m.num_batches_tracked) == 0} == {n for n in norms if "layer2" in n}
