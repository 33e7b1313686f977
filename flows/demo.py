"""`gigamask demo`: from nothing to masks and reports, on scenes and a slide made up for it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from flows import console, views
from flows.here import night, words
from pipeline.card import CARD_NAME
from pipeline.config import load_config

SCENES, SLIDES = "demo.yaml", "slides.yaml"


def run_demo(folder: Path, *, prefect: bool) -> int:
    """Make scenes and slides, train on both, run both nights; the higher exit code. What is there already is used again."""
    started = time.monotonic()
    code = max(_scenes(folder, prefect=prefect), _slides(folder))
    night_again = words("run", folder / "configs" / SCENES, None)
    views.OUT.print(f"the whole demo took {time.monotonic() - started:.0f} s; run it again, or: {night_again}")
    return code


def _scenes(folder: Path, *, prefect: bool) -> int:
    """A night over two satellite scenes."""
    from pipeline.demo.scenes import colour_only_miou, make_scenes

    started = time.monotonic()
    config = _config(folder, SCENES)
    scenes = make_scenes(folder / "demo" / "scenes")
    views.OUT.print(f"{len(scenes)} scenes in {folder / 'demo' / 'scenes'}, after {time.monotonic() - started:.0f} s")
    code = _trained_night(config, prefect=prefect)
    training = [path for path in scenes if path.stem.startswith("train")]
    nightly = [path for path in scenes if path.stem.startswith("night")]
    views.OUT.print(f"what colour alone can tell: mIoU {colour_only_miou(training, nightly):.4f}")
    return code


def _slides(folder: Path) -> int:
    """A night over one slide, without Prefect, and its mask for QuPath."""
    from flows.export_views import export, show_exported
    from pipeline.demo.slides import make_slides

    started = time.monotonic()
    config = _config(folder, SLIDES)
    slides = make_slides(folder / "demo" / "slides")
    views.OUT.print(f"{len(slides)} slides in {folder / 'demo' / 'slides'}, after {time.monotonic() - started:.0f} s")
    code = _trained_night(config, prefect=False)
    for store in sorted((folder / "demo" / "slides_output" / "masks").glob("*/*.zarr")):
        with console.progress() as progress:
            polygons = {"min_area": "500um2", "tolerance": "2um"}
            exported = export(store, "geojson", None, polygons, progress, overwrite=True)
        show_exported(exported, as_json=False)
    return code


def _trained_night(config: Path, *, prefect: bool) -> int:
    """Train the configuration's model, if there is none yet, and run its night; the exit code."""
    if not (load_config(config).model.path / CARD_NAME).exists():
        from flows.learn import train_one

        with console.training() as (report, say):
            views.show_trained(train_one(config, None, {}, report, say), as_json=False)
    with console.progress() as progress:
        exit_code, run = night(config, None, None, progress, prefect=prefect)
    views.show_run(run, exit_code, as_json=False)
    return exit_code


def _config(folder: Path, name: str) -> Path:
    """The demo's configuration `name` in `folder`; put there if it is not."""
    config = folder / "configs" / name
    if not config.exists():
        config.parent.mkdir(parents=True, exist_ok=True)
        packaged = Path(__file__).parent / name
        shutil.copyfile(packaged if packaged.exists() else Path(__file__).parent.parent / "configs" / name, config)
    return config
