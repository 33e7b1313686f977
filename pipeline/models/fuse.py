"""Batch normalisation folded into the convolution before it: the same function with fewer passes over memory."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

TOLERANCE = 1e-3
"""Largest change of an output, as a share of the largest output, that rounding can explain."""


def fuse(network: nn.Module, bands: int, side: int) -> nn.Module:
    """`network` (in eval mode, float32, on the CPU) with every batch normalisation folded into the convolution that feeds it.

    In place. Who feeds whom is seen from one pass over random numbers, (1, bands, side, side); layers that are used more than
    once stay as they are. Should the outputs then differ by more than rounding, the network is put back as it was.
    """
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(1, bands, side, side, generator=generator)
    pairs, before = _pairs(network, batch)
    names = {module: name for name, module in network.named_modules()}
    for conv, norm in pairs:
        _replace(network, names[conv], fuse_conv_bn_eval(conv, norm))
        _replace(network, names[norm], nn.Identity())
    with torch.no_grad():
        after = network(batch)
    if (after - before).abs().max() > TOLERANCE * before.abs().max():
        for conv, norm in pairs:
            _replace(network, names[conv], conv)
            _replace(network, names[norm], norm)
    return network


def _pairs(network: nn.Module, batch: Tensor) -> tuple[list[tuple[nn.Conv2d, nn.BatchNorm2d]], Tensor]:
    """(convolutions and what normalises them, the network's answer to `batch`)."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    found: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    calls: Counter[nn.Module] = Counter()

    def note_conv(module: nn.Conv2d, _: Any, output: Tensor) -> None:
        calls[module] += 1
        made[id(output)] = module, output  # kept, so that its id stays its own

    def note_norm(module: nn.BatchNorm2d, inputs: tuple[Tensor], _: Any) -> None:
        calls[module] += 1
        if (source := made.get(id(inputs[0]))) is not None:
            found.append((source[0], module))

    hooks = [m.register_forward_hook(note_conv) for m in network.modules() if type(m) is nn.Conv2d]
    hooks += [m.register_forward_hook(note_norm) for m in network.modules() if type(m) is nn.BatchNorm2d]
    try:
        with torch.no_grad():
            answer = network(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return [(conv, norm) for conv, norm in found if calls[conv] == calls[norm] == 1], answer


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, module)
