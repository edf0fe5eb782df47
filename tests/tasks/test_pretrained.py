"""Initial weights: what is loaded, adapted, missing and refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets import DynUNet, ResNet, UNet, resnet10
from safetensors.torch import save_file
from torch import nn

from medlight.errors import MedlightError, UsageError
from medlight.networks.efficientnet_lite import EfficientNetLite0, EfficientNetLite0UNet
from medlight.tasks import SegmentationTask, load
from medlight.tasks.inflate import inflated, with_channels
from medlight.tasks.pretrained import load_into
from tests.tasks.blobs import DYNUNET, Blobs, trainer

U_NET = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 8, 8]}
SMALL = {"block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [4, 8, 8, 8]}


def cnn(dims: int = 2, channels: int = 1, classes: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return ResNet(**SMALL, spatial_dims=dims, n_input_channels=channels, num_classes=classes)


def saved(content, path: Path) -> str:
    torch.save(content, path)
    return str(path)


def snapshot(network: nn.Module) -> dict:
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


NESTINGS = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state},
    "two deep": lambda state: {"state": {"model": state}},
    "ddp": lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    "wrapped": lambda state: {f"net.encoder.{name}": value for name, value in state.items()},
    "beside others": lambda state: (
        {f"student.{name}": value for name, value in state.items()} | {"head.weight": torch.ones(900, 900)}
    ),
}


@pytest.mark.parametrize("nesting", NESTINGS)
def test_every_way_of_keeping_a_state_dict_is_read(tmp_path, nesting):
    source, network = cnn(seed=1), cnn(seed=2)
    file = saved(NESTINGS[nesting](source.state_dict()), tmp_path / "weights.pth")
    report = load_into(network, file)
    assert same(source.state_dict(), network.state_dict())
    assert set(report.loaded) == set(network.state_dict())
    assert (report.adapted, report.missing, report.share) == ([], [], 1.0)
    assert report.unexpected == (["head.weight"] if nesting == "beside others" else [])
    assert report.sha256 == hashlib.sha256(Path(file).read_bytes()).hexdigest()


def test_safetensors(tmp_path):
    source, network = cnn(seed=1), cnn(seed=2)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    load_into(network, str(tmp_path / "weights.safetensors"))
    assert same(source.state_dict(), network.state_dict())


def test_a_network_that_wraps_what_the_file_holds(tmp_path):
    source = EfficientNetLite0(num_classes=7)
    network = EfficientNetLite0UNet(2, 3, 2)
    report = load_into(network, saved(source.state_dict(), tmp_path / "w.pt"))
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in network.encoder.state_dict().items())
    assert {name.split(".")[0] for name in report.missing} == {"decoder", "head"}
    assert {name.split(".")[0] for name in report.unexpected} == {"_conv_head", "_bn1", "_fc"}
    elements = sum(p.numel() for p in network.encoder.parameters()) / sum(p.numel() for p in network.parameters())
    assert report.share == pytest.approx(elements)


def test_a_head_of_another_size_keeps_its_random_start(tmp_path):
    source, network = cnn(classes=9), cnn(classes=3, seed=4)
    start = snapshot(network)
    report = load_into(network, saved(source.state_dict(), tmp_path / "w.pt"))
    assert report.missing == ["fc.weight", "fc.bias"]
    assert report.unexpected == []
    assert report.changes["fc.weight"] == "9x8 in the file, 3x8 in the network"
    assert torch.equal(network.state_dict()["fc.weight"], start["fc.weight"])
    assert torch.equal(network.state_dict()["conv1.weight"], source.state_dict()["conv1.weight"])


def test_checkpoint_of_a_task_gives_its_network_alone(tmp_path):
    task, runner = SegmentationTask(network=DYNUNET), trainer(max_epochs=1)
    runner.fit(task, Blobs(dims=2, steps=1))
    runner.save_checkpoint(tmp_path / "best.ckpt")
    other = SegmentationTask(network=DYNUNET, pretrained=str(tmp_path / "best.ckpt"), data=task.data)
    other.configure_model()
    assert same(task.network.state_dict(), other.network.state_dict())
    assert other.pretrained_report.unexpected == []
    trainer(max_epochs=1).fit(other, Blobs(dims=2, steps=1))
    runner.save_checkpoint(tmp_path / "tuned.ckpt")
    (tmp_path / "best.ckpt").unlink()
    assert load(tmp_path / "tuned.ckpt").pretrained_report is None


def test_what_else_a_checkpoint_of_a_task_holds_is_left(tmp_path):
    state = {f"network.{n}": v for n, v in cnn(seed=1).state_dict().items()}
    state |= {f"teacher.{n}": v for n, v in cnn(seed=2).state_dict().items()} | {"probe.weight": torch.ones(3)}
    network = cnn(seed=3)
    report = load_into(network, saved({"medlight": {}, "state_dict": state}, tmp_path / "a.ckpt"))
    assert same(network.state_dict(), cnn(seed=1).state_dict())
    assert report.unexpected == []


@pytest.mark.parametrize(
    ("other", "spec"),
    [
        (lambda: resnet10(spatial_dims=2, n_input_channels=1, num_classes=3), {}),
        (lambda: DynUNet(2, 1, 3, [3, 3, 3], [1, 2, 2], [2, 2]), {}),
        (lambda: cnn(dims=3), {"inflate": "centre"}),
        (lambda: nn.Linear(3, 3), {}),
    ],
)
def test_another_architecture_is_refused_and_nothing_changed(tmp_path, other, spec):
    network = cnn()
    start = snapshot(network)
    file = saved(other().state_dict(), tmp_path / "w.pt")
    with pytest.raises(
        MedlightError, match=r"only [\d.]+% of the weights of ResNet .* missing: conv1.weight, "
    ) as said:
        load_into(network, {"weights": file, **spec})
    assert "\n" not in str(said.value)
    assert same(start, network.state_dict())


SHAPES = st.lists(st.integers(0, 4), max_size=5).map(tuple)
FUZZED = cnn(dims=3)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from([*FUZZED.state_dict(), "a", "layer1", "net.conv1.weight"]), SHAPES, min_size=1),
    st.sampled_from([None, "centre", "average"]),
)
def test_tensors_of_any_shape_under_the_right_names_never_do_harm(tmp_path_factory, shapes, how):
    file = tmp_path_factory.mktemp("fuzz") / "w.pt"
    saved({name: torch.ones(shape) for name, shape in shapes.items()}, file)
    network = cnn(dims=3)
    start = snapshot(network)
    try:
        report = load_into(network, {"weights": str(file), "inflate": how, "least": 0})
    except MedlightError:
        assert same(start, network.state_dict())
    else:
        fitted = {*report.loaded, *report.adapted}
        assert fitted
        assert fitted.isdisjoint(report.missing)
        assert fitted | set(report.missing) == set(start)
        assert all(torch.equal(start[name], network.state_dict()[name]) for name in report.missing)


def test_least_is_the_share_from_which_it_is_good_enough(tmp_path):
    state = cnn(seed=1).state_dict()
    part = {name: value for name, value in state.items() if not name.startswith("layer4")}
    file = saved(part, tmp_path / "w.pt")
    share = load_into(cnn(), {"weights": file, "least": 0.1}).share
    assert 0.1 < share < 0.95
    load_into(cnn(), {"weights": file, "least": share - 1e-6})
    with pytest.raises(MedlightError, match="layer4"):
        load_into(cnn(), {"weights": file, "least": share + 1e-6})
    with pytest.raises(MedlightError, match=r"only 0.0%"):
        load_into(cnn(), {"weights": saved({"x": torch.ones(2)}, tmp_path / "x.pt"), "least": 0})


def test_an_altered_file_is_refused(tmp_path):
    file = tmp_path / "w.pt"
    saved(cnn().state_dict(), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    load_into(cnn(), {"weights": str(file), "sha256": digest})
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(MedlightError, match="was altered since its digest was recorded"):
        load_into(cnn(), {"weights": str(file), "sha256": digest})


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


@pytest.mark.parametrize("content", [b"", b"text", "evil", "list", "numbers"])
def test_what_is_no_file_of_weights_is_refused(tmp_path, content):
    file = tmp_path / "w.pth"
    kinds = {"evil": {"state_dict": Evil()}, "list": [torch.ones(2)], "numbers": {"a": 1}}
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(kinds[content], file)
    with pytest.raises(MedlightError, match=r"w\.pth: (no|holds no) weights"):
        load_into(cnn(), str(file))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("nowhere.pt", "no such file of weights"),
        (3, "write FILE"),
        ({"file": "w.pt"}, "write FILE"),
        ({"weights": "w.pt", "leats": 0.4}, "did you mean 'least'"),
        ({"weights": "w.pt", "least": 40}, "no share"),
        ({"weights": "w.pt", "least": True}, "no share"),
        ({"weights": "w.pt", "inflate": "center"}, "none of centre, average"),
        ({"weights": "w.pt", "sha256": 123}, "in quotes"),
    ],
)
def test_wrong_settings_are_named(spec, said):
    with pytest.raises(UsageError, match=said):
        load_into(cnn(), spec)


# Channels.


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_an_image_with_equal_channels_gives_the_same_response(before, after, seed):
    draws = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, before, 3, 3, generator=draws, dtype=torch.float64)
    grey = torch.randn(1, 1, 8, 8, generator=draws, dtype=torch.float64)
    expected = nn.functional.conv2d(grey.expand(1, before, 8, 8), weight)
    found = nn.functional.conv2d(grey.expand(1, after, 8, 8), with_channels(weight, after))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 5), (2, 3)])
def test_every_layer_that_reads_the_image_is_adapted_and_no_other(tmp_path, before, after):
    torch.manual_seed(0)
    source, network = (DynUNet(2, n, 3, **U_NET, res_block=True).eval() for n in (before, after))
    report = load_into(network, saved(source.state_dict(), tmp_path / "w.pt"))
    assert {name for name in report.adapted if name.startswith("input")} == {
        "input_block.conv1.conv.weight",
        "input_block.conv3.conv.weight",
    }
    assert (report.missing, report.share) == ([], 1.0)
    grey = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        expected, found = source(grey.expand(1, before, 16, 16)), network(grey.expand(1, after, 16, 16))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# Inflation.


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([1, 3, 5, 7]), st.integers(1, 2), st.integers(1, 6), st.integers(0, 99))
def test_average_answers_a_volume_of_equal_slices_as_the_slice_and_centre_any_volume(depth, stride, channels, seed):
    draws = torch.Generator().manual_seed(seed)
    flat = nn.Conv2d(channels, 4, depth, stride, depth // 2).double()
    plane = torch.randn(1, channels, 9, 10, generator=draws, dtype=torch.float64)
    volume = torch.randn(1, channels, 9, 10, 12, generator=draws, dtype=torch.float64)
    pad = depth // 2
    average = inflated(flat.weight.detach(), depth, "average")
    constant = plane[..., None].expand(-1, -1, -1, -1, depth + 2)
    found = nn.functional.conv3d(constant, average, flat.bias, (stride, stride, 1), (pad, pad, 0))
    torch.testing.assert_close(found, flat(plane)[..., None].expand_as(found))
    centre = inflated(flat.weight.detach(), depth, "centre")
    found = nn.functional.conv3d(volume, centre, flat.bias, (stride, stride, 1), pad)
    for k in range(volume.shape[-1]):
        torch.testing.assert_close(found[..., k], flat(volume[..., k]))


STRIDES = [2, 2, 2, 2, 2]


def lites(tmp_path, how: str, strides: list[int], seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """The same random weights in 2D and inflated, with statistics as after training."""
    torch.manual_seed(seed)
    flat = EfficientNetLite0(2, 3, 5, strides)
    for module in flat.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    deep = EfficientNetLite0(3, 3, 5, strides)
    report = load_into(deep, {"weights": saved(flat.state_dict(), tmp_path / "flat.pt"), "inflate": how})
    assert (report.missing, report.unexpected, report.share) == ([], [], 1.0)
    return flat.eval(), deep.eval()


def test_centred_network_is_the_one_in_2d_on_the_slices_that_its_strides_keep(tmp_path):
    flat, deep = lites(tmp_path, "centre", STRIDES)
    volume = torch.randn(2, 3, 32, 32, 64)
    kept = [31, 63]  # stride 2 with SAME padding takes slices 1, 3, 5 ...; five times
    with torch.no_grad():
        expected = torch.stack([flat(volume[..., k]) for k in kept]).mean(0)
        torch.testing.assert_close(deep(volume), expected, rtol=1e-4, atol=1e-4)


def test_averaged_network_gives_the_slice_s_logits_for_equal_slices(tmp_path, monkeypatch):
    flat, deep = lites(tmp_path, "average", STRIDES)
    for module in deep.modules():  # only the slices beyond the volume's ends differ: make them equal too
        if isinstance(module, nn.Conv3d):
            kernel, stride = module.kernel_size[0], module.stride[0]
            monkeypatch.setattr(module, "padding", (*module.padding[:2], 0))
            before = kernel // 2 if stride == 1 else (kernel - stride) // 2
            module.register_forward_pre_hook(Ends(before, kernel - stride - before, stride))
    plane = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        volume = plane[..., None].expand(-1, -1, -1, -1, 32)
        torch.testing.assert_close(deep(volume), flat(plane), rtol=1e-4, atol=1e-4)


class Ends:
    """Repeats the first and last slice; with a stride, in place of the zeros that were put there."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        self.before, self.after, self.stride = before, after, stride

    def __call__(self, module, inputs):
        image = inputs[0]
        if self.stride > 1:
            image = image[..., self.before : image.shape[-1] - self.after]
        return nn.functional.pad(image, (self.before, self.after, 0, 0, 0, 0), mode="replicate")


def test_averaged_network_in_the_middle_of_a_volume(tmp_path):
    flat, deep = (network.double() for network in lites(tmp_path, "average", [1, 1, 1, 1, 1]))
    plane = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        volume = plane[..., None].expand(-1, -1, -1, -1, 61)  # 30 slices each side; 26 are within reach
        middle = deep.pyramid(volume)[-1][..., 30]
        torch.testing.assert_close(middle, flat.pyramid(plane)[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["centre", "average"])
def test_a_whole_u_net_is_inflated_transposed_convolutions_too(tmp_path, how):
    batch = ("BATCH", {})  # an instance's statistics are those of the volume
    flat, deep = (DynUNet(dims, 1, 2, **U_NET, norm_name=batch).eval() for dims in (2, 3))
    report = load_into(deep, {"weights": saved(flat.state_dict(), tmp_path / "w.pt"), "inflate": how})
    assert (report.missing, report.share) == ([], 1.0)
    plane = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        found = deep(plane[..., None].expand(-1, -1, -1, -1, 64))[..., 32]
        torch.testing.assert_close(found, flat(plane), rtol=1e-4, atol=1e-4)


def test_2d_weights_for_3d_without_a_word_on_how_are_refused_with_the_mend(tmp_path):
    file = saved(EfficientNetLite0(2, 1, 5).state_dict(), tmp_path / "w.pt")
    with pytest.raises(MedlightError, match=r"kernels are 2D, so write pretrained\.inflate: centre"):
        load_into(EfficientNetLite0(3, 1, 5), {"weights": file, "least": 0.99})


def test_transposed_convolutions_that_overlap_are_left_out(tmp_path):
    layers = {"channels": [4, 8], "strides": [2], "num_res_units": 0, "norm": None}
    flat, deep = UNet(2, 1, 2, **layers), UNet(3, 1, 2, **layers)
    report = load_into(deep, {"weights": saved(flat.state_dict(), tmp_path / "w.pt"), "inflate": "average", "least": 0})
    assert any("model.2" in name for name in report.missing)


def test_of_a_teacher_and_its_student_the_teacher_is_taken(tmp_path):
    teacher, student, network = cnn(seed=1), cnn(seed=2), cnn(seed=3)
    state = {f"network.{name}": value for name, value in student.state_dict().items()}
    state |= {f"teacher.module.{name}": value for name, value in teacher.state_dict().items()}
    report = load_into(network, saved({"medlight": {}, "state_dict": state}, tmp_path / "a.ckpt"))
    assert report.unexpected == []
    assert same(snapshot(network), snapshot(teacher))
