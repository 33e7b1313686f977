"""`gigamask train`: a configuration file, options, or both become one training."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Config, config_of, load_config
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.train import Trained
    from pipeline.train.loop import Step


def train_one(
    config: Path | None,
    root: Path | None,
    options: dict[str, Any],
    report: Callable[[Step, float], None],
    say: Callable[[str], None],
) -> Trained:
    """Train from a configuration file, from options alone, or from a file with options in its place."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait by spinning starve each other on a busy machine
    settings = training_config(config, root, {k: v for k, v in options.items() if v is not None})
    from pipeline.train import train

    return train(settings, report, say)


def training_config(path: Path | None, root: Path | None, options: dict[str, Any]) -> Config:
    """The configuration of a training; ConfigError in well under a second where it is wrong."""
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
