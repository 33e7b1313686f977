"""Intervals, strata, areas, comparison and gates of a run: a pure function of its report and of the one it is held against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from pipeline.card import ClassInfo
from pipeline.config import GateConfig, StatisticsConfig
from pipeline.confusion import Counts, no_counts
from pipeline.errors import ConfigError, PlanError
from pipeline.image import ImageSpec
from pipeline.report.contract import (
    AreaEstimates,
    ClassArea,
    ComparedRun,
    Evaluation,
    GateVerdict,
    ImageResult,
    RunComparison,
    RunReport,
    ScoreDelta,
    ScoreEstimate,
    Stratum,
    StratumSlice,
)
from pipeline.statistics.area import area_bounds, areas_of
from pipeline.statistics.bootstrap import Estimate, estimates, nothing
from pipeline.statistics.gates import Gate, Verdict, judge
from pipeline.statistics.paired import Comparison, Difference, compare
from pipeline.statistics.strata import strata, worst
from pipeline.statistics.units import Units, units

MOST_SLICES = 30
"""Values of a manifest column; one with more is an identifier, not a division."""
NO_BASELINE = "there is no run to compare with"


def evaluate(
    report: RunReport,
    baseline: RunReport | None = None,
    *,
    gates: Mapping[str, GateConfig] | None = None,
    statistics: StatisticsConfig = StatisticsConfig(),  # noqa: B008 - frozen
    no_baseline: str = NO_BASELINE,
) -> Evaluation:
    """All that is told about a run beside its plain sums. `no_baseline`: why there is none, where there is none.

    Same reports, same answer. ConfigError where a gate names a class that the model does not have.
    """
    asked = gates_of(gates or {}, report.classes)
    scored = [image for image in report.images if image.counts is not None]
    matrices, groups = _matrices(scored), _groups(scored, statistics)
    chance = {"resamples": statistics.resamples, "seed": statistics.seed}
    everything = _units(matrices, groups, len(report.classes))
    found = estimates(everything, report.background, **chance)
    comparison, change = None, None
    if baseline is not None:
        try:
            comparison, change = _compared(report, baseline, statistics)
        except ValueError as e:
            no_baseline = str(e)
    names = [info.name for info in report.classes]
    verdicts = [_verdict(name, judge(gate, found, change, names, no_baseline)) for name, gate in asked.items()]
    # one that can be compared with none is the first of its kind, and without it the next ones would have none either
    refused = ("fail",) if comparison is None else ("fail", "inconclusive")
    divided, undivided = _strata(report, scored, groups, chance)
    return Evaluation(
        unit="group" if any(groups.values()) else "image",
        units=found.units,
        images=len(scored),
        resamples=statistics.resamples,
        seed=statistics.seed,
        overall=_by_metric(found.overall),
        classes=[_by_metric(each) for each in found.classes],
        strata=divided,
        undivided=undivided,
        areas=_areas(report, statistics),
        comparison=comparison,
        no_comparison=None if comparison else no_baseline,
        gates=verdicts,
        accepted=bool(scored) and all(v.outcome not in refused for v in verdicts) if asked else not report.has_failures,
    )


def compare_runs(
    before: RunReport,
    after: RunReport,
    statistics: StatisticsConfig = StatisticsConfig(),  # noqa: B008 - frozen
) -> RunComparison:
    """`after` against `before`. ValueError, in words for a reader, where they have nothing that can be compared."""
    return _compared(after, before, statistics)[0]


def gates_of(gates: Mapping[str, GateConfig], classes: Sequence[ClassInfo]) -> dict[str, Gate]:
    """Gates by their names in the config; ConfigError where one is about a class that is not among `classes`.

    gates_of({"iou/forest/dense": GateConfig(min=0.5)}, classes)    # the IoU of the class `forest/dense`
    """
    codes = {info.name: code for code, info in enumerate(classes)}
    found = {}
    for name, gate in gates.items():
        metric, slash, of = name.partition("/")
        if slash and of not in codes:
            raise ConfigError(f"gates.{name}: the model has no class {of!r}. Its classes are {', '.join(codes)}")
        if metric == "miou_without_background" and "background" not in codes:
            raise ConfigError(f"gates.{name}: the model has no class `background`, so this score is never defined")
        found[name] = Gate(metric, codes[of] if slash else None, gate.min, gate.max_drop)
    return found


def refuse(
    gates: Mapping[str, GateConfig], statistics: StatisticsConfig, classes: Sequence[ClassInfo], images: Iterable[ImageSpec]
) -> None:
    """What could not be judged when the run is over is told before it begins: ConfigError, PlanError."""
    gates_of(gates, classes)
    if statistics.unit == "group":
        alone = [image.uri for image in images if image.group is None]
        if alone:
            raise PlanError(
                f"statistics.unit is group, and {len(alone)} images have none, such as {alone[0]}: fill the manifest's column "
                "`group`, or take unit: auto"
            )


def _compared(now: RunReport, before: RunReport, statistics: StatisticsConfig) -> tuple[RunComparison, Comparison]:
    """As it is reported, and as gates take it. ValueError says why there is none."""
    other = f"run {before.run_id}"
    names, known = ([info.name for info in report.classes] for report in (now, before))
    if names != known:
        raise ValueError(f"{other} has other classes ({', '.join(known)})")
    one = {image.id: image for image in before.images if image.counts is not None}
    two = {image.id: image for image in now.images if image.counts is not None}
    both = [i for i in two if i in one]
    failed = {i for i in both if one[i].state == "failed"}
    relabelled = [i for i in both if i not in failed and not _same_reference(one[i], two[i])]
    kept = [i for i in both if i not in failed and i not in relabelled]
    if not kept:
        raise ValueError(
            f"{other} has no image to compare: of {len(one)} scored images then and {len(two)} now, {len(both)} are the same, of "
            f"which {len(failed)} failed then and {len(relabelled)} have another reference now"
        )
    groups = _groups([two[i] for i in kept], statistics)
    old, new = (_units(_matrices([images[i] for i in kept]), groups, len(names)) for images in (one, two))
    change = compare(old, new, now.background, resamples=statistics.resamples, seed=statistics.seed)
    told = RunComparison(
        baseline=ComparedRun(
            run_id=before.run_id,
            name=before.name,
            finished=before.finished,
            model=before.model.name,
            model_digest=before.model.digest,
            config_digest=before.config_digest,
        ),
        images=len(kept),
        units=change.units,
        only_before=len(one) - len(both),
        only_now=len(two) - len(both),
        failed_before=len(failed),
        relabelled=sorted(relabelled),
        overall={metric: _delta(entry) for metric, entry in change.overall.items()},
        classes=[{metric: _delta(entry) for metric, entry in each.items()} for each in change.classes],
    )
    return told, change


def _verdict(name: str, found: Verdict) -> GateVerdict:
    gate = found.gate
    return GateVerdict(
        name=name, metric=gate.metric, code=gate.code, min=gate.min, max_drop=gate.max_drop, outcome=found.outcome, why=found.why
    )


def _same_reference(before: ImageResult, now: ImageResult) -> bool:
    """Whether the labels hold as many pixels of each class, and as many without, whatever the masks say."""
    one, two = before.matrix, now.matrix
    return one is not None and two is not None and bool((one.sum(1) == two.sum(1)).all())


def _matrices(images: Iterable[ImageResult]) -> dict[str, Counts]:
    return {image.id: matrix for image in images if (matrix := image.matrix) is not None}


def _groups(images: Iterable[ImageResult], statistics: StatisticsConfig) -> dict[str, str | None]:
    """Image id -> unit; the colon, that no id has, keeps groups and images apart."""
    if statistics.unit == "image":
        return {}
    return {image.id: f"group: {image.group}" if image.group else None for image in images}


def _units(matrices: Mapping[str, Counts], groups: Mapping[str, str | None], classes: int) -> Units:
    """The units; one that says nothing where no image is scored."""
    return units(matrices or {"": no_counts(classes)}, groups)


def _strata(
    report: RunReport, scored: list[ImageResult], groups: Mapping[str, str | None], chance: dict[str, int]
) -> tuple[list[Stratum], dict[str, int]]:
    """The columns that divide the scored images, and those with too many values."""
    matrices = _matrices(scored)
    found, undivided = [], {}
    for name in sorted({name for image in scored for name in image.strata}):
        values = {image.id: image.strata[name] for image in scored if name in image.strata}
        different = len(set(values.values()))
        if different > MOST_SLICES:
            undivided[name] = different
        elif different > 1 or len(values) < len(scored):
            slices = strata(matrices, values, groups, report.background, **chance)
            lowest = worst(slices)
            found.append(
                Stratum(
                    name=name,
                    slices=[
                        StratumSlice(
                            value=part.value,
                            images=part.images,
                            units=part.estimates.units,
                            evaluated_px=part.scores.evaluated_px if part.scores else 0,
                            overall=_by_metric(part.estimates.overall),
                            iou=[_estimate(each["iou"]) for each in part.estimates.classes],
                        )
                        for part in slices
                    ],
                    worst=None if lowest is None else slices.index(lowest[0]),
                )
            )
    return found, undivided


def _areas(report: RunReport, statistics: StatisticsConfig) -> AreaEstimates | None:
    """Of images with georeference and a mask; the correction comes from those that are scored."""
    mapped = [image for image in report.images if image.pixel_area_m2 is not None and any(image.class_px)]
    scored = [image for image in mapped if image.counts is not None]
    if not scored:
        return None
    area = np.sum([np.array(image.class_px, np.float64) * (image.pixel_area_m2 or 0.0) for image in mapped], axis=0)
    found_units = _units(_matrices(scored), _groups(scored, statistics), len(report.classes))
    found = areas_of(found_units.counts.sum(0), area)
    low, high = area_bounds(found_units, area, resamples=statistics.resamples, seed=statistics.seed)
    notes = list(found.notes)
    for code, info in enumerate(report.classes):
        notes = [note.replace(f"class {code} is mapped", f"{info.name} is mapped") for note in notes]
    return AreaEstimates(
        images=len(mapped),
        scored_images=len(scored),
        units=len(found_units.evaluated.names),
        classes=[
            ClassArea(
                mapped=float(area[code]),
                estimated=nothing(found.estimated[code]),
                low=nothing(low[code]),
                high=nothing(high[code]),
                margin=nothing(found.margin[code]),
            )
            for code in range(len(report.classes))
        ],
        notes=notes,
    )


def _by_metric(entries: Mapping[str, Estimate]) -> dict[str, ScoreEstimate]:
    return {metric: _estimate(entry) for metric, entry in entries.items()}


def _estimate(found: Estimate) -> ScoreEstimate:
    return ScoreEstimate.model_validate(_plain(found))


def _delta(found: Difference) -> ScoreDelta:
    return ScoreDelta.model_validate(_plain(found))


def _plain(found: Estimate | Difference) -> dict[str, Any]:
    """Its fields, None for NaN: JSON has no other word for it."""
    values = {field.name: getattr(found, field.name) for field in fields(found)}
    return {name: nothing(value) if isinstance(value, float) else value for name, value in values.items()}
