"""`gigamask demo`: from nothing to masks and a report, on scenes made up for it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from flows import console, views
from flows.here import night
from pipeline.card import CARD_NAME
from pipeline.config import load_config
from pipeline.demo import colour_only_miou, make_scenes

CONFIG = "configs/demo.yaml"


def run_demo(folder: Path, *, prefect: bool) -> int:
    """Make the scenes, train, run the night; the exit code. What is there already is used again."""
    started = time.monotonic()
    config = _config(folder)
    scenes = make_scenes(folder / "demo" / "scenes")
    views.OUT.print(f"{len(scenes)} scenes in {folder / 'demo' / 'scenes'}, after {time.monotonic() - started:.0f} s")
    if not (load_config(config).model.path / CARD_NAME).exists():
        from flows.learn import train_one

        with console.training() as (report, say):
            views.show_trained(train_one(config, None, {}, report, say), as_json=False)
    with console.progress() as progress:
        exit_code, run = night(config, None, None, progress, prefect=prefect)
    views.show_run(run, exit_code, as_json=False)
    training = [path for path in scenes if path.stem.startswith("train")]
    nightly = [path for path in scenes if path.stem.startswith("night")]
    views.OUT.print(f"what colour alone can tell: mIoU {colour_only_miou(training, nightly):.4f}")
    views.OUT.print(f"the whole demo took {time.monotonic() - started:.0f} s; run it again, or: gigamask run {config}")
    return exit_code


def _config(folder: Path) -> Path:
    """The demo's configuration in `folder`; put there if it is not."""
    config = folder / CONFIG
    if not config.exists():
        config.parent.mkdir(parents=True, exist_ok=True)
        packaged = Path(__file__).parent / "demo.yaml"
        shutil.copyfile(packaged if packaged.exists() else Path(__file__).parent.parent / CONFIG, config)
    return config
