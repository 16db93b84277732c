"""report.html of a comparison: the table, distributions, and every sample by every system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fp_lightning.evaluation.report import (
    PAPER,
    ROWS,
    ReportSample,
    distributions,
    gallery,
    interval_text,
    missing_list,
    number,
    write_page,
)


def write_comparison_page(
    path: Path,
    comparison: Mapping[str, Any],
    samples: Sequence[ReportSample],
    rows: Mapping[str, Sequence[Mapping[str, float]]],
) -> Path:
    """Writes the page.

    Args:
        comparison: as `fp_lightning.evaluation.compare.compare` returns it.
        samples: what is shown; `others` holds the images of all systems but the first.
        rows: scores by image of each system, for the distributions.
    """
    labels = list(rows)
    title = (
        f"{' against '.join(labels)} on {comparison['n']} images" if len(labels) > 1 else f"Evaluation of {labels[0]}"
    )
    body = [
        f"<header><h1>{escape(title)}</h1></header>",
        f"<section><h2>Metrics</h2>{_table(comparison)}{missing_list(comparison['not_measured'])}</section>",
        *(distributions(rows[label], label, f"Distributions of {label}") for label in labels),
        gallery(samples),
    ]
    return write_page(path, title, body)


def _table(comparison: Mapping[str, Any]) -> str:
    """A row a metric, a column a system; under each value its interval, and its difference from the first."""
    systems, differences = comparison["systems"], comparison["differences"]
    paper = "".join(f"<th>Paper*<small>{signal}</small></th>" for signal in PAPER)
    rows = [f"<tr><th>Metric</th>{''.join(f'<th>{escape(label)}</th>' for label in systems)}{paper}</tr>"]
    for name in next(iter(systems.values())):
        label, good, unit, decimals = ROWS[name]
        cells = []
        for system, scores in systems.items():
            if name not in scores:
                cells.append("<td></td>")
                continue
            entry, other = scores[name], differences.get(system, {}).get(name)
            small = interval_text({"intervals": {name: entry["interval"]}}, name, decimals)
            mark = ""
            if other:
                verdict = {True: " class=good", False: " class=bad", None: ""}[other["better"]]
                mark = f"<small{verdict}>{number(float(other['value']), decimals, unit, '+')}</small>"
            cells.append(f"<td><b>{number(float(entry['value']), decimals, unit)}</b>{small}{mark}</td>")
        theirs = "".join(f"<td>{number(PAPER[signal].get(name))}</td>" for signal in PAPER)
        rows.append(f"<tr><th>{label} <span>{'↑' if good > 0 else '↓'}</span></th>{''.join(cells)}{theirs}</tr>")
    note = (
        f"<p class=note>Under each value its 95 % bootstrap interval over images, and how it differs from "
        f"{escape(comparison['first'])}: in colour where the whole interval of the difference, image by image, is on "
        "one side.<br>* FramePainter (arXiv 2501.08225), Table 1, on the paper's own pairs: <b>not directly "
        "comparable</b>.</p>"
    )
    return f"<div class=scroll><table class=metrics>{''.join(rows)}</table></div>{note}"
