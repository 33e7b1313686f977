"""The command line: `gigamask --help`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import __version__
from pipeline.errors import ConfigError, GigamaskError

app = typer.Typer(
    name="gigamask",
    help="Segment imagery too large to open: an archive of rasters or slides in, seamless Zarr masks and an honest report out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's own help costs three times as long to import as all the rest
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 all well, 1 something failed (named), 2 wrong usage, configuration or model, 3 a gate failed, 4 a gate "
    "is inconclusive; the first of 1, 3, 4 that applies. 130, 143: interrupted.",
)
config_app = typer.Typer(help="The configuration file.", no_args_is_help=True)
app.add_typer(config_app, name="config")
model_app = typer.Typer(help="A model folder.", no_args_is_help=True)
app.add_typer(model_app, name="model")
ledger_app = typer.Typer(help="What is done: the ledger of an output folder.", no_args_is_help=True)
app.add_typer(ledger_app, name="ledger")
metrics_app = typer.Typer(help="Scores, and what they would be elsewhere.", no_args_is_help=True)
app.add_typer(metrics_app, name="metrics")

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="Configuration file (YAML).", show_default=False)]
Root = Annotated[Path | None, typer.Option(help="Folder that the config's data paths start from, instead of its own `root`.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run: OUTPUT/runs/ID.", show_default=False)]
OutputFolder = Annotated[Path, typer.Argument(metavar="OUTPUT", help="Output folder of a configuration.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


@app.command()
def plan(config: ConfigFile, root: Root = None, as_json: AsJson = False) -> None:
    """Say what would run, its cost, and what would fail. Nothing is loaded or written.

    Exit code 2 where an image or its labels cannot be used: a run would do the others, and end with 1.
    """
    from flows import views
    from pipeline.config import load_config
    from pipeline.report.evaluation import refuse
    from pipeline.survey import space_problem, survey

    found = survey(load_config(config, root=root))
    refuse(found.config.gates, found.config.statistics, found.card.classes, found.images)
    views.show_survey(found, as_json=as_json)
    if found.refused or any(p.truth_error for p in found.planned) or space_problem(found):
        raise typer.Exit(2)


@app.command()
def run(
    config: ConfigFile,
    root: Root = None,
    as_json: AsJson = False,
    prefect: Annotated[
        bool, typer.Option("--prefect/--no-prefect", help="Run as a Prefect flow, or the same steps without it.")
    ] = True,
    part: Annotated[
        str | None, typer.Option(help="2/5: the second of five parts, each run by a driver of its own; see merge.")
    ] = None,
) -> None:
    """Segment and score what is new; write the report. This is the nightly flow, once."""
    from flows import console, here, views

    with console.progress(quiet=as_json) as progress:
        exit_code, folder = here.night(config, root, part, progress, prefect=prefect)
    views.show_run(folder, exit_code, as_json=as_json)
    raise typer.Exit(exit_code)


@app.command()
def retry(config: ConfigFile, root: Root = None, as_json: AsJson = False) -> None:
    """Run again only what failed: images, and parts of images. What is new in the archive waits for the next run."""
    from flows import console, here, views

    with console.progress(quiet=as_json) as progress:
        morning = here.retry(config, root, progress)
    views.show_run(morning.folder, morning.exit_code, as_json=as_json)
    raise typer.Exit(morning.exit_code)


@app.command()
def merge(config: ConfigFile, root: Root = None, as_json: AsJson = False) -> None:
    """Join what runs with --part have made into one ledger and one report."""
    from flows import console, here, views

    with console.progress(quiet=as_json) as progress:
        morning = here.merge(config, root, progress)
    views.show_run(morning.folder, morning.exit_code, as_json=as_json)
    raise typer.Exit(morning.exit_code)


@app.command()
def serve(
    config: ConfigFile,
    cron: Annotated[str, typer.Option(help="When: minute, hour, day of month, month, day of week.")] = "0 1 * * *",
    timezone: Annotated[str, typer.Option(help="Time zone of --cron, such as Europe/Berlin.")] = "UTC",
    root: Root = None,
) -> None:
    """Run the night on a schedule on this machine, until ended. Starts a Prefect server where none is configured."""
    from flows.serve import serve_nights

    serve_nights(config, cron, timezone, root)


@app.command()
def segment(
    image: Annotated[Path, typer.Argument(help="Raster or slide to segment.", show_default=False)],
    model: Annotated[Path, typer.Option(help="Model folder: model.json and weights.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Mosaic to write, STORE.zarr.", show_default=False)],
    tile: Annotated[
        str | None, typer.Option(help="Side of a tile in px, or auto: what a probe found fastest; default: the model card's.")
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(help="Shared px of neighbouring tiles; default: the card's, a quarter of --tile.")
    ] = None,
    blend: Annotated[str, typer.Option(help="hann: weighted mean; crop: nearest tile centre.")] = "hann",
    block: Annotated[str, typer.Option(help="Side of a block in px, or auto.")] = "auto",
    batch: Annotated[int, typer.Option(help="Tiles at a time: on a GPU in one pass, on the CPU one a thread.")] = 4,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="float32 or bfloat16, of the forward pass.")] = "float32",
    workers: Annotated[int, typer.Option(help="Dask worker processes; 0: this process.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Threads of the model's arithmetic in each worker.")] = None,
    memory_gib: Annotated[float, typer.Option(help="Memory a worker may take; 0: 80 % of the machine's, divided.")] = 0,
    bands: Annotated[str | None, typer.Option(help="Bands to feed the model, by name or index: red,green,4.")] = None,
    resolution: Annotated[str, typer.Option(help="card, native, or a pixel size such as 0.6m, 0.5um or 2px.")] = "card",
    tissue: Annotated[
        str, typer.Option(help="auto: only tissue, of a slide; or a file of polygons or mask; none: all of it.")
    ] = "none",
    mpp: Annotated[str | None, typer.Option(help="Micrometres of a full-resolution pixel, 0.25 or 0.25,0.26 (x,y).")] = None,
    reader: Annotated[str, typer.Option(help="auto, slide (OpenSlide) or raster (GDAL).")] = "auto",
    icc: Annotated[str, typer.Option(help="srgb: apply a slide's colour profile; none.")] = "none",
    flips: Annotated[int, typer.Option(help="Symmetries to average over: 1, 2, 4 or 8.")] = 1,
    compile_: Annotated[bool, typer.Option("--compile", help="Let torch.compile make the model into a program first.")] = False,
    trust_code: Annotated[bool, typer.Option("--trust-code", help="Allow a model that runs code of its own.")] = False,
    as_json: AsJson = False,
) -> None:
    """Segment one image into one mosaic. A killed run goes on where it was."""
    from flows import console, one, views

    if workers:
        cluster: dict[str, Any] = {"type": "local", "workers": workers, "threads": threads, "memory_gib": memory_gib}
    else:
        cluster = {"type": "serial", "threads": threads, "memory_gib": memory_gib}
    settings = {
        "name": "segment",
        "output": str(out.parent),
        "archive": {
            "images": str(image),
            "bands": _bands(bands),
            "tissue": tissue,
            "mpp": {} if mpp is None else {"*": _mpp(mpp)},
            "reader": reader,
            "icc": icc,
        },
        "model": {
            "path": str(model),
            "device": device,
            "precision": precision,
            "batch": batch,
            "test_time_flips": flips,
            "compile": compile_,
            "trust_code": trust_code,
        },
        "resolution": _resolution(resolution),
        "tiling": {"tile": _side(tile), "overlap": overlap, "blend": blend, "block": _side(block)},
        "cluster": cluster,
    }
    with console.progress(quiet=as_json) as progress:
        segmented = one.segment(settings, out, progress)
    views.show_segmented(segmented, as_json=as_json)
    if segmented.result.state in ("failed", "partial"):
        raise typer.Exit(1)


@app.command()
def evaluate(
    store: Annotated[Path, typer.Argument(metavar="STORE.zarr", help="Mosaic to score.", show_default=False)],
    truth: Annotated[Path, typer.Argument(help="Label raster on the mosaic's grid, or polygons.", show_default=False)],
    class_map: Annotated[
        str | None, typer.Option(help="Label value = class name, as 1=building,2=road, or a YAML file; default: the model's.")
    ] = None,
    ignore: Annotated[str | None, typer.Option(help="Label values that mean `not labelled`: 0,255.")] = None,
    field: Annotated[
        str | None, typer.Option(help="Attribute of polygons that names the class of each; of QuPath and ASAP it is known.")
    ] = None,
    constant: Annotated[str | None, typer.Option(help="Class of all polygons.")] = None,
    background: Annotated[str | None, typer.Option(help="Class where no polygon lies; none: not labelled.")] = None,
    buffer_m: Annotated[float | None, typer.Option(help="Metres that polygons grow by; makes areas of points and lines.")] = None,
    layer: Annotated[str | None, typer.Option(help="Layer of the polygons, where the file has several.")] = None,
    area: Annotated[str | None, typer.Option(help="File of polygons outside of which nothing is labelled.")] = None,
    crs: Annotated[str | None, typer.Option(help="Their coordinates: EPSG:32637, or pixel for columns, rows.")] = None,
    resample: Annotated[str | None, typer.Option(help="nearest: take label rasters that lie on another grid.")] = None,
    mpp: Annotated[float | None, typer.Option(help="Micrometres of a pixel of label rasters without georeference.")] = None,
    max_unknown_share: Annotated[float, typer.Option(help="Largest share of label values that are no class.")] = 0.05,
    workers: Annotated[int, typer.Option(help="Dask worker processes; 0: this process.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for a report.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score a mosaic against reference labels."""
    from flows import one, views

    settings = {
        "classes": _class_map(class_map),
        "ignore": ignore.split(",") if ignore else [],
        "field": field,
        "constant": constant,
        "background": background,
        "buffer_m": buffer_m,
        "layer": layer,
        "area": area,
        "crs": crs,
        "resample": resample,
        "mpp": mpp,
        "max_unknown_share": max_unknown_share,
    }
    report = one.evaluate(store, truth, settings, workers, out)
    views.show_scores(report, out, as_json=as_json)


@app.command()
def export(
    store: Annotated[Path, typer.Argument(metavar="STORE.zarr", help="Mosaic to export.", show_default=False)],
    to: Annotated[str, typer.Option(help="geojson (QuPath, GIS), gpkg, geoparquet, cog or ome-tiff.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: beside STORE. A GeoJSON that ends in .gz is packed.")
    ] = None,
    class_: Annotated[
        list[str] | None, typer.Option("--class", metavar="NAME", help="Class to export, repeatable; default: not background.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Export background too.")] = False,
    min_area: Annotated[
        str,
        typer.Option(help="Leave out smaller objects: 50m2, 50um2, 50px. Nothing takes their place. Plain: m2, um2 of slides."),
    ] = "0",
    tolerance: Annotated[
        str, typer.Option(help="How far outlines may be off: 2m, 0.5um, 1.5px; 0: exact. Plain: m, um of slides.")
    ] = "0",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a mosaic as polygons or as a raster for other programs."""
    from flows import console, export_views

    wanted = {"classes": tuple(class_ or ()), "background": all_, "min_area": min_area, "tolerance": tolerance}
    with console.progress(quiet=as_json) as progress:
        exported = export_views.export(store, to, out, wanted, progress, overwrite=overwrite)
    export_views.show_exported(exported, as_json=as_json)


@app.command()
def report(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="Folder of a run: OUTPUT/runs/ID.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for what is made; default: the run's own.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="BEFORE AFTER", help="Hold a run against an earlier one, image by image.")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of report.json.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make page, summary and tables of a run anew from its report.json, as this version makes them; or compare two runs."""
    if (run is not None) + (compare is not None) + schema != 1:
        raise ConfigError("gigamask report: give one of RUN, --compare BEFORE AFTER, --schema")
    from flows import report_views
    from pipeline import report as reports

    if schema:
        print(json.dumps(reports.report_schema(), indent=2))  # noqa: T201 - the result goes to stdout
    elif compare is not None:
        before, after = map(reports.read_report, compare)
        report_views.show_comparison(before, after, as_json=as_json)
    elif run is not None:
        report_views.show_rendered(run, reports.render(run, out), as_json=as_json)


@metrics_app.command("compare")
def metrics_compare(run: RunFolder, as_json: AsJson = False) -> None:
    """Say what the rules of other libraries would call mIoU and mDice, on the same counts."""
    from flows import report_views
    from pipeline.report import read_report

    report_views.show_conventions(read_report(run), as_json=as_json)


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="Configuration with a section train.")] = None,
    root: Root = None,
    images: Annotated[str | None, typer.Option(help="Labelled images, instead of a config: a glob, folder or manifest.")] = None,
    labels: Annotated[str | None, typer.Option(help="Where their labels lie: labels/{stem}_label.tif.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the model.")] = None,
    ignore: Annotated[str | None, typer.Option(help="Label values that mean `not labelled`: 0,255.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Time budget; default: the config's, or 10.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train a model from labelled rasters, by a CONFIG or by --images, --labels and --out. A killed training goes on where it
    last validated."""
    from flows import console, learn, views

    with console.training(quiet=as_json) as (report, say):
        options = {"images": images, "labels": labels, "out": out, "ignore": _numbers(ignore), "minutes": minutes}
        trained = learn.train_one(config, root, options, report, say)
    views.show_trained(trained, as_json=as_json)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what is here, what is missing, how to get it. Versions, devices, formats, the machine."""
    from flows.doctor import examine, show

    problems = show(examine(), as_json=as_json)
    if problems:
        raise typer.Exit(1)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where demo/ (images, models, masks, reports) and configs/ go.")] = Path(),
    prefect: Annotated[
        bool, typer.Option("--prefect/--no-prefect", help="Run the scenes' night as a Prefect flow, or without.")
    ] = True,
) -> None:
    """Make scenes and a slide, train on both, run both nights, show the reports. A few minutes on a laptop."""
    from flows.demo import run_demo

    raise typer.Exit(run_demo(folder, prefect=prefect))


@app.command()
def verify(
    output: OutputFolder,
    workers: Annotated[int, typer.Option(help="Dask worker processes; 0: this process.")] = 0,
    config: Annotated[
        Path | None, typer.Option(help="Configuration file: masks are scored again with labels that are unchanged.")
    ] = None,
    root: Root = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Keep what is sound and remove what is not; the next run makes it again.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Recompute checksums and counts from the stored masks; say where they differ from record and ledger."""
    from flows import console, ledger_views
    from pipeline import audit
    from pipeline.cluster import open_workers, stopping_on_signals
    from pipeline.config import LocalCluster, SerialCluster, load_config

    truth = None if config is None else load_config(config, root=root).truth
    cluster = LocalCluster(workers=workers, threads=1) if workers else SerialCluster(type="serial")
    with console.progress(quiet=as_json) as progress, open_workers(cluster) as crew, stopping_on_signals(crew.stop):
        found = audit.verify(output, crew, progress, truth, repair=repair)
    ledger_views.show_audit(found, output, as_json=as_json)
    if found.faults:
        raise typer.Exit(1)


@ledger_app.command("show")
def ledger_show(output: OutputFolder, as_json: AsJson = False) -> None:
    """Runs, images by state, and blocks that did not go through at once. Also while a run is at work."""
    from flows import ledger_views
    from pipeline.books import accounts

    found = accounts(output)
    ledger_views.show_accounts(found, as_json=as_json)
    if any(account.problem for account in found):
        raise typer.Exit(1)


@ledger_app.command("rebuild")
def ledger_rebuild(output: OutputFolder, as_json: AsJson = False) -> None:
    """Make the ledger anew from the records beside the masks. The old one is kept beside it."""
    from flows import ledger_views
    from pipeline.books import rebuild

    rebuilt = rebuild(output)
    ledger_views.show_rebuilt(rebuilt, as_json=as_json)
    if rebuilt.damaged:
        raise typer.Exit(1)


@model_app.command("probe")
def model_probe(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Model folder: model.json and weights.", show_default=False)],
    image: Annotated[Path | None, typer.Option(help="Image to look at; default: made-up texture, which is less telling.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Keep what was found in the model's card, for tile: auto.")] = False,
    threads: Annotated[int, typer.Option(help="Threads of a worker: so many tiles are timed side by side.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    trust_code: Annotated[bool, typer.Option("--trust-code", help="Allow a model that runs code of its own.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure how far a model sees, what overlap its seams need, what tiles of several sizes cost. Takes minutes."""
    from flows import console, views
    from pipeline.probe import Looking, keep_probe, probe_model, with_probe

    with console.progress(quiet=as_json) as progress:
        how = Looking(image=image, threads=threads, device=device, trust_code=trust_code)
        found = probe_model(folder, how, progress.say)
    card = keep_probe(folder, found) if write else with_probe(folder, found)
    views.show_probe(found, card, as_json=as_json)
    if not write:
        progress.say("--write keeps this in the card, for tile: auto")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of the configuration, for editors that complete it."""
    from pipeline.config import Config

    print(json.dumps(Config.model_json_schema(), indent=2))  # noqa: T201 - the result goes to stdout


@config_app.command("check")
def config_check(config: ConfigFile, root: Root = None) -> None:
    """Read a configuration and say what is wrong with it, without looking at the archive."""
    from pipeline.config import load_config

    loaded = load_config(config, root=root)
    print(f"{config}: {loaded.name}: a valid configuration")  # noqa: T201


def _version(wanted: bool) -> None:
    if wanted:
        print(f"gigamask {__version__}")  # noqa: T201
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Options of all commands."""


def _side(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isdigit() else text


def _bands(text: str | None) -> list[str | int] | None:
    return None if text is None else [int(b) if b.strip().isdigit() else b.strip() for b in text.split(",")]


def _numbers(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(v) for v in text.split(",")]
    except ValueError as e:
        raise ConfigError(f"--ignore {text}: write label values as 0,255") from e


def _resolution(text: str) -> Any:
    if text in ("card", "native"):
        return text
    for suffix, unit in (("px", "source-pixel"), ("um", "micrometre"), ("µm", "micrometre"), ("m", "metre")):
        if text.endswith(suffix):
            try:
                return {"size": float(text.removesuffix(suffix)), "unit": unit}
            except ValueError:
                break
    raise ConfigError(f"--resolution {text}: give card, native, or a size such as 0.6m, 0.5um or 2px (source pixels)")


def _mpp(text: str) -> list[float]:
    try:
        sizes = [float(size) for size in text.split(",")]
    except ValueError as e:
        raise ConfigError(f"--mpp {text}: give micrometres a pixel, as 0.25, or as 0.25,0.26 for x and y") from e
    return sizes * 2 if len(sizes) == 1 else sizes


def _class_map(text: str | None) -> dict[str, str] | None:
    if text is None:
        return None
    if "=" not in text:
        return _class_file(Path(text))
    try:
        return {value.strip(): name.strip() for value, name in (pair.split("=", 1) for pair in text.split(","))}
    except ValueError as e:
        raise ConfigError(f"--class-map {text}: write label values and class names as 1=building,2=road") from e


def _class_file(path: Path) -> dict[str, str]:
    from pipeline.config import yaml_of

    try:
        found = yaml_of(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"--class-map {path}: cannot be read: {e}. Write 1=building,2=road, or name a YAML file") from e
    if not isinstance(found, dict):
        raise ConfigError(f"--class-map {path}: holds no mapping of label values to class names, such as 1: building")
    return {str(value): str(name) for value, name in found.items()}


def main() -> None:
    """Run a command; an expected error is told in its own words and exit code."""
    try:
        code = app(standalone_mode=False)
    except GigamaskError as e:
        sys.stderr.write(f"gigamask: {e}\n")
        sys.exit(e.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("gigamask: interrupted; the same command goes on where this one was\n")
        sys.exit(130)
    except Exception as e:
        show = getattr(e, "show", None)
        if show is None:
            raise
        show()
        sys.exit(getattr(e, "exit_code", 2))
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
