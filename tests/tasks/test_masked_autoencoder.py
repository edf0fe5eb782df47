from __future__ import annotations

import pytest
import torch
from monai.networks.nets import ViT

from medlight.errors import UsageError
from medlight.tasks import ClassificationTask, MaskedAutoencoderTask, SegmentationTask, load
from medlight.tasks.masked_autoencoder import hide, patches
from tests.tasks.blobs import CNN, DYNUNET, trainer
from tests.tasks.views import BlobViews, PictureViews

ADAM = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 3e-3}}
SIZES = {"patch_size": 4, "hidden_size": 24, "mlp_dim": 32, "num_layers": 2, "num_heads": 2}
DECODER = {"decoder_hidden_size": 24, "decoder_mlp_dim": 16, "decoder_num_layers": 1, "decoder_num_heads": 2}
MAE = {"class_path": "monai.networks.nets.MaskedAutoEncoderViT", "init_args": SIZES | DECODER}


def fitted(network, data, **settings):
    torch.manual_seed(0)
    task = MaskedAutoencoderTask(network=network, optimizer=ADAM, block=4)
    fit = trainer(**settings)
    fit.fit(task, data)
    return task, fit


@pytest.mark.parametrize("dims", [2, 3])
def test_a_unet_fills_in_and_its_weights_begin_a_segmentation(dims, tmp_path):
    task, fit = fitted(DYNUNET, BlobViews(dims=dims, steps=4), max_epochs=4)
    assert {name for name in task.logged_metrics() if not name.startswith("test/")} == set(fit.callback_metrics)
    fit.save_checkpoint(tmp_path / "last.ckpt")
    assert isinstance(load(tmp_path / "last.ckpt"), MaskedAutoencoderTask)
    begun = SegmentationTask(
        network=DYNUNET, data=BlobViews(dims=dims).signature(), pretrained=str(tmp_path / "last.ckpt")
    )
    begun.configure_model()
    report = begun.pretrained_report
    assert report.share > 0.9
    assert report.missing
    assert all("output_block" in name or "head" in name for name in report.missing), report.missing


def test_the_loss_looks_at_hidden_voxels_alone():
    data = BlobViews()
    task = MaskedAutoencoderTask(network=DYNUNET, data=data.signature(), block=4)
    task.configure_model()
    task.eval()
    image = next(iter(data.val_dataloader()))["image"][:2]
    torch.manual_seed(3)
    predicted, truth, hidden = task._fill_in(image)
    assert hidden.float().mean() == pytest.approx(round(0.6 * 64) / 64)
    expected = ((predicted - image)[hidden] ** 2).mean()
    torch.testing.assert_close(task._loss(predicted, truth, hidden), expected)
    torch.manual_seed(3)
    again = task._fill_in(torch.where(hidden, 99.0, image))[0]
    assert torch.equal(again, predicted)  # what is hidden can't be seen


def test_validation_hides_the_same_blocks_however_samples_are_batched():
    data = PictureViews()
    task = MaskedAutoencoderTask(network=MAE, data=data.signature())
    task.configure_model()
    task.eval()
    image = torch.stack([data.picture(index)["image"] for index in range(6)])
    with torch.no_grad():
        whole = task.measure({"image": image})["losses"]
        parts = torch.cat([task.measure({"image": part})["losses"] for part in (image[:1], image[1:])])
    assert torch.equal(whole, parts)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_masked_autoencoder_vit_begins_a_vit(dims, tmp_path):
    task, fit = fitted(MAE, PictureViews(dims=dims))
    assert {name for name in task.logged_metrics() if not name.startswith("test/")} == set(fit.callback_metrics)
    fit.save_checkpoint(tmp_path / "last.ckpt")
    vit = {"class_path": "monai.networks.nets.ViT", "init_args": SIZES}
    begun = ClassificationTask(
        network=vit, data=PictureViews(dims=dims).signature(), pretrained=str(tmp_path / "last.ckpt")
    )
    begun.configure_model()
    missing = begun.pretrained_report.missing
    assert isinstance(begun.network, ViT)
    assert {name.split(".")[0] for name in missing} == {"norm", "classification_head"}
    name = "blocks.1.mlp.linear1.weight"
    assert torch.equal(begun.network.state_dict()[name], task.network.state_dict()[name])


@pytest.mark.parametrize("size", [(2, 3), (2, 3, 4)])
def test_patches_are_in_the_order_of_tokens(size):
    torch.manual_seed(0)
    image = torch.randn(2, 3, *[3 * n for n in size])
    conv = (torch.nn.Conv2d if len(size) == 2 else torch.nn.Conv3d)(3, 5, size, size, bias=False)
    tokens = conv(image).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches(image, size) @ conv.weight.flatten(1).T, tokens)


def test_as_many_blocks_are_hidden_in_each_sample():
    assert hide(5, [3, 4], 0.5).sum(dim=(1, 2, 3)).tolist() == [6] * 5
    assert hide(2, [2], 0.99).sum().item() == hide(2, [2], 0.01).sum().item() == 2
    assert not torch.equal(hide(1, [8, 8], 0.5), hide(1, [8, 8], 0.5))


def test_what_cannot_fill_in_is_refused():
    data = PictureViews().signature()
    with pytest.raises(UsageError, match="puts out images"):
        MaskedAutoencoderTask(network=CNN, data=data).configure_model()
    with pytest.raises(UsageError, match="one block"):
        MaskedAutoencoderTask(network=DYNUNET, data=BlobViews().signature(), block=16).configure_model()
    for given, said in (({"mask_ratio": 1.0}, "mask_ratio"), ({"block": 0}, "block")):
        with pytest.raises(UsageError, match=said):
            MaskedAutoencoderTask(**given)
