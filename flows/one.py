"""Commands on one image or one model: their options become the same configuration that a file would give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.config import Config, LocalCluster, SerialCluster, TruthConfig, config_of, load_config
from pipeline.errors import ConfigError
from pipeline.process import Progress
from pipeline.report.contract import RunReport
from pipeline.single import Segmented, evaluate_one, segment_one
from pipeline.train import Trained, train
from pipeline.train.loop import Step


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


def train_one(
    config: Path | None,
    root: Path | None,
    options: dict[str, Any],
    report: Callable[[Step, float], None],
    say: Callable[[str], None],
) -> Trained:
    """Train from a configuration file, from options alone, or from a file with options in its place."""
    return train(_training_config(config, root, {k: v for k, v in options.items() if v is not None}), report, say)


def _training_config(path: Path | None, root: Path | None, options: dict[str, Any]) -> Config:
    if path is None:
        missing = [f"--{name}" for name in ("images", "labels", "out") if name not in options]
        if missing:
            raise ConfigError(f"gigamask train: give a configuration file, or {', '.join(missing)} too")
        settings = {
            "name": "train",
            "output": str(options["out"]),
            "archive": {"images": options["images"]},
            "truth": {"pattern": options["labels"], "ignore": options.get("ignore", [])},
            "model": {"path": str(options["out"])},
            "train": {"images": options["images"], **({"minutes": options["minutes"]} if "minutes" in options else {})},
        }
        return config_of(settings, Path.cwd(), "gigamask train")
    loaded = load_config(path, root=root)
    if loaded.train is None:
        raise ConfigError(f"{path}: train: is missing: say which labelled images to learn from")
    changes: dict[str, Any] = {}
    if "minutes" in options:
        changes["minutes"] = options["minutes"]
    if "images" in options:
        changes["images"] = str(Path(options["images"]).absolute())
    if "labels" in options:
        changes["labels"] = str(Path(options["labels"]).absolute())
    update: dict[str, Any] = {"train": loaded.train.model_copy(update=changes)}
    if "out" in options:
        update["model"] = loaded.model.model_copy(update={"path": Path(options["out"]).absolute()})
    if "ignore" in options:
        update["truth"] = loaded.truth.model_copy(update={"ignore": options["ignore"]})
    return loaded.model_copy(update=update)
