"""The queue: order, limits, cancellation and watching."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fp_lightning.demo.queue import Cancelled, EditQueue
from fp_lightning.errors import InputError


def test_jobs_run_one_at_a_time_in_their_order():
    queue, log, gate = EditQueue(10, 10), [], threading.Event()

    def task(name):
        def run(job):
            gate.wait(10)
            log.append(("begin", name))
            time.sleep(0.01)
            log.append(("end", name))
            return name

        return run

    jobs = [queue.submit("a", task(n)) for n in range(4)]
    assert [queue.ahead(job) for job in jobs] == [0, 1, 2, 3]
    gate.set()
    assert [job.future.result(10) for job in jobs] == [0, 1, 2, 3]
    assert log == [(what, n) for n in range(4) for what in ("begin", "end")]
    assert len(queue) == 0
    queue.close()


def test_the_queue_is_limited_in_all_and_per_user():
    queue, gate = EditQueue(3, 2), threading.Event()
    jobs = [queue.submit(user, lambda job: gate.wait(10)) for user in ("a", "a")]
    with pytest.raises(InputError, match="you have 2 edits in the queue"):
        queue.submit("a", lambda job: None)
    jobs.append(queue.submit("b", lambda job: None))
    with pytest.raises(InputError, match="3 edits are waiting, the queue is full"):
        queue.submit("c", lambda job: None)
    gate.set()
    for job in jobs:
        job.future.result(10)
    queue.submit("a", lambda job: None).future.result(10)
    queue.close()


def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_at_its_next_check():
    queue, begun, gate = EditQueue(), threading.Event(), threading.Event()

    def long(job):
        begun.set()
        gate.wait(10)
        job.check()
        raise AssertionError("it was not cancelled")

    first, second = queue.submit("a", long), queue.submit("b", lambda job: "never")
    begun.wait(10)
    assert queue.cancel(second) == 1 and len(queue) == 1
    with pytest.raises(Cancelled):
        second.future.result(0)
    assert queue.cancel(*queue.jobs_of("a")) == 1 and not first.future.done()
    gate.set()
    with pytest.raises(Cancelled):
        first.future.result(10)
    assert queue.submit("c", lambda job: 3).future.result(10) == 3  # the worker lives
    assert queue.cancel(first, second) == 0
    queue.close()


def test_a_failed_job_does_not_stop_the_queue():
    queue = EditQueue()
    with pytest.raises(ZeroDivisionError):
        queue.submit("a", lambda job: 1 / 0).future.result(10)
    assert queue.submit("a", lambda job: 5).future.result(10) == 5
    queue.close()


def test_watchers_see_the_place_and_the_updates():
    queue, gate = EditQueue(), threading.Event()

    async def watch():
        first = queue.submit("a", lambda job: gate.wait(10))
        second = queue.submit("b", lambda job: [job.report(f"step {n}") or time.sleep(0.3) for n in range(2)])
        seen = []
        async for update in queue.watch(second):
            seen.append(update)
            gate.set()
        return first, seen

    with ThreadPoolExecutor(1) as pool:  # the main thread may run the browser's event loop
        _, seen = pool.submit(lambda: asyncio.run(watch())).result()
    assert seen[0] == 1 and seen[-2:] == ["step 0", "step 1"]
    queue.close()
