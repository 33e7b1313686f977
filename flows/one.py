"""Commands on one image: their options become the same configuration that a file would give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.config import LocalCluster, SerialCluster, TruthConfig, config_of
from pipeline.errors import ConfigError
from pipeline.report.contract import RunReport
from pipeline.shop import Progress
from pipeline.single import Segmented, evaluate_one, segment_one


def segment(settings: dict[str, Any], out: Path, progress: Progress) -> Segmented:
    """Segment the image that `settings`, the content of a configuration, names."""
    config = config_of(settings, Path.cwd(), "gigamask segment")
    if out.suffix != ".zarr":
        raise ConfigError(f"--out {out}: a mosaic is a folder that ends in .zarr")
    return segment_one(config, Path(settings["archive"]["images"]), out.resolve(), progress)


def evaluate(store: Path, truth: Path, settings: dict[str, Any], workers: int, out: Path | None) -> RunReport:
    """Score a mosaic."""
    try:
        config = TruthConfig.model_validate(settings)
    except ValidationError as e:
        lines = [f"gigamask evaluate: {'.'.join(map(str, x['loc']))}: {x['msg']} (given: {x['input']!r})" for x in e.errors()]
        raise ConfigError("\n".join(lines)) from e
    cluster = LocalCluster(workers=workers) if workers else SerialCluster(type="serial")
    return evaluate_one(store.resolve(), truth, config, cluster, out)
