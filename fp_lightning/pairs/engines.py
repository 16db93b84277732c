"""Where videos are worked on: processes of this machine, or Ray."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cv2
import torch

from fp_lightning.errors import InputError

if TYPE_CHECKING:
    from fp_lightning.pairs.build import PairSettings

Engine = Literal["local", "ray"]
Record = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One video to be worked on."""

    path: str
    out: Path
    settings: PairSettings


Work = Callable[[Task], Record]


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_local(work: Work, tasks: Sequence[Task], workers: int) -> Iterator[tuple[Task, Record]]:
    """Spreads videos over processes of one thread each, with two videos a process handed out at a time.

    A video at which a process dies (out of memory, a crash in a decoder) is an error of that video: all
    that were under way are tried once more, each in a process of its own.
    """
    if workers <= 1:
        yield from ((task, work(task)) for task in tasks)
        return
    queue = list(reversed(tasks))
    while queue:
        running: dict[Future[Record], Task] = {}
        with _pool(workers) as pool:
            try:
                while queue or running:
                    while queue and len(running) < 2 * workers:
                        running[pool.submit(work, queue[-1])] = queue[-1]
                        queue.pop()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        record = future.result()
                        yield running.pop(future), record
            except BrokenProcessPool:
                pass
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        for task in running.values():
            yield task, _alone(work, task)


def _alone(work: Work, task: Task) -> Record:
    try:
        with _pool(1) as pool:
            return pool.submit(work, task).result()
    except BrokenProcessPool:
        why = f"{task.path} killed the process that read it: out of memory, or a crash in the decoder"
        return {"video": task.path, "pairs": 0, "rejected": {}, "error": why}


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_one_thread)


def _one_thread() -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def run_ray(work: Work, tasks: Sequence[Task], workers: int) -> Iterator[tuple[Task, Record]]:
    """The same on Ray Data, on this machine or the cluster that `RAY_ADDRESS` names, which shares the folder of pairs.

    With learned estimators every worker holds a GPU.

    Raises:
        InputError: Ray is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError("--engine ray needs Ray; pip install 'fp-lightning[ray]', or use --engine local") from error

    ray.init(ignore_reinit_error=True, log_to_driver=False, configure_logging=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    gpus = any(task.settings.flow != "dis" or task.settings.tracker != "flow" for task in tasks)

    def one_video(row: dict[str, Any]) -> dict[str, Any]:
        _one_thread()
        return {"index": row["index"], "record": json.dumps(work(tasks[row["index"]]))}

    rows = ray.data.from_items([{"index": index} for index in range(len(tasks))], override_num_blocks=len(tasks))
    results = rows.map(one_video, num_cpus=1, num_gpus=int(gpus and torch.cuda.is_available()), concurrency=workers)
    for row in results.iter_rows():
        yield tasks[row["index"]], json.loads(row["record"])


ENGINES: dict[str, Callable[[Work, Sequence[Task], int], Iterator[tuple[Task, Record]]]] = {
    "local": run_local,
    "ray": run_ray,
}


def progress(results: Iterator[tuple[Task, Record]], total: int) -> Iterator[tuple[Task, Record]]:
    """Passes results on, with a bar that shows videos done, pairs kept, rate and time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("videos"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    pairs = 0
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("videos", total=total, note="")
        for count, (video, record) in enumerate(results, start=1):
            pairs += record["pairs"]
            elapsed = max(bar.tasks[task].elapsed or 0, 1e-3)
            bar.update(task, advance=1, note=f"{pairs} pairs, {count / elapsed:.2f} videos/s")
            if record["error"]:
                bar.console.print(f"{video.path}: {record['error']}", markup=False)
            yield video, record
