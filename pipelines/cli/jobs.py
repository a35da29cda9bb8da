"""Many calls as jobs that several processes share: each is drawn once, whatever is killed when.

A job's key is made from its arguments and not from its line, so that lines may be added and moved between runs.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic, sleep
from typing import Any, NamedTuple

from ..infotext.filenames import safe_name
from .job_folder import DrawnPictures, JobFolder
from .job_names import Job, plain_file_name


POLL_SECONDS = 0.2  # between two looks at jobs that other processes hold
_PROGRESS_SECONDS = 0.5  # between two reports


class JobsDone(NamedTuple):
    """What a run leaves. Results and failures in the order of the jobs."""

    results: list[dict[str, Any]]
    failed: list[dict[str, Any]]


def make_jobs(calls: Iterable[tuple[int, str | None, Mapping[str, Any]]]) -> list[Job]:
    """Jobs of (line, name or None, arguments). Equal calls are told apart by their order.

    A call without a seed gets one made from its arguments: drawing it again gives the same picture. Raises ValueError
    for two jobs of one name.
    """
    seen: Counter[str] = Counter()
    jobs: list[Job] = []
    names: dict[str, int] = {}
    for line, given, call in calls:
        written = json.dumps(call, sort_keys=True, default=str)
        seen[written] += 1
        content = f"{seen[written]}\n{written}"
        digest = _digest(content)
        key = digest if given is None else _digest(f"{content}\n{given}")  # under another name it is another job
        name = f"{line:05d}-{key[:8]}" if given is None else safe_name(given)
        if names.setdefault(plain_file_name(name), line) != line:
            first = names[plain_file_name(name)]
            raise ValueError(f"lines {first} and {line} have the same name {name!r}. Give each its own.")
        if call.get("seed") in (None, -1) and "generator" not in call:
            call = {**call, "seed": int(digest[:8], 16)}
        jobs.append(Job(key, name, call, line))
    return jobs


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def run_jobs(
    jobs: Sequence[Job],
    folder: JobFolder,
    draw: Callable[[Job], DrawnPictures],
    *,
    progress: Callable[[int], None] = lambda done: None,
    on_error: Callable[[Job, Exception], None] = lambda job, error: None,
) -> JobsDone:
    """Draw every job that is not done, together with the other processes that do the same.

    Ends when every job is done, or has failed since this run began; jobs of a process that died are taken over. A
    picture that cannot be saved (a full disk) ends it with OSError; the next run goes on from there.
    progress: called with the number of jobs settled, whoever did. on_error: told of each failure in this process.
    """
    folder.check_names(jobs)
    folder.finish_names(jobs)
    run = JobRun(folder, draw, on_error)
    waiting, shown = [job for job in jobs if not folder.is_done(job)], monotonic()
    settled = len(jobs) - len(waiting)
    progress(settled)
    while waiting:
        held = []
        for job in waiting:
            if not run.settle(job):
                held.append(job)
                continue
            settled += 1
            if monotonic() - shown > _PROGRESS_SECONDS:
                shown = monotonic()
                progress(settled)
        if len(held) == len(waiting):
            sleep(POLL_SECONDS)
        waiting = held
    folder.finish_names(jobs)
    progress(len(jobs))
    return jobs_done(jobs, folder)


def jobs_done(jobs: Sequence[Job], folder: JobFolder) -> JobsDone:
    """What a folder has of jobs, now that their runs have ended."""
    done = [folder.is_done(job) for job in jobs]
    return JobsDone(
        [{**folder.record(job), "line": job.line} for job, is_done in zip(jobs, done) if is_done],
        [folder.failure(job) for job, is_done in zip(jobs, done) if not is_done],
    )


def _unsaved(job: Job, folder: JobFolder, error: OSError) -> OSError:
    return OSError(
        f"`{folder.out}`: the pictures of line {job.line} could not be saved ({error.strerror}), so nothing more was "
        "drawn. Make room there, and run the same command again: it goes on from here."
    )


class JobRun:
    """One process's part of drawing jobs, whose names `folder` has checked."""

    def __init__(
        self, folder: JobFolder, draw: Callable[[Job], DrawnPictures], on_error: Callable[[Job, Exception], None]
    ) -> None:
        self.folder, self.draw, self.on_error = folder, draw, on_error
        self.marks = folder.failure_marks()  # failures of earlier runs do not count

    def settle(self, job: Job) -> bool:
        """Draw a job, unless that is done or was tried since the run began. False where another process holds it."""
        with self.folder.claimed(job) as mine:
            if not mine:
                return False
            if self.folder.is_done(job) or self.folder.failed_again(job, self.marks):
                return True
            self.folder.note_start(job)
            try:
                drawn = self.draw(job)
            except Exception as error:
                self._give_up(job, error)
                return True
            try:
                self.folder.keep(job, drawn)
            except (ValueError, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise _unsaved(job, self.folder, error) from error
                self._give_up(job, error)  # a text or picture that the format does not hold
        return True

    def _give_up(self, job: Job, error: Exception) -> None:
        self.folder.give_up(job, error)
        self.on_error(job, error)
