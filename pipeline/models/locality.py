"""Whether a network looks at a pixel's surroundings only: every operation it consists of is asked, without computing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

LOCAL = frozenset(
    {
        *("convolution", "cat", "stack", "split", "split_with_sizes", "constant_pad_nd", "pixel_shuffle"),
        *("native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit"),
        *("max_pool2d_with_indices", "avg_pool2d", "upsample_nearest2d", "upsample_bilinear2d"),
        *("hardswish", "hardswish_"),  # on each element alone, and not marked so
        *("slice", "select", "detach", "alias", "clone", "_to_copy", "empty", "empty_like", "zeros_like", "lift_fresh"),
    }
)
"""Operations, beside those on each element alone, whose result at a place follows from a neighbourhood of fixed size, the same
everywhere. What is not listed (means over rows and columns, products of matrices, group norms, ...) may mix the whole tile."""


class NotLocal(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operations under it that may look across the whole tile."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[str, None] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "_schema").name.removeprefix("aten::")  # noqa: B009
        pointwise = torch.Tag.pointwise in getattr(func, "tags", ())
        if not pointwise and not name.startswith("prim::") and (name not in LOCAL or _across(func, name, args, kwargs or {})):
            self.found[name] = None
        return func(*args, **(kwargs or {}))


def looks_across(module: nn.Module, bands: int, tile: int) -> list[str]:
    """Operations of `module` that may make its answer at a pixel depend on the whole tile; empty where it is translation
    invariant up to its stride and a tile's border.

    Squeeze-and-excitation, pyramid pooling, attention and group norms mix all pixels; upsampling with aligned corners shifts
    them by how far they are from the tile's middle.
    """
    training, device = module.training, next((p.device for p in module.parameters()), torch.device("cpu"))
    module.eval()
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            batch = torch.empty(1, bands, tile, tile, device=device)
            with NotLocal() as watch:
                module(batch)
    finally:
        module.train(training)
    return list(watch.found)


def _across(func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation of LOCAL is called so that it spans the tile, or treats its places differently."""
    names = [argument.name for argument in getattr(func, "_schema").arguments]  # noqa: B009
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if name == "upsample_bilinear2d":
        return bool(given.get("align_corners"))
    if "batch_norm" in name:
        return bool(given.get("training", False))
    if name in ("avg_pool2d", "max_pool2d_with_indices"):
        source = given["self"]
        assert isinstance(source, Tensor)
        return any(2 * k > side for k, side in zip(given["kernel_size"], source.shape[2:], strict=False))
    return False
