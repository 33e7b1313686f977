"""What the benchmarks are run on: images of any size that take no disk, and models that cost nothing or the usual."""

from __future__ import annotations

import hashlib
import json
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

TILE = 512
COLORS = ("#000000", "#E69F00", "#009E73", "#0072B2", "#CC79A7")
NAMES = ("background", "building", "road", "vegetation", "water")


def texture(side: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Made-up ground (3, side, side) uint8 with detail of every size, which JPEG must work on as on a photograph."""
    rng = np.random.default_rng(seed)
    total = np.zeros((3, side, side), np.float32)
    step = side
    while step >= 2:
        coarse = rng.normal(0, step**0.2, (3, side // step + 1, side // step + 1)).astype(np.float32)
        total += np.kron(coarse, np.ones((step, step), np.float32))[:, :side, :side]
        step //= 2
    low, high = np.percentile(total, (1, 99))
    return np.clip((total - low) / (high - low) * 255, 0, 255).astype(np.uint8)


def endless(path: Path, height: int, width: int, *, distinct: int = 4) -> Path:
    """A tiled JPEG BigTIFF of `height` x `width` px that holds `distinct` squared tiles only, again and again.

    Every read decodes as in any other file; only that many tiles share their bytes. 65536 x 65536 px take some megabytes.
    """
    side = distinct * TILE
    small = path.with_name(f"{path.stem}.pattern.tif")
    layout = {"tiled": True, "blockxsize": TILE, "blockysize": TILE, "compress": "JPEG", "photometric": "YCBCR"}
    with rasterio.open(small, "w", driver="GTiff", height=side, width=side, count=3, dtype="uint8", BIGTIFF="YES", **layout) as f:
        f.write(texture(side))
    pattern = small.read_bytes()
    tags = _tags(pattern)
    rows, cols = -(-height // TILE), -(-width // TILE)
    offsets, counts = np.array(tags[324][2], np.uint64), np.array(tags[325][2], np.uint64)
    place = (np.arange(rows)[:, None] % distinct * distinct + np.arange(cols) % distinct).reshape(-1)
    changed = {256: (4, [width]), 257: (4, [height]), 324: (16, offsets[place].tolist()), 325: (16, counts[place].tolist())}
    body, entries = bytearray(pattern), []
    for tag, (kind, count, values) in sorted(tags.items()):
        if tag in changed:
            kind, values = changed[tag]
            count = len(values)
        raw = struct.pack(f"<{count}{_FORMATS[kind]}", *values)
        if len(raw) > 8:
            start = len(body)
            body += raw
            raw = struct.pack("<Q", start)
        entries.append(struct.pack("<HHQ", tag, kind, count) + raw.ljust(8, b"\0"))
    directory = len(body)
    body += struct.pack("<Q", len(entries)) + b"".join(entries) + struct.pack("<Q", 0)
    body[8:16] = struct.pack("<Q", directory)
    path.write_bytes(body)
    small.unlink()
    return path


_FORMATS = {1: "B", 2: "c", 3: "H", 4: "I", 5: "Q", 7: "B", 12: "d", 16: "Q"}


def _tags(tiff: bytes) -> dict[int, tuple[int, int, list[Any]]]:
    """Tag -> (type, count, values) of the first directory of a little-endian BigTIFF (TIFF 6.0, and Aldus's BigTIFF)."""
    (at,) = struct.unpack_from("<Q", tiff, 8)
    (entries,) = struct.unpack_from("<Q", tiff, at)
    found = {}
    for i in range(entries):
        tag, kind, count = struct.unpack_from("<HHQ", tiff, at + 8 + 20 * i)
        size = struct.calcsize(f"<{count}{_FORMATS[kind]}")
        (start,) = struct.unpack_from("<Q", tiff, at + 20 + 20 * i) if size > 8 else (at + 20 + 20 * i,)
        found[tag] = kind, count, list(struct.unpack_from(f"<{count}{_FORMATS[kind]}", tiff, start))
    return found


def card_facts(name: str, adapter: str, weights: str | None, **more: Any) -> dict[str, Any]:
    """A card for three bands of uint8 and five classes, with tiles of 512 px and an overlap of 128."""
    return {
        "name": name,
        "adapter": adapter,
        "weights": weights,
        "bands": ["red", "green", "blue"],
        "dtype": "uint8",
        "scaling": {"offset": [127.5] * 3, "divisor": [127.5] * 3},
        "classes": [{"name": n, "color": c} for n, c in zip(NAMES, COLORS, strict=True)],
        "tile": 512,
        "overlap": 128,
        "translation_invariant": True,
    } | more


def null_model(folder: Path) -> Path:
    """A model folder whose network is a 1 x 1 convolution: what is timed with it is all that is not the model.

    The same network lies beside it as TorchScript, `network.pt`, for programs that take that.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 5, 1).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(network, torch.zeros(1, 3, 64, 64)), str(folder / "network.pt"))
        batch, side = torch.export.Dim("batch"), torch.export.Dim("side", min=2)
        shape = {0: batch, 2: side, 3: side}
        torch.export.save(
            torch.export.export(network, (torch.zeros(2, 3, 64, 64),), dynamic_shapes=(shape,)), folder / "model.pt2"
        )
    digest = hashlib.sha256((folder / "model.pt2").read_bytes()).hexdigest()
    card = card_facts("null", "exported", "model.pt2", weights_sha256=digest, multiple_of=1, activation_bytes_per_pixel=40)
    (folder / "model.json").write_text(json.dumps(card, indent=1))
    return folder


def usual_model(folder: Path, encoder: str = "resnet18") -> Path:
    """A model folder with a U-Net of random weights: what a forward pass costs, not what it is worth."""
    import torch

    from pipeline.card import ModelCard
    from pipeline.models import save_model
    from pipeline.models.smp import build

    torch.manual_seed(0)
    architecture = {"name": "Unet", "encoder": encoder}
    card = ModelCard.model_validate(card_facts(f"unet-{encoder}", "smp", "model.safetensors", architecture=architecture))
    save_model(folder, card, build(card))
    return folder
