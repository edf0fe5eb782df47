"""The networks whose export is tested and told of in the documentation, each small enough to be made in seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

OUTPUTS = 3
_NETS = "monai.networks.nets"


@dataclass(frozen=True)
class Example:
    """A network as a configuration names it, and what it is shown.

    spec: ``{class_path, init_args}``; what the data decides is left out.
    window: voxels along each axis.
    classifies: gives one row of probabilities for a whole image, not for each voxel.
    fixed: an image of another size is not taken, once it is exported (position embeddings, fixed reshapes).
    """

    spec: dict[str, Any]
    spatial_dims: int
    window: list[int]
    classifies: bool = False
    fixed: bool = False
    channels: list[str] = field(default_factory=lambda: ["image"])

    @property
    def free_axes(self) -> list[str]:
        """Axes of the exported input that may have another size."""
        return ["batch"] if self.fixed else ["batch", *"ijk"[: self.spatial_dims]]

    def signature(self) -> dict[str, Any]:
        """Return the signature of data that the network is built for."""
        preparation = {"spacing": [1.0] * 3}
        size = [*self.window, 1][:3]
        return {
            "spatial_dims": self.spatial_dims,
            "channels": self.channels,
            "patch_size": size,
            "preparation": preparation,
        }

    def module(self) -> nn.Module:
        """Build what leaves the house: the network with fixed random weights, softmax inside."""
        import torch

        from medlight import networks
        from medlight.tasks.deployable import Deployable
        from medlight.tasks.exact_norm import write_out_norms

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = networks.build(self.spec, self.signature(), OUTPUTS)
            _see(network, torch.randn(4, len(self.channels), *self.window))
        write_out_norms(network)
        return Deployable(network, "softmax", self.spatial_dims).float().eval()


def _see(network: nn.Module, images: Tensor) -> None:
    """Let batch normalisations take their statistics from images: without any, what deep networks say is constant."""
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return
    for norm in norms:
        norm.momentum = None  # a plain mean
    with torch.no_grad():
        network.train()(images)


def _example(
    name: str, dims: int, window: int, classifies: bool = False, *, fixed: bool = False, **arguments: Any
) -> Example:
    spec = {"class_path": f"{_NETS}.{name}", "init_args": arguments}
    return Example(spec, dims, [window] * dims, classifies, fixed)


_UNET: dict[str, Any] = {"channels": [8, 16, 32], "strides": [2, 2]}
_DYNUNET: dict[str, Any] = {
    "filters": [8, 16, 32],
    "strides": [1, 2, 2],
    "kernel_size": [3, 3, 3],
    "upsample_kernel_size": [2, 2],
}
_TRANSFORMER: dict[str, Any] = {"hidden_size": 48, "mlp_dim": 96, "num_heads": 4}

ZOO: dict[str, Example] = {
    "residual-encoder U-Net": _example("DynUNet", 3, 32, res_block=True, **_DYNUNET),
    "DynUNet": _example("DynUNet", 3, 32, **_DYNUNET),
    "SegResNet": _example("SegResNet", 3, 32, init_filters=8, blocks_down=[1, 2, 2], blocks_up=[1, 1]),
    "UNet": _example("UNet", 3, 32, num_res_units=2, **_UNET),
    "AttentionUnet": _example("AttentionUnet", 3, 32, **_UNET),
    "VNet": _example("VNet", 3, 32),
    "SwinUNETR": _example("SwinUNETR", 3, 64, fixed=True, feature_size=12, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8]),
    "UNETR": _example("UNETR", 3, 32, fixed=True, feature_size=8, **_TRANSFORMER),
    "ResNet": _example("ResNet", 3, 32, True, block="basic", layers=[1, 1, 1, 1], block_inplanes=[8, 16, 32, 64]),
    "DenseNet": _example("DenseNet", 3, 32, True, init_features=16, growth_rate=8, block_config=[2, 2, 2]),
    "EfficientNet": _example("EfficientNetBN", 3, 64, True, model_name="efficientnet-b0"),
    "ViT": _example("ViT", 3, 32, True, fixed=True, patch_size=[16, 16, 16], num_layers=2, **_TRANSFORMER),
}
