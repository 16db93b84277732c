"""Several systems on the same examples: every image read and checked first, then scored, then set side by side."""

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
from fp_lightning.evaluation.report import write_metrics
from fp_lightning.evaluation.rows import ROWS
from fp_lightning.evaluation.samples import ReportSample
from fp_lightning.evaluation.scores import frechet_of_features
from fp_lightning.files import write_atomic
from fp_lightning.media.images import IMAGES, read_image, squeeze
from fp_lightning.types import EditBatch, to_unit_range

SOURCE, TARGET = "source, unedited", "true target"  # for what the second is: metrics that rest on estimates


@dataclass
class System:
    """A folder of predictions and what came of them."""

    label: str
    folder: Path
    files: dict[str, Path]  # by the name of the example
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
    """Scores folders of images and writes `<out>/LABEL/metrics.json`, `comparison.{md,csv,json}` and `report.html`.

    Args:
        predictions: folders with one image for each example, NAME.png (or jpg, webp); see `Examples.files`.
            The first is the one that the others are compared with.
        options: of `EditMetrics`.
        resize: bring images of another size to their example's instead of refusing them.
        allow_missing: score the examples that all folders have an image for.
        max_samples: examples shown in the report, at most.

    Returns:
        The content of comparison.json.

    Raises:
        InputError: a folder or an image is missing, unreadable, doubled or of another size, or something required
            cannot be measured; nothing has been written then.
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
    comparison = compare(systems)
    for system in systems:
        write_metrics(out / system.label, system.result)
    write_atomic(out / "comparison.json", (json.dumps(comparison, indent=2) + "\n").encode())
    write_atomic(out / "comparison.md", markdown(comparison).encode())
    write_atomic(out / "comparison.csv", _csv(comparison).encode())
    rows = {system.label: list(system.metrics.per_sample().values()) for system in systems}
    write_comparison_page(out / "report.html", comparison, samples, rows)
    return comparison


def compare(systems: Sequence[System]) -> dict[str, Any]:
    """Scores of all systems and of the source unedited, and how each differs from the first, image by image.

    Returns:
        {"n", "systems": {label: {metric: {"value", "interval"}}}, "differences": {label: {metric: {"value",
        "interval", "better"}}}, "not_measured": {metric: reason}}. A difference is this system minus the first; its
        interval is the 95 % bootstrap over images, both drawn together (of CLIP-FID, ± 1.96 standard deviations of
        the resampled difference); "better" is whether the whole interval is on the good side, None if it holds 0.
    """
    first = systems[0]
    reasons = {k: v for k, v in first.result["not_measured"].items() if k in METRICS}
    measured = [name for name in METRICS if name not in reasons]
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
        "n": n, "first": first.label, "systems": scores, "differences": differences, "not_measured": reasons
    }  # fmt: skip


def _entry(result: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {"value": result[name], "interval": result["intervals"].get(name)}


def _difference(name: str, ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], suffix: str) -> dict[str, Any]:
    """Of one metric; each side is its scores and its features, `suffix` says which of their scores."""
    if name == "clip_fid":
        value, spread = _fid_difference(ours[1], theirs[1], 1 if suffix else 0)
        low, high = value - 1.96 * spread, value + 1.96 * spread
    else:
        column, here = SCORES.index(name + suffix), SCORES.index(name)
        per_image = (theirs[0][:, column] - ours[0][:, here])[:, None]
        value = per_image.nanmean().item()
        low, high = interval(bootstrap_means(per_image, RESAMPLES)[:, 0]) if len(per_image) > 1 else (value, value)
    good = ROWS[name][1]
    better = None if low <= 0 <= high else (low > 0) == (good > 0)
    return {"value": value, "interval": [low, high], "better": better}


def _fid_difference(first: Tensor, other: Tensor, which: int) -> tuple[float, float]:
    """CLIP-FID of `other`'s images less that of `first`'s, and the standard deviation over images drawn together."""
    generator, n = torch.Generator().manual_seed(0), len(first)

    def at(index: Tensor) -> float:
        ours, theirs = first[index], other[index]
        return frechet_of_features(theirs[:, which], theirs[:, 2]) - frechet_of_features(ours[:, 0], ours[:, 2])

    draws = torch.tensor([at(torch.randint(n, (n,), generator=generator)) for _ in range(FID_RESAMPLES)])
    return at(torch.arange(n)), draws.std().item()


def markdown(comparison: Mapping[str, Any]) -> str:
    """The table in Markdown: a row a system, ± half an interval, best in bold, and differences from the first."""
    measured = list(next(iter(comparison["systems"].values())))
    heads = [f"{ROWS[name][0]} {'↑' if ROWS[name][1] > 0 else '↓'}" for name in measured]
    rule = "|---|" + "---|" * len(heads)
    lines = [f"{comparison['n']} images; ± half the 95 % bootstrap interval over images", ""]
    lines += ["| | " + " | ".join(heads) + " |", rule]
    judged = {k: v for k, v in comparison["systems"].items() if k not in (SOURCE, TARGET)}
    best = {name: max(v[name]["value"] * ROWS[name][1] for v in judged.values()) for name in measured}
    for label, scores in comparison["systems"].items():
        cells = []
        for name in measured:
            _, good, unit, decimals = ROWS[name]
            if name not in scores:
                cells.append("")
                continue
            value = f"{scores[name]['value']:.{decimals}f}{unit}"
            bold = label in judged and scores[name]["value"] * good == best[name]
            cells.append((f"**{value}**" if bold else value) + _half(scores[name]["interval"], decimals))
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += ["", f"Differences from {comparison['first']}, image by image:", ""]
    lines += ["| | " + " | ".join(heads) + " |", rule]
    for label, entries in comparison["differences"].items():
        cells = []
        for name in measured:
            entry, (_, _, unit, decimals) = entries[name], ROWS[name]
            mark = {True: " better", False: " worse", None: ""}[entry["better"]]
            cells.append(f"{entry['value']:+.{decimals}f}{unit}{_half(entry['interval'], decimals)}{mark}")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    for reason in dict.fromkeys(comparison["not_measured"].values()):
        names = [name for name, why in comparison["not_measured"].items() if why == reason]
        lines += ["", f"Not measured: {', '.join(names)}: {reason}"]
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


# Reading predictions


def folder_labels(folders: Sequence[Path]) -> list[str]:
    """Names of the folders, with those of their parents where two are alike."""
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder of predictions")
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        double = next(f for f, p in zip(folders, parts, strict=True) if parts.count(p) > 1)
        raise InputError(f"{double} is given twice; name every folder once")
    for depth in range(1, max(map(len, parts)) + 1):
        labels = ["-".join(part.strip("/") for part in p[-depth:] if part.strip("/")) for p in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [str(number) for number in range(1, len(folders) + 1)]


def find_predictions(folder: Path, examples: Examples) -> dict[str, Path]:
    """The image of every example that has one.

    Raises:
        InputError: an example has two, or none of the examples has one.
    """
    found: dict[str, Path] = {}
    for index, name in enumerate(examples.names):
        paths = [folder / f"{stem}{suffix}" for stem in dict.fromkeys(examples.files(index)) for suffix in IMAGES]
        there = [path for path in paths if path.is_file()]
        if len(there) > 1:
            raise InputError(f"{there[0]} and {there[1]} are both predictions of {name}; remove one")
        if there:
            found[name] = there[0]
    if not found:
        raise InputError(
            f"{folder} holds no prediction of any of {len(examples.names)} examples; name images after them, "
            f"{examples.names[0]}.png first"
        )
    return found


def _common(systems: Sequence[System], examples: Examples, allow_missing: bool) -> list[int]:
    """The examples that every system has an image for."""
    for system in systems:
        missing = [name for name in examples.names if name not in system.files]
        if missing and not allow_missing:
            raise InputError(
                f"{system.folder} lacks {len(missing)} of {len(examples.names)} predictions, {missing[0]}.png first; "
                "add them, or score what all folders have with --allow-missing"
            )
    indices = [i for i, name in enumerate(examples.names) if all(name in system.files for system in systems)]
    if not indices:
        raise InputError("there is no example that all folders have a prediction for")
    return indices


def check_sizes(folder: Path, files: Mapping[str, Path], sizes: Mapping[str, tuple[int, int]]) -> None:
    """Raises InputError when an image does not decode or differs from its example's size (height, width)."""
    wrong = []
    for name, (height, width) in sizes.items():
        image = read_image(files[name])
        if image.size != (width, height):
            wrong.append((name, image.size, (width, height)))
    if wrong:
        name, (w, h), (width, height) = wrong[0]
        raise InputError(
            f"{len(wrong)} of {len(sizes)} predictions in {folder} have another size than their example, {name} "
            f"first ({w}x{h} instead of {width}x{height}, width x height); resize them with --resize"
        )


def prediction(path: Path, size: tuple[int, int]) -> Tensor:
    """uint8 [3, h, w], transparency dropped, resized if it must be."""
    return squeeze(read_image(path), size)


def _sample(batch: EditBatch, systems: Sequence[System], images: Sequence[Tensor]) -> ReportSample:
    sample = ReportSample.of(to_unit_range(images[0])[None], batch)[0]
    sample.scores = systems[0].metrics.per_sample()[sample.name]
    sample.others = {system.label: image for system, image in zip(systems[1:], images[1:], strict=True)}
    sample.label = systems[0].label
    return sample
