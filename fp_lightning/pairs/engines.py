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
    from fp_lightning.pairs.settings import PairSettings

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


def default_workers(settings: PairSettings) -> int:
    """A process per core, or per GPU where estimators are learned."""
    return max(1, torch.cuda.device_count()) if settings.learned else cores()


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
        with _pool(workers, tasks[0].settings.learned) as pool:
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
        with _pool(1, task.settings.learned) as pool:
            return pool.submit(work, task).result()
    except BrokenProcessPool:
        why = f"{task.path} killed the process that read it: out of memory, or a crash in the decoder"
        return {"video": task.path, "pairs": 0, "rejected": {}, "error": why}


def _pool(workers: int, learned: bool) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=one_thread, initargs=(learned,))


def one_thread(learned: bool = False) -> None:
    """One thread a process, and for learned estimators the GPUs by turns."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    if learned and torch.cuda.is_available():
        number = multiprocessing.current_process()._identity[0]  # counts from 1
        torch.cuda.set_device(number % torch.cuda.device_count())


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
    gpu = int(tasks[0].settings.learned and torch.cuda.is_available()) if tasks else 0

    def one_video(row: dict[str, Any]) -> dict[str, Any]:
        one_thread()
        return {"index": row["index"], "record": json.dumps(work(tasks[row["index"]]))}

    if not tasks:
        return
    rows = ray.data.from_items([{"index": index} for index in range(len(tasks))], override_num_blocks=len(tasks))
    results = rows.map(one_video, num_cpus=1, num_gpus=gpu, concurrency=workers)
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
                bar.console.print(f"fp-lightning: {record['error']}", markup=False, soft_wrap=True, highlight=False)
            yield video, record
