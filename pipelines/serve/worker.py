"""One worker, one job at a time, in the order of arrival; and what a client may know and ask of it meanwhile."""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class QueueFull(RuntimeError):
    """As many jobs wait as may."""


class ServerCloses(RuntimeError):
    """The worker takes no more jobs, and has dropped those that waited."""

    def __init__(self) -> None:
        super().__init__("The server is going down and takes no more jobs. Ask again when it is up.")


class JobCancelled(Exception):
    """The job was taken back before it was done."""


class Progress:
    """How far the job in hand is. Written by the worker, read by anyone."""

    def __init__(self, name: str = "", task: str = ""):
        self.job, self.task = name, task
        self.step = self.steps = self.batch = 0
        self.batches = 1
        self.skipped = self.interrupted = False
        self.stopping = False  # the images in hand are the last
        self.began = time.monotonic()
        self.began_at = time.strftime("%Y%m%d%H%M%S")
        self.latents: Any = None  # of the last step, for a preview

    def after_step(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """The `callback_on_step_end` of the job's calls: counts the step, and ends the call where that is asked."""
        self.step += 1
        self.latents = tensors["latents"]
        if self.interrupted or self.skipped:
            pipe._interrupt = True
        return {}

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        within = self.step / self.steps if self.steps else 0.0
        return min((self.batch + within) / max(self.batches, 1), 1.0) if self.job else 0.0

    def state(self) -> dict[str, Any]:
        """The webui's `state` of its answer to progress."""
        return {
            "skipped": self.skipped,
            "interrupted": self.interrupted,
            "stopping_generation": self.stopping,
            "job": self.job,
            "job_count": self.batches if self.job else 0,
            "job_timestamp": self.began_at,
            "job_no": self.batch,
            "sampling_step": self.step,
            "sampling_steps": self.steps,
        }

    @property
    def seconds_left(self) -> float:
        """Estimated from what was done."""
        share, passed = self.share, time.monotonic() - self.began
        return passed / share - passed if share > 0.01 else 0.0


class Job:
    """One request in the queue."""

    def __init__(self, name: str, work: Callable[[Progress], Any], task: str = ""):
        self.work, self.progress = work, Progress(name, task)
        self.result: Future = Future()

    def cancel(self) -> None:
        """Take the job back: nobody waits for it any more. One in hand ends after its step."""
        self.progress.interrupted = self.progress.skipped = True
        self.result.cancel()


class Worker:
    """A thread that works through a bounded queue. `close` ends it after the images in hand."""

    def __init__(self, max_queue: int):
        self.max_queue = max_queue
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._current: Job | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="webui-diffusers-worker", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> Job:
        """Put a job at the end of the queue. Raises QueueFull, and ServerCloses once the worker closes."""
        with self._changed:
            if self._closing:
                raise ServerCloses
            if len(self._waiting) >= self.max_queue:
                raise QueueFull(f"{self.max_queue} jobs wait already.")
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    def drop(self, job: Job) -> None:
        """Take a job back: its place in the queue is free, or it ends after its step."""
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
            job.cancel()

    @property
    def progress(self) -> Progress:
        """Of the job in hand; of none where the worker rests."""
        current = self._current
        return Progress() if current is None else current.progress

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    def ahead(self, job: Job) -> int:
        """How many jobs are drawn before one that waits; 0 for one in hand."""
        with self._changed:
            before = list(self._waiting)
            return before.index(job) + (self._current is not None) if job in before else 0

    def interrupt(self) -> None:
        """End the job in hand after its step; what is drawn so far is its answer."""
        self.progress.interrupted = True

    def skip(self) -> None:
        """End the images in hand after their step, and go on with the job's next ones."""
        self.progress.skipped = True

    def stop(self) -> None:
        """Drop what waits, and end after the images in hand; asked again, after the step in hand."""
        with self._changed:
            again, self._closing = self._closing, True
            while self._waiting:
                self._waiting.popleft().cancel()
            self._changed.notify_all()
        at = self.progress
        at.stopping, at.interrupted = True, again or at.interrupted

    def close(self, timeout: float | None = None) -> None:
        """Drop what waits, end after the images in hand, and wait for that."""
        if not self._closing:
            self.stop()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if not self._waiting:
                    return
                self._current = self._waiting.popleft()
            self._do(self._current)
            self._current = None

    def _do(self, job: Job) -> None:
        if not job.result.set_running_or_notify_cancel():
            return
        job.progress.began = time.monotonic()
        done, failure = None, None
        try:
            done = job.work(job.progress)
        except BaseException as error:  # whatever it is, the worker goes on and the client is told
            failure = error
        self._current = None  # first: a client that has its answer finds the worker at rest
        if failure is None:
            job.result.set_result(done)
        else:
            job.result.set_exception(failure)
