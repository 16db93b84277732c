"""Run sweeps of recipes × seeds with the command line, resume them, and collect their metrics in one table."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import stats

from fp_lightning.errors import InputError
from fp_lightning.files import read_json, well_formed, write_text
from fp_lightning.training.recipe_files import recipe_path

BASE = "base"  # the arm that adds no recipe
RESULTS = "results.csv"
Row = dict[str, Any]  # arm, seed, and every number in the run's metrics.json


@dataclass(frozen=True)
class Run:
    """One arm with one seed: `fit`, then `test`, in its own folder."""

    arm: str
    seed: int
    folder: Path
    words: tuple[str, ...]  # command-line options of both commands

    @property
    def metrics(self) -> Path:
        """Path of the run's metrics.json."""
        return self.folder / "metrics.json"

    def finished(self) -> bool:
        """Return whether the run has metrics.

        Raises:
            InputError: the folder holds a run with different settings.
        """
        settings = self.folder / "sweep.json"
        if settings.is_file() and read_json(settings) != list(self.words):
            raise InputError(f"{self.folder} holds a run with different settings; choose another --out or delete it")
        return self.metrics.is_file()

    def execute(self, threads: int | None = None) -> None:
        """Run the commands that are left, resuming from the last checkpoint; append their output to `run.log`.

        Args:
            threads: threads per process; None keeps OMP_NUM_THREADS.

        Raises:
            InputError: a command failed. The message names the log.
        """
        if self.finished():
            return
        write_text(self.folder / "sweep.json", json.dumps(list(self.words)))
        last, best = (self.folder / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
        reached = next((path for path in (last, best) if path.is_file()), None)  # a killed run may have the best alone
        fit = [*self.words, *(("--ckpt_path", str(reached)) if reached else ())]
        environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
        with (self.folder / "run.log").open("a") as log:
            for words in (["fit", *fit], ["test", *self.words, "--ckpt_path", str(last)]):
                command = [sys.executable, "-m", "fp_lightning", *words]
                if subprocess.run(command, stdout=log, stderr=log, env=environment).returncode:
                    raise InputError(
                        f"{words[0]} of {self.arm} with seed {self.seed} failed; see {self.folder / 'run.log'}"
                    )


def plan(
    arms: Sequence[str], seeds: Sequence[int], out: str | Path, base: Sequence[str], options: Sequence[str] = ()
) -> list[Run]:
    """Return all runs, ordered by seed, so that an interrupted sweep has complete comparisons.

    Args:
        arms: recipes that each state one difference from the base, or "base" for the base itself.
        seeds: seeds of weights that are not loaded, of noise, and of the order of samples.
        out: folder for the runs, `<out>/<arm>/seed-<n>`.
        base: recipes that all arms share, stacked in this order.
        options: further command-line options of all runs.

    Raises:
        InputError: a recipe does not exist, there are no arms or seeds, or one is listed twice.
    """
    paths = {Path(arm).name.removesuffix(".yaml"): arm for arm in arms}
    if len(paths) < len(arms) or len(set(seeds)) < len(seeds) or not arms or not seeds:
        raise InputError(
            f"a sweep needs at least one arm and one seed, none twice, got {', '.join(arms)} and {list(seeds)}"
        )
    stacked = [word for recipe in base for word in ("--config", recipe_path(recipe))]
    runs = []
    for seed in seeds:
        for name, arm in paths.items():
            folder = Path(out) / name / f"seed-{seed}"
            difference = [] if arm == BASE else ["--config", recipe_path(arm)]
            seeded = ["--seed_everything", seed, "--model.seed", seed, "--model.editor.seed", seed, "--data.seed", seed]
            words = [*stacked, *difference, *options, *seeded, "--trainer.default_root_dir", folder]
            runs.append(Run(name, seed, folder, tuple(map(str, words))))
    return runs


def sweep(runs: Sequence[Run], jobs: int = 1, engine: Literal["local", "ray"] = "local") -> list[Row]:
    """Execute unfinished runs and return the rows of all `runs`.

    `results.csv` in the sweep's folder gets a row for every run in that folder, also of earlier sweeps.

    Args:
        runs: see `plan`.
        jobs: number of runs at a time.
        engine: "local" divides this machine's cores among the jobs. "ray" uses Ray Tune, on this machine or on the
            cluster at RAY_ADDRESS; all nodes need access to the folder.

    Raises:
        InputError: a run failed; raised after all others have ended.
    """
    unfinished = [run for run in runs if not run.finished()]
    failures = list({"local": _local, "ray": _ray}[engine](unfinished, jobs)) if unfinished else []
    rows = collect(runs)
    if runs:
        out = runs[0].folder.parent.parent
        write_text(out / RESULTS, as_csv(collect(found(out))))
    if failures:
        raise InputError("; ".join(failures))
    return rows


def _local(runs: Sequence[Run], jobs: int) -> Iterator[str]:
    """Execute runs on this machine, `jobs` at a time; yield the message of each failure."""
    from rich.progress import track

    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run.execute, threads) for run in runs]
        for future in track(as_completed(futures), "runs", total=len(runs)):
            if isinstance(error := future.exception(), InputError):
                yield str(error)
            elif error is not None:
                raise error


def _ray(runs: Sequence[Run], jobs: int) -> Iterator[str]:
    """Execute each run as a trial of Ray Tune; yield the message of each failure."""
    try:
        from ray import tune
    except ImportError as error:
        raise InputError("--engine ray needs Ray Tune; pip install 'fp-lightning[ray]'") from error

    working_directory = Path.cwd()

    def trial(config: dict[str, int]) -> None:
        os.chdir(working_directory)
        runs[config["run"]].execute()
        tune.report({"done": 1})

    storage = working_directory / runs[0].folder.parent.parent / "ray"
    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": 1}),
        param_space={"run": tune.grid_search(list(range(len(runs))))},
        tune_config=tune.TuneConfig(max_concurrent_trials=jobs),
        run_config=tune.RunConfig(storage_path=str(storage.absolute())),
    )
    results = tuner.fit()
    for result in (results[index] for index in range(len(results))):
        if result.error is not None:
            yield str(result.error).strip().splitlines()[-1].partition("InputError: ")[2] or str(result.error)


def found(out: str | Path) -> list[Run]:
    """Return all runs in a sweep's folder, also those of earlier sweeps."""
    runs = []
    for settings in sorted(Path(out).glob("*/seed-*/sweep.json")):
        folder, words = settings.parent, read_json(settings)
        with well_formed(settings):
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise TypeError(f"the words of a command are {words!r}")
        runs.append(Run(folder.parent.name, int(folder.name.removeprefix("seed-")), folder, tuple(words)))
    return runs


def collect(runs: Iterable[Run]) -> list[Row]:
    """Return a row for every finished run; nested metrics get dotted names, other values than numbers are left out."""
    rows = []
    for run in runs:
        if run.metrics.is_file():
            with well_formed(run.metrics):
                rows.append({"arm": run.arm, "seed": run.seed, **dict(_numbers(read_json(run.metrics)))})
    return rows


def _numbers(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield prefix + name, value


def as_csv(rows: Sequence[Row]) -> str:
    """Return a CSV table with a column for every metric of any row; missing values are empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@dataclass(frozen=True)
class Summary:
    """One arm's metric over seeds."""

    arm: str
    seeds: int
    mean: float
    interval: tuple[float, float]  # 95 % of the mean, Student's t over seeds
    difference: float | None = None  # mean over common seeds of arm − reference
    difference_interval: tuple[float, float] | None = None


def summarise(rows: Sequence[Row], metric: str, reference: str = BASE) -> list[Summary]:
    """Return each arm's mean of a metric, and the paired difference from the reference arm over common seeds.

    The interval of a single seed is infinite.

    Raises:
        InputError: no row has the metric.
    """
    by_arm: dict[str, dict[int, float]] = {}
    for row in rows:
        if metric in row:
            by_arm.setdefault(row["arm"], {})[row["seed"]] = row[metric]
    if not by_arm:
        raise InputError(f"no run has the metric {metric}; {RESULTS} lists the available ones")
    summaries = []
    for arm, values in by_arm.items():
        mean, interval = _mean(list(values.values()))
        other = by_arm.get(reference, {})
        pairs = [values[seed] - other[seed] for seed in values if seed in other]
        if arm == reference or not pairs:
            summaries.append(Summary(arm, len(values), mean, interval))
        else:
            summaries.append(Summary(arm, len(values), mean, interval, *_mean(pairs)))
    return summaries


def _mean(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Return the mean and its 95 % interval by Student's t."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, (float("-inf"), float("inf"))
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return mean, (mean - half, mean + half)


def markdown(rows: Sequence[Row], metrics: Sequence[str], reference: str = BASE) -> str:
    """Return a Markdown table of arms: mean ± half the 95 % interval of each metric, and difference from the reference.

    A difference is bold if its interval excludes zero.
    """
    columns = {metric: {s.arm: s for s in summarise(rows, metric, reference)} for metric in metrics}
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    lines = ["| arm | seeds | " + " | ".join(f"{m} | − {reference}" for m in metrics) + " |"]
    lines.append("|---|---|" + "---|---|" * len(metrics))
    for arm in arms:
        cells = [arm, str(sum(row["arm"] == arm for row in rows))]
        for summary in (columns[metric].get(arm) for metric in metrics):
            cells += (
                ["–", "–"] if summary is None else [_plus_minus(summary.mean, summary.interval), _difference(summary)]
            )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _plus_minus(mean: float, interval: tuple[float, float]) -> str:
    return f"{mean:.3f} ± {interval[1] - mean:.3f}"


def _difference(summary: Summary) -> str:
    if summary.difference is None or summary.difference_interval is None:
        return ""
    low, high = summary.difference_interval
    bold = "**" if low > 0 or high < 0 else ""
    return f"{bold}{summary.difference:+.3f}{bold} ± {high - summary.difference:.3f}"
