"""The memory of a forward pass, found without computing it: tensors without content, counted while they live."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WORKSPACE = 2.2
"""What a process grows by, for each byte of tensors alive at the peak: convolutions reorder their input and output, and freed
memory is not at once used again. Measured on the CPU in float32 with tiles of 512 px, several runs each: Unet resnet18 1.2 to
1.7, Unet mobilenetv3_small 1.5 to 2.2, DeepLabV3Plus efficientnet-b0 1.3 to 1.8, Segformer mit_b0 1.6 to 1.8, FPN resnet50 1.5;
in bfloat16 below 1."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors made under it that are still alive, and their peak."""

    def __init__(self, known: Tensor) -> None:
        """`known` is the input: it is there before, and not counted."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = _storage(known)
        self._sizes: dict[Any, int] = {}
        self.peak = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        answer = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(answer):
            if isinstance(leaf, Tensor):
                storage = _storage(leaf)
                if storage != self._known and (storage in self._sizes or storage not in given):
                    self._sizes[storage] = leaf.untyped_storage().nbytes()
        self.peak = max(self.peak, self.live)
        return answer

    @property
    def live(self) -> int:
        """Bytes alive now."""
        self._sizes = {storage: size for storage, size in self._sizes.items() if not storage.expired()}
        return sum(self._sizes.values())


def activation_bytes_per_pixel(module: nn.Module, bands: int, tile: int, classes: int) -> float:
    """Memory of one forward pass in float32, weights and input left out, in bytes per input pixel: an upper bound.

    The peak of tensors alive, times WORKSPACE, on one tile of `bands` bands and `tile` px. Outputs are counted together with
    scores of `classes` classes made from them.
    """
    training, device = module.training, next((p.device for p in module.parameters()), torch.device("cpu"))
    module.eval()
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            batch = torch.empty(1, bands, tile, tile, device=device)
            with LiveBytes(batch) as count:
                outputs = module(batch)
                after = count.live
            del outputs
    finally:
        module.train(training)
    peak: int = max(count.peak, after + 4 * classes * tile * tile)
    return WORKSPACE * peak / (tile * tile)


def _storage(tensor: Tensor) -> Any:
    """A weak reference to what holds the content of `tensor`; equal for all views of it."""
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
