"""Folding batch normalisation changes what a network costs, not what it answers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pipeline.models.fuse import fuse


def trained(network: nn.Module) -> nn.Module:
    """With statistics as after a training: means and variances of their own in every layer."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features)
            module.running_var = torch.rand(module.num_features) + 0.5
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return network.eval()


class Layers(nn.Module):
    """conv, norm, relu, conv, norm; `look` shows the first convolution's output to someone else too."""

    def __init__(self, *, look: bool = False, twice: bool = False) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.look, self.twice = look, twice

    def forward(self, x: Tensor) -> Tensor:
        first = self.conv1(x)
        y = self.norm2(self.conv2(torch.relu(self.norm1(first))))
        if self.twice:
            y = self.norm2(self.conv2(y))
        return y + first if self.look else y


def norms(network: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())


def answers_alike(network: nn.Module, other: nn.Module) -> bool:
    batch = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        one, two = network(batch), other(batch)
    return bool((one - two).abs().max() < 1e-4 * one.abs().max())


def test_every_normalisation_of_a_unet_is_folded() -> None:
    import segmentation_models_pytorch as smp

    network = trained(smp.Unet("resnet18", encoder_weights=None, classes=3))
    fused = fuse(copy.deepcopy(network), 3, 64)

    assert (norms(network), norms(fused)) == (30, 0)
    assert answers_alike(network, fused)


@pytest.mark.parametrize(("layers", "left"), [({}, 0), ({"twice": True}, 1), ({"look": True}, 2)])
def test_what_is_used_elsewhere_stays(layers: dict[str, bool], left: int) -> None:
    network = trained(Layers(**layers))
    fused = fuse(copy.deepcopy(network), 3, 32)

    assert norms(fused) == left
    assert answers_alike(network, fused)
