"""MONAI around a model: the whole image into memory, `sliding_window_inference`, the class of the highest logit, labels on disk.

    .venv-peers/bin/python tests/benchmarks/peers/monai_window.py IMAGE.tif MODEL.pt --threads 2 --out FOLDER

Where it leaves a choice, the faster one: the file decoded by several threads; logits blended, no softmax; `max` along the
classes, which takes a fifth of the time of `argmax`; labels as one uncompressed file. `--batch` from 1 to 8 makes no difference.
With `--usual` one thread decodes the file, and MONAI's own `AsDiscrete(argmax=True)` finds the classes, as its tutorials do.
"""

from __future__ import annotations

from pathlib import Path

import monai
import numpy as np
import rasterio
import torch
from monai.inferers import sliding_window_inference
from monai.transforms import AsDiscrete
from shared import CENTRE, SPREAD, Segment, Work, measure


def prepare(work: Work) -> Segment:
    """Load the model."""
    torch.set_num_threads(work.threads)
    model = torch.jit.load(work.model, map_location="cpu").eval()

    @torch.inference_mode()
    def segment(image: Path, folder: Path) -> Path:
        with rasterio.open(image, num_threads=1 if work.usual else work.threads) as file:
            samples = torch.from_numpy(file.read())
        logits = sliding_window_inference(
            samples[None].float().sub_(CENTRE).div_(SPREAD),
            roi_size=(work.tile, work.tile),
            sw_batch_size=work.batch,
            predictor=model,
            overlap=work.overlap / work.tile,
            mode="gaussian",
        )
        labels = AsDiscrete(argmax=True)(logits[0])[0] if work.usual else logits.max(dim=1).indices[0]
        labels = torch.as_tensor(labels).to(torch.uint8)
        folder.mkdir(parents=True)
        np.save(folder / "labels.npy", labels.numpy())
        return folder / "labels.npy"

    return segment


if __name__ == "__main__":
    measure("MONAI", monai.__version__, prepare)
