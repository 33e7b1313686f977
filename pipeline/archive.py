"""Which images a run is about, and where the reference labels of each lie: folders, globs and manifests become one list."""

from __future__ import annotations

import csv
import glob
import math
import os
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePath

from pipeline.alignment import beside
from pipeline.config import AUTO, WHOLE, Config
from pipeline.errors import ConfigError
from pipeline.image import ImageSpec
from pipeline.slidefile import series_of

SUFFIXES = (
    *(".tif", ".tiff", ".gtiff", ".btf", ".jp2", ".j2k", ".jpx", ".jpg", ".jpeg", ".jxl", ".png", ".webp", ".bmp", ".gif"),
    *(".img", ".ntf", ".nitf", ".pgm", ".ppm", ".pnm"),
    *(".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".qptiff", ".czi", ".dcm"),
)
"""What is taken for an image in a folder; formats without a suffix of their own (ENVI) are named by glob or manifest."""
DICOM = ".dcm"
"""Of DICOM, a slide is all files of a series in a folder: the first by name stands for it."""
WRITTEN = ("masks", "parts", "runs", "tissue")
"""Folders that runs fill in their output."""
UNFINISHED = (".partial", ".part", ".tmp")
"""Endings, before the suffix, of files that are still being written."""


def discover(config: Config) -> list[ImageSpec]:
    """The images of `config.archive`, sorted by path, each once, with the labels that `config.truth.pattern` gives it.

    Folders and globs give finished, visible files: not those in the output folder, and not the labels of other images. What
    a manifest names stays, present or not: the plan reports what is missing. Where an image is listed twice, the first entry
    of `archive.images` speaks. ConfigError where nothing is found, or a manifest or pattern cannot mean anything.
    """
    pattern = config.truth.pattern
    for key, value in (("truth.pattern", pattern), ("truth.area", config.truth.area), ("archive.tissue", config.archive.tissue)):
        _check_pattern(key, value or "")
    images = config.archive.images
    entries = [images] if isinstance(images, str) else images
    found: dict[str, ImageSpec] = {}
    named: set[str] = set()
    for entry in entries:
        listed, searched = _listed(entry, config)
        named |= set() if searched else {image.uri for image in listed}
        for image in listed:
            found.setdefault(image.uri, image)
    labels = {image.truth for image in found.values()} | {uri for uri in found if _looks_like_labels(uri, pattern)}
    candidates = [uri for uri in sorted(found) if uri in named or uri not in labels]
    kept = [completed(found[uri], config) for uri in candidates if not _excluded(uri, config)]
    for image in kept:
        _check_name(image.uri)
    if not kept:
        left_out = f"; {len(candidates)} were found and left out by archive.exclude" if candidates else ""
        raise ConfigError(
            f"archive.images: no image in {', '.join(entries) or 'an empty list'}{left_out}: there is nothing to segment. "
            f"Folders are searched for {' '.join(SUFFIXES)}, less hidden files, the output folder and labels (truth.pattern)"
        )
    return kept


def _check_name(uri: str) -> None:
    """ConfigError for a name that is no text: neither the ledger nor the report could hold it."""
    try:
        uri.encode()
    except UnicodeEncodeError as e:
        raise ConfigError(
            f"archive.images: the name of {os.fsencode(uri)!r} is not UTF-8: it could not be written down. Rename the file, or "
            "leave it out with archive.exclude"
        ) from e


def _listed(entry: str, config: Config) -> tuple[list[ImageSpec], bool]:
    """(what one entry of `archive.images` stands for, whether that was searched for rather than named)."""
    path = Path(entry)
    if path.is_dir():
        return _images(_one_a_slide(_in_folder(path, config.output)), config), True
    if path.suffix.lower() in (".csv", ".parquet") and (path.is_file() or not glob.has_magic(entry)):
        return _manifest(path, config), False
    if path.is_file():
        _check_not_written(path, config.output)
        return _images([path], config), False
    if glob.has_magic(entry):
        return _images(_one_a_slide(_in_glob(entry, config.output)), config), True
    raise ConfigError(f"archive.images: {entry} does not exist. Name a file, a folder, a glob, or a manifest (.csv, .parquet)")


def _images(paths: Iterable[Path], config: Config) -> list[ImageSpec]:
    return [ImageSpec(uri=str(path), truth=truth_of(path, config.truth.pattern)) for path in paths]


def _in_folder(folder: Path, output: Path) -> Iterator[Path]:
    """Image files below `folder`, but for those of the output, by whatever links either is reached; links to folders are not
    followed, as they may lead back."""
    top, out = folder.absolute(), _real(output)
    real_top = _real(top)
    for parent, folders, names in top.walk():
        real = real_top / parent.relative_to(top)
        folders[:] = [name for name in folders if not name.startswith(".") and not _of_a_run(real / name, out)]
        if real != out:
            images = (parent / name for name in names if PurePath(name).suffix.lower() in SUFFIXES and _finished(name))
            yield from (path for path in images if not (path.is_symlink() and _real(path).is_relative_to(out)))


def _in_glob(pattern: str, output: Path) -> Iterator[Path]:
    """Files that match; where the pattern leaves the suffix open, only images."""
    any_suffix, out, real = PurePath(pattern).suffix not in ("", ".*"), _real(output), lru_cache(1 << 10)(_real)
    for name in glob.iglob(pattern, recursive=True):  # noqa: PTH207 (pathlib takes no absolute pattern)
        path = Path(os.path.normpath(name)).absolute()
        fits = (any_suffix or path.suffix.lower() in SUFFIXES) and _finished(path.name)
        if not fits or path.is_dir():  # links to nothing stay, and are told
            continue
        place = _real(path) if path.is_symlink() else real(path.parent)
        if not place.is_relative_to(out):
            yield path


def _real(path: Path) -> Path:
    """`path` without symbolic links, as far as it exists; a loop of links stays as it is."""
    return Path(os.path.realpath(path))


def _of_a_run(real: Path, out: Path) -> bool:
    """Whether a folder without links is the output, or one that runs fill there: for where the output holds the archive."""
    return real == out or (real.parent == out and real.name in WRITTEN)


def _check_not_written(path: Path, output: Path) -> None:
    """ConfigError for a file that is named as an image, and that a run has written."""
    real, out = _real(path), _real(output)
    if real.is_relative_to(out) and real.relative_to(out).parts[0] in WRITTEN:
        raise ConfigError(
            f"archive.images: {path} lies in {out}, where runs keep what they make: masks and pictures of masks would be "
            "segmented. Name an image, or choose another output"
        )


def _one_a_slide(paths: Iterable[Path]) -> Iterator[Path]:
    """`paths` with one file for each slide of many: the first of each DICOM series, and none of a VMS slide's JPEGs."""
    listed = list(paths)
    indexes = {path.parent for path in listed if path.suffix.lower() in (".vms", ".vmu")}
    series: set[tuple[Path, bytes]] = set()
    for path in sorted(listed):
        if path.suffix.lower() == DICOM:
            key = path.parent, series_of(path)
            if key in series:
                continue
            series.add(key)
        if path.parent not in indexes or path.suffix.lower() not in (".jpg", ".jpeg"):
            yield path


def _finished(name: str) -> bool:
    return not name.startswith((".", "~")) and PurePath(PurePath(name).stem).suffix.lower() not in UNFINISHED


def _looks_like_labels(uri: str, pattern: str | None) -> bool:
    """Whether `uri` lies where `pattern` puts labels, be their image there or not."""
    if pattern is None or ".." in PurePath(pattern).parts:
        return False
    shape = re.escape(pattern).replace(re.escape("{dir}"), ".+").replace(re.escape("{stem}"), "[^/]+")
    return re.fullmatch(shape, uri) is not None


def truth_of(image: Path, pattern: str | None) -> str | None:
    """Absolute path of the labels that `pattern` gives `image`; None where there is no such file."""
    if pattern is None:
        return None
    path = Path(os.path.normpath(beside(pattern, image)))
    return str(path) if path.is_file() and path != image else None


def completed(image: ImageSpec, config: Config) -> ImageSpec:
    """`image` with what `config.archive` says of its pixels' size and its area, where a manifest said nothing."""
    mpp, area, pattern = image.mpp, image.area, config.archive.tissue
    if mpp is None:
        x, y = next((size for glob_, size in config.archive.mpp.items() if _matches(image.uri, glob_, config)), (None, None))
        mpp = None if x is None or y is None else (y, x)
    if area is None and pattern not in (WHOLE, AUTO):
        area = os.path.normpath(beside(pattern, Path(image.uri)))
    return image.model_copy(update={"mpp": mpp, "area": area})


def _check_pattern(key: str, pattern: str) -> None:
    unknown = sorted(set(re.findall(r"\{([^{}]*)\}", pattern)) - {"stem", "dir"})
    if unknown:
        names = ", ".join(f"{{{name}}}" for name in unknown)
        raise ConfigError(f"{key}: {pattern} has {names}: known are {{stem}} (file name without suffix) and {{dir}}")


def _excluded(uri: str, config: Config) -> bool:
    return any(_matches(uri, glob_, config) for glob_ in config.archive.exclude)


def _matches(uri: str, glob_: str, config: Config) -> bool:
    """Whether a glob matches the path, its part below `root`, or the file name; `*` crosses folders."""
    path = PurePath(uri)
    below = str(path.relative_to(config.root)) if path.is_relative_to(config.root) else uri
    return any(fnmatchcase(text, glob_) for text in (uri, below, path.name))


def _manifest(path: Path, config: Config) -> list[ImageSpec]:
    """The images of a table with a column `image`, and optionally `truth`, `group`, `mpp` (or `mpp_x` and `mpp_y`), `tissue`
    and others, which become strata.

    Relative paths start from the manifest's folder. Without a column `truth`, truth.pattern gives the labels.
    """
    try:
        columns, rows = (_parquet if path.suffix.lower() == ".parquet" else _csv)(path)
    except (OSError, ValueError, csv.Error) as e:
        raise ConfigError(f"archive.images: manifest {path} cannot be read: {e}. Give a table with a column `image`") from e
    if "image" not in columns:
        raise ConfigError(
            f"manifest {path} has no column `image`; it has {', '.join(columns) or 'none'}. Name the column of paths so"
        )
    images: dict[str, tuple[int, ImageSpec]] = {}
    for line, row in rows:
        if None in row:
            raise ConfigError(
                f"manifest {path}, line {line}: has more cells than the {len(columns)} columns. Quote commas in paths"
            )
        cells = {column: str(value).strip() for column, value in row.items() if value is not None and str(value).strip()}
        if "image" not in cells:
            raise ConfigError(f"manifest {path}, line {line}: names no image. Fill the column `image`, or take the line out")
        uri = _slide_in(_beside(path, cells.pop("image")))
        if uri in images:
            raise ConfigError(
                f"manifest {path}, line {line}: {uri} stands on line {images[uri][0]} already and would count twice. Take one out"
            )
        truth = cells.pop("truth", None)
        labels = truth_of(Path(uri), config.truth.pattern) if "truth" not in columns else truth and _beside(path, truth)
        mpp, area = _stated_mpp(cells, f"manifest {path}, line {line}"), cells.pop("tissue", None)
        spec = ImageSpec(uri=uri, truth=labels, group=cells.pop("group", None), mpp=mpp, area=area and _beside(path, area))
        images[uri] = line, spec.model_copy(update={"strata": cells})
    if not images:
        raise ConfigError(f"manifest {path} has no line below its columns {', '.join(columns)}. Add a line for each image")
    return [image for _, image in images.values()]


def _stated_mpp(cells: dict[str, str], where: str) -> tuple[float, float] | None:
    """(row, col) micrometres a pixel that a line of a manifest states; its columns are taken out of `cells`."""
    both, x, y = (cells.pop(name, None) for name in ("mpp", "mpp_x", "mpp_y"))
    x, y = x or both, y or both
    if x is None and y is None:
        return None
    try:
        size = float(y or ""), float(x or "")
    except ValueError:
        size = math.nan, math.nan
    if not all(math.isfinite(side) and side > 0 for side in size):
        raise ConfigError(f"{where}: mpp_x {x}, mpp_y {y} are not two sizes: give both in micrometres, or one as `mpp`")
    return size


def _slide_in(uri: str) -> str:
    """The file that stands for a slide whose folder is named: the first of its DICOM files; else `uri` as it is."""
    if not os.path.isdir(uri):  # noqa: PTH112 - pathlib breaks at a name that is too long
        return uri
    return next((str(file) for file in sorted(Path(uri).glob(f"*{DICOM}"))), uri)


def _beside(manifest: Path, name: str) -> str:
    """`name` as an absolute path; addresses stay as they are, for the reader to refuse."""
    return name if "://" in name or name.startswith("/vsi") else os.path.normpath(manifest.absolute().parent / name)


Table = tuple[list[str], list[tuple[int, dict[str, object]]]]
"""(column names, (line in the file, cells by column) of every row)."""


def _csv(path: Path) -> Table:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        rows: list[tuple[int, dict[str, object]]] = [(reader.line_num, dict(row)) for row in reader]
        return list(reader.fieldnames or ()), rows


def _parquet(path: Path) -> Table:
    from pyarrow import parquet

    table = parquet.read_table(path)  # type: ignore[no-untyped-call]
    return list(table.column_names), list(enumerate(table.to_pylist(), 1))
