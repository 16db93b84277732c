"""Sweeps: recipes × seeds, each run by the same commands that a user would type, resumed, and put into one table."""

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
from fp_lightning.files import write_atomic
from fp_lightning.training.recipe_files import recipe_path

BASE = "base"  # the arm without a recipe of its own
RESULTS = "results.csv"
Row = dict[str, Any]  # arm, seed and every number of the run's metrics.json


@dataclass(frozen=True)
class Run:
    """One arm with one seed: `fit`, then `test`, in a folder of its own."""

    arm: str
    seed: int
    folder: Path
    words: tuple[str, ...]  # of both commands

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.json"

    def finished(self) -> bool:
        """Whether it has been run.

        Raises:
            InputError: its folder was made with other settings.
        """
        described = self.folder / "sweep.json"
        if described.is_file() and json.loads(described.read_text()) != list(self.words):
            raise InputError(f"{self.folder} holds a run with other settings; choose another --out or delete it")
        return self.metrics.is_file()

    def execute(self, threads: int | None = None) -> None:
        """Runs what is left of it; what it prints goes to `run.log` in its folder.

        Args:
            threads: of each process; None leaves that to OMP_NUM_THREADS.

        Raises:
            InputError: a command failed; names the log.
        """
        if self.finished():
            return
        write_atomic(self.folder / "sweep.json", json.dumps(list(self.words)).encode())
        last = self.folder / "checkpoints" / "last.ckpt"
        fit = [*self.words, *(("--ckpt_path", str(last)) if last.is_file() else ())]
        environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
        with (self.folder / "run.log").open("a") as log:
            for words in (["fit", *fit], ["test", *self.words, "--ckpt_path", str(last)]):
                command = [sys.executable, "-m", "fp_lightning", *words]
                if subprocess.run(command, stdout=log, stderr=log, env=environment).returncode:
                    raise InputError(
                        f"{words[0]} of {self.arm} with seed {self.seed} failed; {self.folder / 'run.log'} says why"
                    )


def plan(
    arms: Sequence[str], seeds: Sequence[int], out: str | Path, base: Sequence[str], options: Sequence[str] = ()
) -> list[Run]:
    """All runs, seed by seed, so that an interrupted sweep has whole comparisons.

    Args:
        arms: recipes that each state one difference from the base, or "base" for the base itself.
        seeds: of weights that are not loaded, of noise and of the order of samples.
        out: folder for the runs, `<out>/<arm>/seed-<n>`.
        base: recipes that all arms share, stacked in this order.
        options: further command-line words of all runs.

    Raises:
        InputError: a recipe does not exist, or an arm or a seed comes twice.
    """
    paths = {Path(arm).name.removesuffix(".yaml"): arm for arm in arms}
    if len(paths) < len(arms) or len(set(seeds)) < len(seeds) or not arms or not seeds:
        raise InputError(f"a sweep needs arms and seeds, each once, got {', '.join(arms)} and {list(seeds)}")
    stacked = [word for recipe in base for word in ("--config", recipe_path(recipe))]
    runs = []
    for seed in seeds:
        for name, arm in paths.items():
            folder = Path(out) / name / f"seed-{seed}"
            own = [] if arm == BASE else ["--config", recipe_path(arm)]
            seeded = ["--seed_everything", seed, "--model.seed", seed, "--model.editor.seed", seed, "--data.seed", seed]
            words = [*stacked, *own, *options, *seeded, "--trainer.default_root_dir", folder]
            runs.append(Run(name, seed, folder, tuple(map(str, words))))
    return runs


def sweep(runs: Sequence[Run], jobs: int = 1, engine: Literal["local", "ray"] = "local") -> list[Row]:
    """Runs what is not finished, `jobs` at a time, and returns all rows; `results.csv` has every run of the folder.

    Args:
        engine: "local" shares this machine's cores among the jobs; "ray" hands the runs to Ray Tune, on this machine
            or the cluster that RAY_ADDRESS names, which shares the folder.

    Raises:
        InputError: a run failed, after the others are through.
    """
    left = [run for run in runs if not run.finished()]
    failures = list({"local": _local, "ray": _ray}[engine](left, jobs)) if left else []
    rows = collect(runs)
    if runs:
        out = runs[0].folder.parent.parent
        write_atomic(out / RESULTS, as_csv(collect(found(out))).encode())
    if failures:
        raise InputError("; ".join(failures))
    return rows


def _local(runs: Sequence[Run], jobs: int) -> Iterator[str]:
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
    """Every run is a trial of Ray Tune."""
    try:
        from ray import tune
    except ImportError as error:
        raise InputError("--engine ray needs Ray Tune; pip install 'fp-lightning[ray]'") from error

    where = Path.cwd()

    def trial(config: dict[str, int]) -> None:
        os.chdir(where)
        runs[config["run"]].execute()
        tune.report({"done": 1})

    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": 1}),
        param_space={"run": tune.grid_search(list(range(len(runs))))},
        tune_config=tune.TuneConfig(max_concurrent_trials=jobs),
        run_config=tune.RunConfig(storage_path=str((where / runs[0].folder.parent.parent / "ray").absolute())),
    )
    results = tuner.fit()
    for result in (results[index] for index in range(len(results))):
        if result.error is not None:
            yield str(result.error).strip().splitlines()[-1].partition("InputError: ")[2] or str(result.error)


def found(out: str | Path) -> list[Run]:
    """All runs in a sweep's folder, also those of earlier sweeps."""
    runs = []
    for described in sorted(Path(out).glob("*/seed-*/sweep.json")):
        folder, words = described.parent, json.loads(described.read_text())
        runs.append(Run(folder.parent.name, int(folder.name.removeprefix("seed-")), folder, tuple(words)))
    return runs


def collect(runs: Iterable[Run]) -> list[Row]:
    """The numbers of every finished run."""
    return [
        {"arm": run.arm, "seed": run.seed, **dict(_numbers(json.loads(run.metrics.read_text())))}
        for run in runs
        if run.metrics.is_file()
    ]


def _numbers(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield prefix + name, value


def as_csv(rows: Sequence[Row]) -> str:
    """A table with a column for every number that any row has."""
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
    difference: float | None = None  # mean of arm − reference, seed by seed
    difference_interval: tuple[float, float] | None = None


def summarise(rows: Sequence[Row], metric: str, reference: str = BASE) -> list[Summary]:
    """The mean of a metric by arm, and how far it is from the reference arm's with the same seeds.

    An interval of one seed is infinite.

    Raises:
        InputError: no row has the metric.
    """
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if metric in row:
            found.setdefault(row["arm"], {})[row["seed"]] = row[metric]
    if not found:
        raise InputError(f"no run has the metric {metric}; {RESULTS} names those that there are")
    summaries = []
    for arm, values in found.items():
        mean, interval = _mean(list(values.values()))
        other = found.get(reference, {})
        pairs = [values[seed] - other[seed] for seed in values if seed in other]
        if arm == reference or not pairs:
            summaries.append(Summary(arm, len(values), mean, interval))
        else:
            summaries.append(Summary(arm, len(values), mean, interval, *_mean(pairs)))
    return summaries


def _mean(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, (float("-inf"), float("inf"))
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return mean, (mean - half, mean + half)


def markdown(rows: Sequence[Row], metrics: Sequence[str], reference: str = BASE) -> str:
    """A table of arms: every metric's mean ± half its interval, and the difference from the reference."""
    columns = {metric: {s.arm: s for s in summarise(rows, metric, reference)} for metric in metrics}
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    lines = ["| arm | seeds | " + " | ".join(f"{m} | − {reference}" for m in metrics) + " |"]
    lines.append("|---|---|" + "---|---|" * len(metrics))
    for arm in arms:
        cells = [arm, str(sum(row["arm"] == arm for row in rows))]
        for summary in (columns[metric].get(arm) for metric in metrics):
            cells += ["–", "–"] if summary is None else [_pm(summary.mean, summary.interval), _difference(summary)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _pm(mean: float, interval: tuple[float, float]) -> str:
    return f"{mean:.3f} ± {interval[1] - mean:.3f}"


def _difference(summary: Summary) -> str:
    if summary.difference is None or summary.difference_interval is None:
        return ""
    low, high = summary.difference_interval
    clear = "**" if low > 0 or high < 0 else ""
    return f"{clear}{summary.difference:+.3f}{clear} ± {high - summary.difference:.3f}"
