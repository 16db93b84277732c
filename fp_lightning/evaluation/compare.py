"""Compare systems on the same examples: check all images, score them, and report the differences."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from fp_lightning.errors import InputError
from fp_lightning.evaluation.bootstrap import RESAMPLES, bootstrap_means, interval
from fp_lightning.evaluation.clip_fid import FID_RESAMPLES
from fp_lightning.evaluation.examples import Examples
from fp_lightning.evaluation.metrics import COPY, METRICS, SCORES, TRUTH, EditMetrics
from fp_lightning.evaluation.page import write_comparison_page
from fp_lightning.evaluation.predictions import check_sizes, find_predictions, folder_labels, prediction
from fp_lightning.evaluation.report import write_metrics
from fp_lightning.evaluation.rows import ROWS, reasons
from fp_lightning.evaluation.samples import ReportSample
from fp_lightning.evaluation.scores import frechet_of_features
from fp_lightning.files import write_text
from fp_lightning.signals.region import RULE
from fp_lightning.types import EditBatch, to_unit_range

SOURCE, TARGET = "source, unedited", "true target"  # the target has scores that rest on estimated motion alone


@dataclass
class System:
    """A folder of predictions with its scores."""

    label: str
    folder: Path
    files: dict[str, Path]  # by example name
    metrics: EditMetrics
    result: dict[str, Any]


def evaluate(
    predictions: Sequence[Path],
    examples: Examples,
    out: Path,
    options: Mapping[str, Any] | None = None,
    resize: bool = False,
    allow_missing: bool = False,
    max_samples: int = 200,
) -> dict[str, Any]:
    """Score folders of images; write `<out>/LABEL/metrics.json`, `comparison.{md,csv,json}` and `report.html`.

    Args:
        predictions: folders with one image for each example, NAME.png (or jpg, webp); see `Examples.files`.
            The others are compared with the first.
        options: arguments of `EditMetrics`.
        resize: resize images whose size differs from their example's; otherwise they are an error.
        allow_missing: score only the examples that have an image in every folder; otherwise a missing image is an
            error.
        max_samples: maximum number of examples in the report.

    Returns:
        The content of comparison.json: that of `compare`, and "regions": which pixels the scores by region, and the
        methods, went by.

    Raises:
        InputError: a folder or an image is missing, unreadable, duplicated or of another size, or a required metric
            cannot be measured. Nothing has been written in that case.
    """
    labels = folder_labels(predictions)
    systems = [
        System(label, folder, find_predictions(folder, examples), EditMetrics(**(options or {})), {})
        for label, folder in zip(labels, predictions, strict=True)
    ]
    indices = _common(systems, examples, allow_missing)
    if not resize:
        sizes = {examples.names[index]: examples.size(index) for index in indices}
        for system in systems:
            check_sizes(system.folder, system.files, sizes)
    shown = {indices[i * len(indices) // max_samples] for i in range(max_samples)}
    shown = set(indices) if len(indices) <= max_samples else shown
    samples: list[ReportSample] = []
    for index in track(indices, "scoring", transient=True):
        batch = examples[index]
        size = (batch.source.shape[-2], batch.source.shape[-1])
        images = [prediction(system.files[examples.names[index]], size) for system in systems]
        for system, image in zip(systems, images, strict=True):
            system.metrics.update(to_unit_range(image)[None], batch)
        if index in shown:
            samples.append(_sample(batch, systems, images))
    for system in systems:
        system.result = system.metrics.compute()
    comparison = compare(systems) | {"regions": f"{examples.regions} {RULE}"}
    for system in systems:
        write_metrics(out / system.label, system.result)
    write_text(out / "comparison.json", json.dumps(comparison, indent=2) + "\n")
    write_text(out / "comparison.md", markdown(comparison))
    write_text(out / "comparison.csv", _csv(comparison))
    scores = {system.label: list(system.metrics.per_sample().values()) for system in systems}
    write_comparison_page(out / "report.html", comparison, samples, scores)
    return comparison


def compare(systems: Sequence[System]) -> dict[str, Any]:
    """Collect the scores of all systems and of the unedited source, and their differences from the first system.

    Returns:
        {"n", "systems": {label: {metric: {"value", "interval"}}}, "differences": {label: {metric: {"value",
        "interval", "better"}}}, "not_measured": {metric: reason}}. A difference is this system minus the first. Its
        interval is the 95 % bootstrap over images, paired by image (for CLIP-FID, ± 1.96 standard deviations of the
        resampled difference). "better" is true if the whole interval is an improvement, false if it is a deterioration,
        and None if it contains zero.
    """
    first = systems[0]
    not_measured = {k: v for k, v in first.result["not_measured"].items() if k in METRICS}
    measured = [name for name in METRICS if name not in not_measured]
    scores: dict[str, Any] = {}
    for system in systems:
        scores[system.label] = {name: _entry(system.result, name) for name in measured}
    scores[SOURCE] = {name: _entry(first.result, name + COPY) for name in measured}
    truth = {
        name: _entry(first.result, name + TRUTH) for name in measured if first.result.get(name + TRUTH) is not None
    }
    scores |= {TARGET: truth} if truth else {}
    tables = {system.label: (system.metrics.table(), system.metrics.feature_table()) for system in systems}
    ours = tables[first.label]
    pairs = [(system.label, tables[system.label], "") for system in systems[1:]] + [(SOURCE, ours, COPY)]
    differences = {
        label: {name: _difference(name, ours, theirs, suffix) for name in measured} for label, theirs, suffix in pairs
    }
    n = first.result["n"]
    return {
        "n": n, "first": first.label, "systems": scores, "differences": differences, "not_measured": not_measured
    }  # fmt: skip


def _entry(result: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {"value": result[name], "interval": result["intervals"].get(name)}


def _difference(name: str, ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], suffix: str) -> dict[str, Any]:
    """The difference of one metric between two systems.

    Args:
        ours, theirs: scores [n, len(SCORES)] and CLIP features [n, 3, 512].
        suffix: `COPY` to take their scores of the unedited source.
    """
    if name == "clip_fid":
        value, spread = _fid_difference(ours[1], theirs[1], 1 if suffix else 0)
        low, high = value - 1.96 * spread, value + 1.96 * spread
    else:
        column, here = SCORES.index(name + suffix), SCORES.index(name)
        per_image = (theirs[0][:, column] - ours[0][:, here])[:, None]
        value = per_image.nanmean().item()
        low, high = interval(bootstrap_means(per_image, RESAMPLES)[:, 0]) if len(per_image) > 1 else (value, value)
    better = None if low <= 0 <= high else (low > 0) == (ROWS[name].better > 0)
    return {"value": value, "interval": [low, high], "better": better}


def _fid_difference(first: Tensor, other: Tensor, which: int) -> tuple[float, float]:
    """CLIP-FID of `other` minus that of `first`, and its standard deviation over paired bootstrap samples."""
    generator, n = torch.Generator().manual_seed(0), len(first)

    def at(index: Tensor) -> float:
        ours, theirs = first[index], other[index]
        return frechet_of_features(theirs[:, which], theirs[:, 2]) - frechet_of_features(ours[:, 0], ours[:, 2])

    draws = torch.tensor([at(torch.randint(n, (n,), generator=generator)) for _ in range(FID_RESAMPLES)])
    return at(torch.arange(n)), draws.std().item()


def markdown(comparison: Mapping[str, Any]) -> str:
    """Format a comparison as Markdown: one row per system with half intervals, the best in bold, and differences."""
    measured = list(next(iter(comparison["systems"].values())))
    heads = [f"{ROWS[name].label} {ROWS[name].arrow}" for name in measured]
    rule = "|---|" + "---|" * len(heads)
    lines = [f"{comparison['n']} images; ± half the 95 % bootstrap interval over images", ""]
    lines += ["| | " + " | ".join(heads) + " |", rule]
    judged = {k: v for k, v in comparison["systems"].items() if k not in (SOURCE, TARGET)}
    best = {name: max(v[name]["value"] * ROWS[name].better for v in judged.values()) for name in measured}
    for system, scores in comparison["systems"].items():
        cells = []
        for name in measured:
            if name not in scores:
                cells.append("")
                continue
            row, entry = ROWS[name], scores[name]
            value = f"{entry['value']:.{row.decimals}f}{row.unit}"
            bold = system in judged and entry["value"] * row.better == best[name]
            cells.append((f"**{value}**" if bold else value) + _half(entry["interval"], row.decimals))
        lines.append(f"| {system} | " + " | ".join(cells) + " |")
    lines += ["", f"Differences from {comparison['first']}, paired by image:", ""]
    lines += ["| | " + " | ".join(heads) + " |", rule]
    for system, entries in comparison["differences"].items():
        cells = []
        for name in measured:
            entry, row = entries[name], ROWS[name]
            mark = {True: " better", False: " worse", None: ""}[entry["better"]]
            half = _half(entry["interval"], row.decimals)
            cells.append(f"{entry['value']:+.{row.decimals}f}{row.unit}{half}{mark}")
        lines.append(f"| {system} | " + " | ".join(cells) + " |")
    for reason, names in reasons(comparison["not_measured"]).items():
        lines += ["", f"Not measured: {', '.join(names)}: {reason}"]
    lines += ["", comparison["regions"]]
    return "\n".join(lines) + "\n"


def _half(bounds: Sequence[float] | None, decimals: int) -> str:
    return "" if bounds is None else f" ±{(bounds[1] - bounds[0]) / 2:.{decimals}f}"


def _csv(comparison: Mapping[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ("value", "low", "high")
    writer.writerow(["system", "metric", *head, *(f"difference_{name}" for name in head)])
    for label, scores in comparison["systems"].items():
        for name, entry in scores.items():
            other = comparison["differences"].get(label, {}).get(name)
            row = [entry["value"], *(entry["interval"] or ("", ""))]
            writer.writerow([label, name, *row, *([other["value"], *other["interval"]] if other else ["", "", ""])])
    return text.getvalue()


def _common(systems: Sequence[System], examples: Examples, allow_missing: bool) -> list[int]:
    """The examples that have an image in every system.

    Raises:
        InputError: an example has none and `allow_missing` is false, or no example is left.
    """
    for system in systems:
        missing = [name for name in examples.names if name not in system.files]
        if missing and not allow_missing:
            raise InputError(
                f"{system.folder} lacks {len(missing)} of {len(examples.names)} predictions; the first is "
                f"{missing[0]}.png; add them, or score only the examples that all folders have with --allow-missing"
            )
    indices = [i for i, name in enumerate(examples.names) if all(name in system.files for system in systems)]
    if not indices:
        raise InputError("no example has a prediction in every folder; name each image after its example")
    return indices


def _sample(batch: EditBatch, systems: Sequence[System], images: Sequence[Tensor]) -> ReportSample:
    sample = ReportSample.of(to_unit_range(images[0])[None], batch)[0]
    sample.scores = systems[0].metrics.per_sample()[sample.name]
    sample.others = {system.label: image for system, image in zip(systems[1:], images[1:], strict=True)}
    sample.label = systems[0].label
    return sample
