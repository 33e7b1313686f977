"""One YAML file becomes one frozen, validated `Config`; errors name the file, the key, the value and the fix."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from pipeline.errors import ConfigError
from pipeline.image import Resolution
from pipeline.statistics.measures import CLASS_MEASURES, MEASURES

LAST_ACCEPTED, NO_BASELINE = "last-accepted", "none"
SECRET = frozenset({"webhook", "command", "arguments"})
"""Keys whose values may hold passwords and tokens: error messages never show them."""
LARGEST_TOLERANCE_PX = 16
"""What lies farther apart is no question of a border's place."""


class Section(BaseModel):
    """A part of the configuration: frozen, and no key that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)


def _mpp(value: Any) -> Any:
    return [value, value] if isinstance(value, int | float) and not isinstance(value, bool) else value


_Um = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Mpp = Annotated[tuple[_Um, _Um], BeforeValidator(_mpp)]
"""(x, y) micrometres a pixel; one number is both."""
WHOLE, AUTO = "none", "auto"
"""Values of archive.tissue that are no pattern."""


class ArchiveConfig(Section):
    """Which images, and how their samples are to be read."""

    images: str | list[str]
    """A file, a folder (searched recursively), a glob (`**` recurses), a manifest (.csv or .parquet with a column
    `image`, and optionally `truth`, `group` and others), or a list of these."""
    exclude: list[str] = Field(default_factory=list)
    """Globs of images to leave out."""
    bands: list[str | int] | None = None
    """Bands to feed the model, by name or 1-based index, in the model's order. Default: the card's band names where the
    image names its bands so, else the image's first bands where their number is right."""
    nodata: float | list[float] | Literal["header", "none"] = "header"
    """`header`: what the file declares; `none`: every pixel is real; a number (or one a band): that value is filling."""
    reader: Literal["auto", "raster", "slide"] = "auto"
    """Which library opens images: `auto` goes by their content (OpenSlide for slides, GDAL for all others), or one for all."""
    mpp: dict[str, Mpp] = Field(default_factory=dict)
    """Glob of images -> size of their full-resolution pixels in micrometres, one number or [x, y]: goes before what they say
    themselves. The first glob that matches speaks; a manifest's column `mpp`, or `mpp_x` and `mpp_y`, goes before all."""
    mpp_from_power: bool = False
    """Whether a slide that states no pixel size, but an objective power, is taken to have 10 µm / power: 0.25 at 40x."""
    icc: Literal["none", "srgb"] = "none"
    """`srgb`: bring a slide's colours to sRGB by its own ICC profile, where it has one; models mostly learnt without."""
    tissue: str = "none"
    """What of an image is looked at; all else is no data and costs nothing. `none`: all of it; `auto`: the tissue found on a
    slide; else a pattern, as truth.pattern, of polygons or of a mask raster at any level, 0 outside. A manifest's column `tissue`
    goes before a pattern."""


def _label_value(value: Any) -> Any:
    """A label value as it is compared: whole numbers as numbers, nothing as the text null."""
    if isinstance(value, bool):
        raise ValueError("YAML reads yes, no, on and off as truth values: write the label value in quotes, such as 'yes'")
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"0|-?[1-9]\d*", value) else value
    return "null" if value is None else value


LabelValue = Annotated[int | str, BeforeValidator(_label_value)]
"""What stands for a class in labels: a number of a raster, a number or text in a field of polygons."""


class TruthConfig(Section):
    """Reference labels, a raster or polygons, and what their values mean."""

    pattern: str | None = None
    """Where the labels of an image lie: `{stem}` is the image's file name without suffix, `{dir}` its folder. Polygons may also
    lie in one file for all images."""
    classes: dict[LabelValue, str] | None = None
    """Label value -> class name of the model; several values may be one class. Default: what the model card says. With `"*"`, of
    polygons: every other value."""
    ignore: list[LabelValue] = Field(default_factory=list)
    """Label values that mean `not labelled`, beside a raster's nodata. `"*"`, of polygons: every other value."""
    resample: Literal["nearest"] | None = None
    """Take label rasters that lie on another grid by nearest neighbour; without it another grid is an error."""
    mpp: Mpp | None = None
    """Micrometres of a label raster's pixel, one number or [x, y], where it has no georeference: its pixels are then laid by
    size, from the image's upper left corner. Not needed where it has the image's shape, or a whole part of it, as levels of
    slides."""
    max_unknown_share: float = Field(default=0.05, ge=0, le=1)
    """Largest share of an image's labelled pixels with values that are no class and not ignored; above it is an error. Of
    polygons any such value is one."""
    area: str | None = None
    """Pattern, as `pattern`, of polygons inside of which labels were drawn: outside nothing is labelled. Without it polygons
    as labels speak for the whole image."""
    area_layer: str | None = None
    """Layer of that file, where it has several."""
    layer: str | None = None
    """Of polygons: the layer, where the file has several."""
    field: str | None = None
    """Of polygons: the attribute that names the class of each. Default, without `constant`: `classification` of QuPath's
    objects, `PartOfGroup` of ASAP's annotations."""
    constant: str | None = None
    """Of polygons: the class of all of them. Default, where nothing names a field: the model's one class beside `background`."""
    background: str | None = None
    """Of polygons: class of pixels whose centre lies in none of them, or `none` for not labelled. Default: the class `background`
    where the model has one, else not labelled."""
    buffer_m: float | None = Field(default=None, allow_inf_nan=False)
    """Of polygons: let each grow by so many metres on the ground, or shrink where it is below 0. Points and lines, which are
    refused without it, become discs and strips."""
    crs: str | None = None
    """Of polygons: coordinate system of `pattern`, instead of what the file says, such as EPSG:32637; or `pixel`: columns and
    rows of the image at full resolution, also in `area`. Of ASAP's XML always, and where neither the image nor the file has a
    georeference, it is `pixel` without being said; GeoJSON that names no other system counts as such a file."""

    @model_validator(mode="after")
    def _one_meaning(self) -> TruthConfig:
        if self.field is not None and self.constant is not None:
            raise ValueError(f"give either field ({self.field}) or constant ({self.constant}): a polygon has one class")
        return self

    @property
    def label_mpp(self) -> tuple[float, float] | None:
        """`mpp` as (row, column)."""
        if self.mpp is None:
            return None
        x, y = self.mpp
        return y, x

    @property
    def numbered(self) -> dict[int, str] | None:
        """`classes`, of those values that a raster can hold."""
        return None if self.classes is None else {v: name for v, name in self.classes.items() if isinstance(v, int)}

    @property
    def ignored(self) -> set[int]:
        """`ignore`, of those values that a raster can hold."""
        return {value for value in self.ignore if isinstance(value, int)}

    def located(self, at_root: Callable[[str], str]) -> TruthConfig:
        """The same with patterns as absolute paths."""
        patterns = {"pattern": self.pattern, "area": self.area}
        return self.model_copy(update={name: at_root(p) if p else None for name, p in patterns.items()})


class ScoringConfig(Section):
    """What is measured of a mask beside its confusion counts."""

    boundary_px: tuple[Annotated[int, Field(ge=1, le=LARGEST_TOLERANCE_PX)], ...] = Field(default=(1, 2, 4), max_length=8)
    """Tolerances of borders between classes, in working pixels; none: [], and that time is saved."""
    boundary_m: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(), max_length=8)
    """The same in metres (a micrometre is 1e-6); left out for images of unknown pixel size, and where they are more than 16
    pixels."""


class ModelConfig(Section):
    """Which model, and how it is run."""

    path: Path
    """Folder with model.json and weights."""
    device: str = "auto"
    """`auto` (cuda where there is one), `cpu`, `cuda`, `cuda:1`, `mps`."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the forward pass."""
    batch: int = Field(default=4, ge=1)
    """Tiles in work at a time: on a GPU one forward pass (the last one padded, so that its shape never changes), on the CPU
    one tile a thread, so give at least as many as a worker has threads."""
    test_time_flips: Literal[1, 2, 4, 8] = 1
    """Mean over so many of the square's symmetries (1: as it is, 8: all): steadier, and that many times the work."""
    compile: bool = False
    """Let torch.compile make the network into a program for the tile's shape: minutes once a worker, quicker from then on.
    Needs a C++ compiler; worth trying on GPUs."""
    trust_code: bool = False
    """Allow models that can run code of their own: Python functions (adapter `callable`), torch.export and TorchScript files
    (`exported`)."""


class TilingConfig(Section):
    """How images are cut and put together again."""

    tile: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    """Side of a tile in px; default: the card's. `auto`: of the sizes that `gigamask model probe DIR --write` measured, the one
    that takes least time for the image and fits a worker's memory."""
    overlap: int | None = Field(default=None, ge=0)
    """Shared px of neighbouring tiles; default: the card's where `tile` is left out, a quarter of a `tile` given in px, with
    `tile: auto` what the probe advised."""
    blend: Literal["hann", "crop"] = "hann"
    """`hann`: weighted mean of all tiles at a pixel; `crop`: the tile whose centre is nearest."""
    block: int | Literal["auto"] = "auto"
    """Side of a block in px (rounded up to whole chunks), or `auto`: the most blocks of at least 64 tiles with at most
    5 % redundant work."""
    store_confidence: bool = False
    """Also store the winning class's probability."""

    @model_validator(mode="after")
    def _tiles_advance(self) -> TilingConfig:
        if isinstance(self.tile, int) and self.overlap is not None and self.overlap >= self.tile:
            raise ValueError(f"overlap {self.overlap} must be below tile {self.tile}, or no tile comes after the first")
        if isinstance(self.block, int) and self.block < 64:
            raise ValueError(f"block {self.block} is too small: choose 64 or more, or auto")
        return self


class SerialCluster(Section):
    """No workers: everything happens in this process."""

    type: Literal["serial"]
    threads: int | None = Field(default=None, ge=1)
    """Threads of the model's arithmetic; default: all cores."""
    memory_gib: float = Field(default=0, ge=0)
    """What this process may take; 0: 80 % of the machine's memory."""


class LocalCluster(Section):
    """Worker processes on this machine, on loopback, with TLS certificates of their own."""

    type: Literal["local"] = "local"
    workers: int | None = Field(default=None, ge=1)
    """Processes; default: one per GPU, else one per four cores."""
    blocks_at_once: int | None = Field(default=None, ge=1, le=64)
    """Blocks that a worker has at work at a time; `plan` counts the memory of so many. Default: 2 with a GPU, so that one is read
    while another is computed, else 1."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of the model's arithmetic in each worker; default: the cores divided by the workers."""
    memory_gib: float = Field(default=0, ge=0)
    """Memory a worker may take; 0: 80 % of the machine's, divided by the workers."""
    dashboard: bool = False
    """Serve Dask's dashboard on a free loopback port."""


class RemoteCluster(Section):
    """A Dask scheduler that is already running."""

    type: Literal["address"]
    address: str | None = None
    """`tls://host:port` or `tcp://host:port`."""
    scheduler_file: Path | None = None
    """File that the scheduler wrote, instead of an address."""
    tls_ca: Path | None = None
    """Certificate of who signed the cluster's; needed with the next two for `tls://`."""
    tls_cert: Path | None = None
    """Certificate of this driver."""
    tls_key: Path | None = None
    """Its private key."""
    insecure: bool = False
    """Allow plain TCP to another host: anyone on the way can run code on the workers."""
    blocks_at_once: int = Field(default=1, ge=1, le=64)
    """Blocks that a worker has at work at a time, whatever threads Dask gives it; `plan` counts the memory of so many."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of the model's arithmetic in each worker; default: those that Dask gives it, shared by its blocks at work."""
    memory_gib: float = Field(default=4, gt=0)
    """Memory of one worker; `plan` holds images against it."""
    gpu_memory_gib: float | None = Field(default=None, gt=0)
    """Memory of a worker's GPU, which `plan` then holds images against too."""

    @model_validator(mode="after")
    def _one_way_in(self) -> RemoteCluster:
        if (self.address is None) == (self.scheduler_file is None):
            raise ValueError("give either address or scheduler_file")
        tls = [self.tls_ca, self.tls_cert, self.tls_key]
        if any(tls) and not all(tls):
            raise ValueError("TLS needs all of tls_ca, tls_cert and tls_key")
        return self


class ClassCluster(Section):
    """Any Dask cluster class (a subclass of `distributed.deploy.Cluster`), such as dask_jobqueue.SLURMCluster or
    dask_kubernetes.operator.KubeCluster."""

    type: Literal["class"]
    cls: str = Field(alias="class", pattern=r"^[A-Za-z_][\w.]*\.[A-Za-z_]\w*$")
    """Dotted path of the class."""
    arguments: dict[str, Any] = Field(default_factory=dict, repr=False)
    """Its keyword arguments, which no report shows. `security` may be `true` (temporary certificates, the default where the class
    takes them) or a mapping of `distributed.security.Security`: `{tls_ca_file: ..., tls_scheduler_cert: ..., ...}`."""
    insecure: bool = False
    """Allow a scheduler in plain TCP that other hosts reach: whoever reaches it can run code on the workers and here. No
    certificates are made then."""
    workers: int | None = Field(default=None, ge=1)
    """Fixed number of workers."""
    minimum: int | None = Field(default=None, ge=0)
    """Adaptive: at least so many workers; default: 0."""
    maximum: int | None = Field(default=None, ge=1)
    """Adaptive: at most so many."""
    blocks_at_once: int = Field(default=1, ge=1, le=64)
    """Blocks that a worker has at work at a time, whatever threads Dask gives it; `plan` counts the memory of so many."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of the model's arithmetic in each worker; default: 1, whatever `arguments` say."""
    memory_gib: float = Field(default=4, gt=0)
    """Memory of one worker, which `plan` holds images against; `arguments` are not read for it."""
    gpu_memory_gib: float | None = Field(default=None, gt=0)
    """Memory of a worker's GPU, which `plan` then holds images against too."""

    @model_validator(mode="after")
    def _fixed_or_adaptive(self) -> ClassCluster:
        if (self.workers is None) == (self.maximum is None):
            raise ValueError("give either workers (a fixed number) or maximum (adaptive, with minimum)")
        if self.maximum is not None and (self.minimum or 0) > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}")
        return self


def _cluster_type(value: Any) -> str:
    kind = value.get("type", "local") if isinstance(value, dict) else getattr(value, "type", "local")
    return str(kind)


ClusterConfig = Annotated[
    Annotated[SerialCluster, Tag("serial")]
    | Annotated[LocalCluster, Tag("local")]
    | Annotated[RemoteCluster, Tag("address")]
    | Annotated[ClassCluster, Tag("class")],
    Discriminator(_cluster_type),
]


class AugmentConfig(Section):
    """Random changes of training crops. Colour strengths are on a scale where 0...1 spans the band's mean -+ 2.5 standard
    deviations; each is drawn evenly up to the given value, as exponent where it multiplies."""

    flip: bool = True
    """Mirror."""
    rotate: Literal["none", "quarter", "any"] = "quarter"
    """Turn by nothing, by quarters, or by any angle."""
    scale: tuple[float, float] = (0.75, 1.5)
    """Zoom, drawn log-uniformly."""
    stretch: float = Field(default=0.0, ge=0, lt=1)
    """Largest change of the ratio of the sides, as exponent."""
    brightness: float = Field(default=0.2, ge=0, le=2)
    """Gain of all bands together."""
    contrast: float = Field(default=0.25, ge=0, le=2)
    """Spread around the crop's mean."""
    gamma: float = Field(default=0.2, ge=0, le=2)
    """Exponent that the samples are raised to, within their range."""
    channel: float = Field(default=0.1, ge=0, le=2)
    """Gain of each band by itself."""
    shift: float = Field(default=0.05, ge=0, le=1)
    """Offset, of each band by itself and of all together."""
    saturation: float = Field(default=0.3, ge=0, le=2)
    """Spread of the bands around their mean."""
    noise: float = Field(default=0.02, ge=0, le=1)
    """Standard deviation of added noise."""
    blur: float = Field(default=0.1, ge=0, le=1)
    """Probability of a 3 x 3 blur."""

    @field_validator("scale")
    @classmethod
    def _ordered(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not 0.1 <= scale[0] <= scale[1] <= 10:
            raise ValueError(f"scale {scale} must be two growing factors between 0.1 and 10")
        return scale


class TrainConfig(Section):
    """How `gigamask train` makes the model in `model.path` from labelled rasters."""

    images: str | list[str]
    """Labelled images, as archive.images."""
    labels: str | None = None
    """Where their labels lie, as truth.pattern; default: truth.pattern."""
    validation: list[str] | float = 0.2
    """Images held out for validation: by stem (all images of that stem), by path (absolute or from `root`, exactly that
    one), or about the share of them. Always whole images, never tiles, and whole groups: with an image of a manifest's `group`
    (patient, site, flight) all others of that group are held out."""
    name: str | None = None
    """Name on the model's card; default: the folder's."""
    licence: str = "unknown"
    """Of the model, on its card."""
    classes: dict[int, str | dict[str, str]] | None = None
    """Label value -> class name, or {name, color}. Default: `truth.classes`, else every value found in the labels that is not
    ignored."""
    architecture: str = "Unet"
    """Name in segmentation-models-pytorch: Unet, UnetPlusPlus, FPN, DeepLabV3Plus, Segformer, ..."""
    encoder: str = "resnet18"
    """Name of the encoder there, such as resnet34, timm-efficientnet-b0, mobilenet_v2, mit_b0, tu-..."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the architecture."""
    resolution: Resolution | None = None
    """Pixel size to train at; default: the images' own."""
    tile: int = Field(default=256, ge=32)
    """Side of the crops, and of the tiles that the model will see."""
    overlap: int | None = Field(default=None, ge=0)
    """Overlap for the card; default: a quarter of the tile."""
    minutes: float = Field(default=10, gt=0)
    """Time budget, from the first step to the last."""
    batch: int = Field(default=8, ge=1)
    """Crops a step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of AdamW, at its highest."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the forward pass; weights and their updates are always float32."""
    dice_weight: float = Field(default=1.0, ge=0)
    """Weight of the Dice loss beside cross-entropy."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each label that is spread evenly over all classes, in the cross-entropy."""
    rare_class_weight: float = Field(default=0.0, ge=0, le=1)
    """Cross-entropy weights of the classes: their share to the power of minus this."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the last feature maps dropped."""
    class_balance: float = Field(default=0.5, ge=0, le=1)
    """0: crops lie where they fall; 1: every crop is centred on a class drawn evenly."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the moving mean of the weights that is validated and kept; 0: the last weights."""
    augment: AugmentConfig = AugmentConfig()
    seed: int = 0
    """Of weights, crops and augmentation."""
    validations: int = Field(default=10, ge=1)
    """How often the model is validated within the budget."""


class ReportConfig(Section):
    """What the report shows."""

    title: str | None = None
    """Default: the config's name."""
    quicklook_px: int = Field(default=640, ge=64, le=4096)
    """Longer side of the pictures."""
    max_quicklooks: int = Field(default=50, ge=0)
    """Images with a picture, worst first."""
    baseline: str = Field(default=LAST_ACCEPTED, min_length=1)
    """The run that this one is held against: `last-accepted` (the last of the same name whose gates all passed, without gates
    the last in which nothing failed), the id of a run in `output`, the path of another run's folder (with a slash: ./runs/x),
    or `none`."""


class StatisticsConfig(Section):
    """How sure scores are."""

    unit: Literal["auto", "image", "group"] = "auto"
    """What chance is reckoned over, never tiles: `group`, the manifest's column of that name, where images of a patient, site or
    flight are alike; `image`; or `auto`: groups where the manifest has them."""
    resamples: int = Field(default=2000, ge=2000, le=100_000)
    """Of the bootstrap."""
    seed: int = Field(default=0, ge=0)
    """Of the bootstrap: the same one gives the same intervals."""


class GateConfig(Section):
    """What is asked of one score before a run counts as good."""

    min: float | None = Field(default=None, ge=-1, le=1)
    """Floor: the run fails below it, and is inconclusive where its interval reaches below it."""
    max_drop: float | None = Field(default=None, ge=0, le=2)
    """Margin against the baseline, in the score's own scale: the run fails where the whole interval of the difference lies below
    it, and is inconclusive where a part does."""

    @model_validator(mode="after")
    def _something(self) -> GateConfig:
        if self.min is None and self.max_drop is None:
            raise ValueError("asks nothing: give min, max_drop or both")
        return self


def _gate_name(name: str) -> str:
    metric, slash, of = name.partition("/")
    known = CLASS_MEASURES if slash else MEASURES
    if metric not in known or (slash and not of):
        near = difflib.get_close_matches(metric.lower(), known, n=1)
        hint = f"Did you mean {near[0]}{slash}{of or 'building' * len(slash)}? " if near else ""
        raise ValueError(
            f"{name!r} is no score. {hint}There are {', '.join(MEASURES)}; of a class, as in iou/building, "
            f"{', '.join(CLASS_MEASURES)}"
        )
    return name


GateName = Annotated[str, AfterValidator(_gate_name)]
"""`miou`, or with a class `iou/building`: all that follows the first slash is the class's name."""


class FaultsConfig(Section):
    """What a run does when something goes wrong."""

    max_failed_fraction: float = Field(default=0.5, ge=0, le=1)
    """Largest share of an image's pixels that may have failed; with more the mask is not published, and the image is failed."""
    attempts: int = Field(default=3, ge=1, le=10)
    """How often a block is tried before its pixels are failed."""
    deadline_s: float | Literal["auto", "none"] = "auto"
    """How long a block may take, loading the model with it, before its worker is given up and it is tried elsewhere. `auto`:
    twenty times what the blocks of the run took so far (the median), but at least ten minutes."""
    min_free_gib: float = Field(default=1.0, ge=0)
    """Space that must stay free on the output's disk beside what the run is expected to write."""

    @model_validator(mode="after")
    def _time_passes(self) -> FaultsConfig:
        if isinstance(self.deadline_s, float) and self.deadline_s <= 0:
            raise ValueError(f"deadline_s {self.deadline_s:g} must be above 0, auto or none")
        return self


class HooksConfig(Section):
    """Who is told how a run has ended: a web address, a command, or both."""

    on: list[Literal["success", "failure", "crash", "cancellation"]] = ["failure", "crash", "cancellation"]
    """success: exit code 0; failure: any other, with a report; crash: the run broke off; cancellation: Ctrl-C, SIGTERM, or
    cancelled in Prefect."""
    webhook: str | None = Field(default=None, pattern=r"^https?://\S+$", repr=False)
    """Gets a POST with a small JSON document."""
    command: list[str] | None = Field(default=None, min_length=1, repr=False)
    """Program and arguments, started without a shell; gets the same JSON on its standard input."""
    timeout_s: float = Field(default=30, gt=0)
    """How long either may take. Their failures are told and change nothing."""


class Config(Section):
    """A nightly run: which archive, which model, where to."""

    name: str = Field(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")
    """Names the run in the report and in Prefect."""
    root: Path = Path()
    """Folder that the archive's and the truth's relative paths start from; itself relative to the config file."""
    output: Path
    """Folder for masks, ledger and reports."""
    archive: ArchiveConfig
    truth: TruthConfig = TruthConfig()
    scoring: ScoringConfig = ScoringConfig()
    model: ModelConfig
    resolution: Resolution | Literal["card", "native"] = "card"
    """Size of the working pixels: the model card's, the image's own, or this."""
    tiling: TilingConfig = TilingConfig()
    cluster: ClusterConfig = LocalCluster()
    faults: FaultsConfig = FaultsConfig()
    hooks: HooksConfig = HooksConfig()
    report: ReportConfig = ReportConfig()
    statistics: StatisticsConfig = StatisticsConfig()
    gates: dict[GateName, GateConfig] = Field(default_factory=dict)
    """What a run must reach: exit code 3 where a gate fails, 4 where one cannot be decided."""
    train: TrainConfig | None = None

    @model_validator(mode="after")
    def _comparable(self) -> Config:
        asking = [name for name, gate in self.gates.items() if gate.max_drop is not None]
        if asking and self.report.baseline == NO_BASELINE:
            raise ValueError(f"gates.{asking[0]}.max_drop needs an earlier run, and report.baseline is none")
        return self

    def reported(self) -> dict[str, Any]:
        """Return the configuration as reports keep it: without what may hold secrets and decides no mask."""
        return self.model_dump(mode="json", exclude={"hooks": True, "cluster": {"arguments"}})

    def located(self, folder: Path) -> Config:
        """This config with every path absolute, taken from `folder`, the config file's own."""
        root = (folder / self.root).resolve()

        def at_root(pattern: str) -> str:
            return pattern if pattern.startswith("{dir}") else str(root / pattern)

        def images(value: str | list[str]) -> str | list[str]:
            return at_root(value) if isinstance(value, str) else [at_root(v) for v in value]

        tissue = self.archive.tissue
        tissue = tissue if tissue in (WHOLE, AUTO) else at_root(tissue)
        archive = self.archive.model_copy(update={"images": images(self.archive.images), "tissue": tissue})
        truth = self.truth.located(at_root)
        model = self.model.model_copy(update={"path": (folder / self.model.path).resolve()})
        train = self.train
        if train is not None:
            labels = at_root(train.labels) if train.labels else truth.pattern
            train = train.model_copy(update={"images": images(train.images), "labels": labels})
        cluster = self.cluster
        if isinstance(cluster, RemoteCluster):
            files = {name: getattr(cluster, name) for name in ("scheduler_file", "tls_ca", "tls_cert", "tls_key")}
            found = {name: (folder / file).resolve() for name, file in files.items() if file is not None}
            cluster = cluster.model_copy(update=found)
        report = self.report
        if "/" in report.baseline:
            report = report.model_copy(update={"baseline": str((folder / report.baseline).resolve())})
        return self.model_copy(
            update={
                "root": root,
                "output": (folder / self.output).resolve(),
                "archive": archive,
                "truth": truth,
                "model": model,
                "cluster": cluster,
                "report": report,
                "train": train,
            }
        )


def load_config(path: Path, *, root: Path | None = None) -> Config:
    """The configuration in the YAML file at `path`, every path in it absolute.

    `root` replaces the file's own `root`, to run one file over another copy of the data.
    Raises ConfigError that names the file, the key, the value and the fix.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: cannot be read: {e}. Give the path of a gigamask configuration (YAML)") from e
    data = yaml_of(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: holds {type(data).__name__}, not a mapping of keys such as archive:, model:, output:")
    if root is not None:
        data["root"] = str(root.resolve())
    return config_of(data, path.resolve().parent, str(path))


def yaml_of(text: str, where: str) -> Any:
    """What a YAML document holds; ConfigError where it is none."""
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as e:
        raise ConfigError(f"{where}: is not YAML: {_where(e)}") from None  # its own words quote lines, which may hold secrets
    except (yaml.YAMLError, ValueError, RecursionError) as e:  # the last two: days that are none, thousands of brackets
        raise ConfigError(f"{where}: is not YAML: {str(e)[:500]}") from e


def _where(error: yaml.MarkedYAMLError) -> str:
    """Return what a YAML document has wrong, and where, without a word of the document."""
    mark = error.problem_mark or error.context_mark
    place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    return ", ".join(filter(None, (error.context, error.problem)))[:500] + place


def config_of(data: dict[str, Any], folder: Path, where: str) -> Config:
    """The configuration that `data` says, paths taken from `folder`; ConfigError begins each line with `where`."""
    try:
        return Config.model_validate(data).located(folder)
    except ValidationError as e:
        raise ConfigError("\n".join(_explain(where, error) for error in e.errors())) from e


_SHORT = reprlib.Repr(maxstring=200, maxother=200, maxlevel=3)
_TAGS = {"serial", "local", "address", "class"}


def _explain(where: str, error: Any) -> str:
    """One line a user can act on for one of pydantic's errors."""
    parts = [p for i, p in enumerate(error["loc"]) if not (i == 1 and error["loc"][0] == "cluster" and p in _TAGS)]
    key = ".".join(str(p) for p in parts if p != "[key]") or "(file)"
    value = error.get("input")
    if error["type"] == "extra_forbidden":
        section = _section(error["loc"][:-1])
        known = sorted(field.alias or name for name, field in section.model_fields.items()) if section else []
        near = difflib.get_close_matches(str(parts[-1]), known, n=1)
        fix = f"Did you mean {near[0]!r}?" if near else f"Known here: {', '.join(known)}"
        return f"{where}: {key}: unknown key. {fix}"
    if error["type"] == "missing":
        return f"{where}: {key}: is missing and has no default"
    given = "" if not parts or SECRET.intersection(parts) else f" (given: {_SHORT.repr(_shown(value))})"
    return f"{where}: {key}: {error['msg'].removeprefix('Value error, ')}{given}"


def _shown(value: Any) -> Any:
    """Return `value` without what its secret keys hold."""
    if isinstance(value, dict):
        return {key: "..." if key in SECRET else _shown(inner) for key, inner in value.items()}
    return [_shown(inner) for inner in value] if isinstance(value, list) else value


def _section(loc: tuple[Any, ...]) -> type[BaseModel] | None:
    """The section at `loc`; None where the path leads through something else."""
    section: Any = Config
    named = False  # whether the next part is a name that the user chose
    clusters = {"serial": SerialCluster, "local": LocalCluster, "address": RemoteCluster, "class": ClassCluster}
    for part in loc:
        if part in clusters and section is None:
            section = clusters[part]
            continue
        if named:
            named = False
            continue
        field = section.model_fields.get(part) if section is not None else None
        annotation: Any = field.annotation if field else None
        named = get_origin(annotation) is dict
        options = [annotation, *getattr(annotation, "__args__", ())]
        section = next((a for a in options if isinstance(a, type) and issubclass(a, Section)), None)
        if part == "cluster":
            section = None
    found: type[BaseModel] | None = section
    return found
