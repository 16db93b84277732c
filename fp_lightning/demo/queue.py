"""The queue of edits: of limited length, one edit at a time, for all users of one model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from fp_lightning.errors import InputError

POLL = 0.1  # seconds between looks at a job


class Cancelled(Exception):
    """A job was cancelled."""


class Job:
    """A task in the queue. `update` is its last report, `version` counts its reports."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.update: Any = None
        self.version = 0
        self.cancelled = False
        self.future: Future[Any] = Future()

    def report(self, update: Any) -> None:
        """Leave an update for watchers. It replaces one that they have not seen."""
        self.update, self.version = update, self.version + 1

    def check(self) -> None:
        """Raise Cancelled if the job was cancelled."""
        if self.cancelled:
            raise Cancelled


class EditQueue:
    """Runs jobs one at a time, in their order.

    Args:
        limit: the most jobs, waiting or running.
        per_user: the most jobs of one user.
    """

    def __init__(self, limit: int = 32, per_user: int = 2) -> None:
        if limit < 1 or per_user < 1:
            raise InputError(f"the queue's limits must be 1 or more, got {limit} and {per_user} for one user")
        self.limit, self.per_user = limit, per_user
        self._jobs: list[Job] = []
        self._running: Job | None = None
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="edit")

    def submit(self, user: str, task: Callable[[Job], Any]) -> Job:
        """Append a task; `job.future` will hold what it returns or raises.

        Raises:
            InputError: the queue is full, or the user has too many jobs in it.
        """
        job = Job(user)
        with self._lock:
            count = sum(other.user == user for other in self._jobs)
            if count >= self.per_user:
                raise InputError(
                    f"you have {count} edit{'s' * (count != 1)} in the queue, which is the limit; wait for "
                    f"{'one of them' if count > 1 else 'it'}, or cancel {'one' if count > 1 else 'it'}"
                )
            if len(self._jobs) >= self.limit:
                raise InputError(f"{len(self._jobs)} edits are waiting, the queue is full; try again in a minute")
            self._jobs.append(job)
        self._worker.submit(self._run, job, task)
        return job

    def _run(self, job: Job, task: Callable[[Job], Any]) -> None:
        with self._lock:
            if job not in self._jobs:  # cancelled while it waited
                return
            self._running = job
        error, result = None, None
        try:
            result = task(job)
        except BaseException as failure:
            error = failure
        with self._lock:
            self._jobs.remove(job)
            self._running = None
        if error is None:
            job.future.set_result(result)
        else:
            job.future.set_exception(error)

    def ahead(self, job: Job) -> int:
        """Return the number of jobs before this one; 0 while it runs."""
        with self._lock:
            return self._jobs.index(job) if job in self._jobs else 0

    async def watch(self, job: Job) -> AsyncIterator[Any]:
        """Yield the job's updates. Before the first, yield its number of jobs ahead, an int, at each change."""
        seen, place = 0, -1
        while not job.future.done():
            ahead = self.ahead(job)
            if job.version != seen:
                seen = job.version
                yield job.update
            elif not seen and ahead != place:
                yield ahead
            place = ahead
            await asyncio.sleep(POLL)

    def cancel(self, *jobs: Job) -> int:
        """Cancel jobs: waiting ones at once, a running one at its next `check`. Return how many had not ended."""
        with self._lock:
            active = [job for job in jobs if job in self._jobs]
            waiting = [job for job in active if job is not self._running]
            for job in active:
                job.cancelled = True
            for job in waiting:
                self._jobs.remove(job)
        for job in waiting:
            job.future.set_exception(Cancelled())
        return len(active)

    def jobs_of(self, user: str) -> list[Job]:
        """Return a user's jobs, waiting or running."""
        with self._lock:
            return [job for job in self._jobs if job.user == user]

    def __len__(self) -> int:
        return len(self._jobs)

    def close(self) -> None:
        """Cancel all jobs and wait for the running one."""
        self.cancel(*self._jobs)
        self._worker.shutdown()
