"""Rows of `fp-lightning bench gpu`: measured within a budget of time, or with the reason why they are not."""

from __future__ import annotations

import gc
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fp_lightning.bench.edit import relative
from fp_lightning.bench.measure import peak_bytes

ROUNDS, LONG = 3, 3.0  # timed runs after the first; a run of so many seconds is timed once
GIB = 2**30
HEAD = ("what", "how", "seconds", "ratio", "first run", "difference", "samples/s", "TFLOP", "MFU", "GiB", "planned")


@dataclass
class Row:
    """One measurement; fields that were not measured are None."""

    part: str  # what is measured: "U-Net", "edit", "training step", "matching loss"
    name: str  # how
    seconds: float | None = None  # median of a run
    first: float | None = None  # seconds of the first run, which compiles
    ratio: float | None = None  # seconds of the reference of this part / seconds
    difference: float | None = None  # relative, of the output from that of the part's row "plain modules"
    samples: float | None = None  # per second
    operations: int | None = None  # of the products of a run
    mfu: float | None = None  # operations per second, as a share of the GPU's peak
    peak_bytes: int | None = None  # of all tensors
    planned_bytes: int | None = None  # by `fp-lightning plan`
    reason: str | None = None  # why it was not measured


@dataclass(frozen=True)
class Task:
    """How to measure a row.

    Args:
        part, name: see `Row`.
        prepare: builds everything that is needed, and returns the work to be timed, and the bytes of the tensors that
            it holds between runs. It may fail.
        needs: seconds that this takes on a slow GPU; it is not begun with less time left.
        reference: the other rows of this part are compared with its time.
        samples: in one run of the work.
        operations: of the products of one run.
        planned: bytes at the peak by `fp-lightning plan`.
    """

    part: str
    name: str
    prepare: Callable[[], tuple[Callable[[], object], int]]
    needs: float = 30.0
    reference: bool = False
    samples: int | None = None
    operations: Callable[[], int] | None = None
    planned: Callable[[], int] | None = None


class TimeIsUp(BaseException):
    """The budget of time ended within a row. Not an Exception, which libraries catch."""


class Bench:
    """Measures tasks in turn.

    Args:
        device: "cpu" or "cuda".
        seconds: the budget.
        tflops: peak of the device in the type that is used, operations per second; None if unknown.
    """

    def __init__(self, device: str, seconds: float, tflops: float | None = None) -> None:
        self.device, self.end, self.tflops = device, time.monotonic() + seconds, tflops
        self.rows: list[Row] = []
        self._reference: dict[str, float] = {}
        self._outputs: dict[str, Tensor] = {}

    def run(self, tasks: Sequence[Task], show: Callable[[Row], None] = lambda row: None) -> list[Row]:
        """Measure, and return all rows. A row that fails has the reason."""
        for task in tasks:
            row = Row(task.part, task.name)
            self.rows.append(row)
            left = self.end - time.monotonic()
            if left < task.needs:
                row.reason = f"not begun: it may take {task.needs:.0f} s, {max(0, left):.0f} s of the budget are left"
            else:
                try:
                    with limited(left):
                        self._measure(task, row)
                except TimeIsUp:
                    row.reason = "stopped: the budget of time ended"
                except Exception as error:  # a row that fails is a line of the table
                    row.reason = reason(error)
            self._free()
            show(row)
        return self.rows

    def _measure(self, task: Task, row: Row) -> None:
        work, held = task.prepare()
        row.planned_bytes = task.planned() if task.planned else None
        row.first, output = self._timed(work)
        if isinstance(output, Tensor):
            output = output.detach().float().cpu()
            if task.part in self._outputs:
                row.difference = relative(output, self._outputs[task.part])
            elif not task.reference:
                self._outputs[task.part] = output
        del output
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        second = self._timed(work)[0]
        more = ROUNDS - 1 if second < LONG else 0
        row.seconds = statistics.median([second, *(self._timed(work)[0] for _ in range(more))])
        cuda = self.device == "cuda"
        row.peak_bytes = torch.cuda.max_memory_allocated() if cuda else held + peak_bytes(work, "cpu")
        if task.reference:
            self._reference[task.part] = row.seconds
        if task.part in self._reference:
            row.ratio = self._reference[task.part] / row.seconds
        row.samples = task.samples / row.seconds if task.samples else None
        row.operations = task.operations() if task.operations else None
        if row.operations and self.tflops:
            row.mfu = row.operations / row.seconds / self.tflops

    def _timed(self, work: Callable[[], object]) -> tuple[float, object]:
        begin = time.perf_counter()
        output = work()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin, output

    def _free(self) -> None:
        if "torch._dynamo" in sys.modules:  # something was compiled
            torch._dynamo.reset()
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeIsUp within the block after so many seconds; without effect outside of the main thread."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number, frame) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def reason(error: Exception) -> str:
    """Return why a row failed, on one line of at most 160 characters."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "out of memory"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:160].rstrip(": ")


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    head = (
        "| what | how | seconds | ratio | first run | difference | samples/s | TFLOP | MFU | peak, GiB | planned, GiB |"
    )
    lines = [head, "|---|---|" + "---:|" * 9]
    for row in rows:
        if row.reason:
            lines.append(f"| {row.part} | {row.name} | not measured: {row.reason.replace('|', '/')} |" + " |" * 8)
            continue
        cells = [
            _cell(row.seconds, "{:.3g}"),
            _cell(row.ratio, "{:.2f}×"),
            _cell(row.first, "{:.3g} s"),
            _cell(row.difference, "{:.1e}"),
            _cell(row.samples, "{:.3g}"),
            _cell(row.operations and row.operations / 1e12, "{:.3g}"),
            _cell(row.mfu, "{:.0%}"),
            _cell(row.peak_bytes and row.peak_bytes / GIB, "{:.3g}"),
            _cell(row.planned_bytes and row.planned_bytes / GIB, "{:.3g}"),
        ]
        lines.append(f"| {row.part} | {row.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
