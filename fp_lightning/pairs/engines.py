"""Run the work on many videos in parallel: local processes, or Ray."""

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
    """One video to process. `name` is its name in the folder of pairs; None for its path."""

    path: str
    out: Path
    settings: PairSettings
    name: str | None = None

    @property
    def video(self) -> str:
        """The name of the video in the folder of pairs."""
        return self.name or self.path


Work = Callable[[Task], Record]


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers(settings: PairSettings) -> int:
    """Return the default number of processes: one per core, or one per GPU with learned estimators."""
    return max(1, torch.cuda.device_count()) if settings.learned else cores()


def run_local(work: Work, tasks: Sequence[Task], workers: int) -> Iterator[tuple[Task, Record]]:
    """Process videos in local processes with one thread each; yield each task with its record.

    At most two videos per process are queued. If a process dies (out of memory, a crash in a decoder), every
    video in progress is tried once more in a separate process, and the one that fails again gets an error
    record. With one worker, the videos are processed in this process.
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
            yield task, _run_alone(work, task)


def _run_alone(work: Work, task: Task) -> Record:
    """Process one video in a separate process. If the process dies, return a record with that error."""
    try:
        with _pool(1, task.settings.learned) as pool:
            return pool.submit(work, task).result()
    except BrokenProcessPool:
        why = f"{task.path} killed the process that read it: out of memory, or a crash in the decoder"
        return {"video": task.video, "pairs": 0, "rejected": {}, "error": why}


def _pool(workers: int, learned: bool) -> ProcessPoolExecutor:
    """Start a pool of spawned processes, each set up by `one_thread`."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=one_thread, initargs=(learned,))


def one_thread(learned: bool = False) -> None:
    """Limit this process to one thread; with learned estimators, also select a GPU, round robin over processes."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    if learned and torch.cuda.is_available():
        number = multiprocessing.current_process()._identity[0]  # numbered from 1
        torch.cuda.set_device(number % torch.cuda.device_count())


def run_ray(work: Work, tasks: Sequence[Task], workers: int) -> Iterator[tuple[Task, Record]]:
    """Process videos with Ray Data, on this machine or on the cluster of `RAY_ADDRESS`; yields as `run_local` does.

    All machines of the cluster must share the folder of pairs. With learned estimators, every worker reserves a
    GPU.

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
    """Yield the results unchanged and show a progress bar with videos, pairs, rate and remaining time."""
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
