"""One model, many people: edits wait in a line of limited length and are made one at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from fp_lightning.errors import InputError

POLL = 0.1  # seconds between looks at a job


class Cancelled(Exception):
    """Somebody asked for the end of a job."""


class Job:
    """Work in the line. `news` is what it last told, `version` counts what it has told."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.news: Any = None
        self.version = 0
        self.cancelled = False
        self.future: Future[Any] = Future()

    def tell(self, news: Any) -> None:
        """Leaves news for those who watch; what they have not seen is replaced."""
        self.news, self.version = news, self.version + 1

    def check(self) -> None:
        """Raises Cancelled if it was cancelled."""
        if self.cancelled:
            raise Cancelled


class Desk:
    """The line and the one who works on it.

    Args:
        limit: jobs at most, waiting or in work.
        per_user: of one user at most.
    """

    def __init__(self, limit: int = 32, per_user: int = 2) -> None:
        if limit < 1 or per_user < 1:
            raise InputError(f"the queue's limits must be 1 or more, got {limit} and {per_user} for one user")
        self.limit, self.per_user = limit, per_user
        self._jobs: list[Job] = []
        self._at_work: Job | None = None
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="edit")

    def submit(self, user: str, work: Callable[[Job], Any]) -> Job:
        """Puts work at the end of the line; `job.future` will hold what it returns or raises.

        Raises:
            InputError: the line is full, or the user has too much in it.
        """
        job = Job(user)
        with self._lock:
            own = sum(other.user == user for other in self._jobs)
            if own >= self.per_user:
                raise InputError(
                    f"you have {own} edit{'s' * (own != 1)} in the queue, which is the limit; wait for "
                    f"{'one of them' if own > 1 else 'it'}, or cancel {'one' if own > 1 else 'it'}"
                )
            if len(self._jobs) >= self.limit:
                raise InputError(f"{len(self._jobs)} edits are waiting, the queue is full; try again in a minute")
            self._jobs.append(job)
        self._worker.submit(self._run, job, work)
        return job

    def _run(self, job: Job, work: Callable[[Job], Any]) -> None:
        with self._lock:
            if job not in self._jobs:  # cancelled while it waited
                return
            self._at_work = job
        error, result = None, None
        try:
            result = work(job)
        except BaseException as failure:
            error = failure
        with self._lock:
            self._jobs.remove(job)
            self._at_work = None
        if error is None:
            job.future.set_result(result)
        else:
            job.future.set_exception(error)

    def ahead(self, job: Job) -> int:
        """Jobs that come before it; 0 while it is in work."""
        with self._lock:
            return self._jobs.index(job) if job in self._jobs else 0

    async def watch(self, job: Job) -> AsyncIterator[Any]:
        """What the job tells, as it comes; before that its place in the line, an int, whenever it changes."""
        seen, place = 0, -1
        while not job.future.done():
            ahead = self.ahead(job)
            if job.version != seen:
                seen = job.version
                yield job.news
            elif not seen and ahead != place:
                yield ahead
            place = ahead
            await asyncio.sleep(POLL)

    def cancel(self, *jobs: Job) -> int:
        """Ends jobs, at once while they wait and else at their next `check`; returns how many had not ended."""
        with self._lock:
            unended = [job for job in jobs if job in self._jobs]
            waiting = [job for job in unended if job is not self._at_work]
            for job in unended:
                job.cancelled = True
            for job in waiting:
                self._jobs.remove(job)
        for job in waiting:
            job.future.set_exception(Cancelled())
        return len(unended)

    def of(self, user: str) -> list[Job]:
        """A user's jobs, waiting or in work."""
        with self._lock:
            return [job for job in self._jobs if job.user == user]

    def __len__(self) -> int:
        return len(self._jobs)

    def close(self) -> None:
        """Cancels everything and waits for its end."""
        self.cancel(*self._jobs)
        self._worker.shutdown()
