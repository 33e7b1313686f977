"""TIAToolbox around a model: its SemanticSegmentor over its own reader, tiles averaged, the likeliest class, labels in its Zarr.

    .venv-peers/bin/python tests/benchmarks/peers/tiatoolbox_engine.py IMAGE.tif MODEL.pt --threads 2 --out FOLDER

Where it leaves a choice, the faster one: no tissue mask; probabilities not kept; no spilling to disk below 95 % of the memory; as
many loaders and dask threads as torch threads (none beside the process where `--threads` is 1); classes taken block by block as
uint8, where its own models take them by dask's argmax as int64. `WSIReader.open` chooses the reader: `TIFFWSIReader` for a TIFF
of one page or a BigTIFF, the whole image in memory of each loader for a COG with overviews; either takes half
as long a tile as OpenSlide. Peak memory is that of the process without its loaders.
With `--usual` the engine has its own defaults, as the examples of its documentation do: batches of 8, no loaders, spilling above
80 %, and classes as its own models take them. Without a tissue mask all the same, which would spare it parts of the image.
"""

from __future__ import annotations

import logging
from pathlib import Path

import dask.array
import numpy as np
import tiatoolbox
import torch
from numpy.typing import NDArray
from shared import CENTRE, SPREAD, Segment, Work, measure
from tiatoolbox.models.architecture.utils import argmax_last_axis
from tiatoolbox.models.engine.io_config import IOSegmentorConfig
from tiatoolbox.models.engine.semantic_segmentor import SemanticSegmentor
from tiatoolbox.models.models_abc import ModelABC

NATIVE = [{"units": "baseline", "resolution": 1.0}]
SPILL = 95
"""Percentage of memory in use above which TIAToolbox spills to disk; its default is 80."""


class Network(ModelABC):
    """A TorchScript network as TIAToolbox wants it: uint8 (n, h, w, 3) to probabilities (n, h, w, classes), these to classes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.network = torch.jit.load(path, map_location="cpu").eval()

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Logits (n, classes, h, w)."""
        return self.network(samples)

    @staticmethod
    def infer_batch(model: torch.nn.Module, batch_data: torch.Tensor, *, device: str) -> NDArray[np.float32]:
        """Probabilities (n, h, w, classes) of a batch as the data loader gives it."""
        with torch.inference_mode():
            samples = batch_data.to(device=device, dtype=torch.float32).sub_(CENTRE).div_(SPREAD).permute(0, 3, 1, 2)
            return model(samples).softmax(1).permute(0, 2, 3, 1).numpy()

    @staticmethod
    def postproc(image: dask.array.Array) -> dask.array.Array:
        """The likeliest class (h, w) of merged probabilities (h, w, classes)."""
        return image.map_blocks(lambda block: block.argmax(-1).astype(np.uint8), drop_axis=2, dtype=np.uint8)


class UsualNetwork(Network):
    """The same, with the class taken as by TIAToolbox's own models."""

    @staticmethod
    def postproc(image: dask.array.Array) -> dask.array.Array:
        """The likeliest class (h, w), by dask's argmax."""
        return argmax_last_axis(image)


def prepare(work: Work) -> Segment:
    """Load the model into the engine."""
    torch.set_num_threads(work.threads)
    tiatoolbox.logger.setLevel(logging.ERROR)
    tiatoolbox.rcParam["torch_compile_mode"] = "disable"
    if work.usual:
        engine, spill = SemanticSegmentor(UsualNetwork(work.model), device="cpu", verbose=False), {}
    else:
        loaders, spill = work.threads if work.threads > 1 else 0, {"memory_threshold": SPILL}
        engine = SemanticSegmentor(Network(work.model), batch_size=work.batch, num_workers=loaders, device="cpu", verbose=False)
    layout = IOSegmentorConfig(
        input_resolutions=NATIVE,
        output_resolutions=NATIVE,
        save_resolution=NATIVE[0],
        patch_input_shape=(work.tile, work.tile),
        patch_output_shape=(work.tile, work.tile),
        stride_shape=(work.tile - work.overlap, work.tile - work.overlap),
    )

    def segment(image: Path, folder: Path) -> Path:
        stores = engine.run(
            [image],
            patch_mode=False,
            ioconfig=layout,
            save_dir=folder,
            output_type="zarr",
            auto_get_mask=False,
            **spill,
        )
        return stores[image] / "predictions"

    return segment


if __name__ == "__main__":
    measure("TIAToolbox", tiatoolbox.__version__, prepare)
