"""Many calls as jobs that several processes share: each is drawn once, whatever is killed when.

out/00007-5f0c21ab.png      the picture of line 7
out/.jobs/<key>.json        its record: written when its pictures are on the disk, which makes the job done
out/.jobs/<key>.<n>.png     a picture that waits for its record, or for its name
out/.jobs/<key>.failed      why it failed, and when; such a job is tried again by the next run
out/.jobs/lock              byte `key` is locked while a process draws the job: a killed process holds none
out/.jobs/started           a line for each drawing that was begun

A job's key is made from its arguments and not from its line, so that lines may be added and moved between runs.
"""

import contextlib
import errno
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ..infotext.filenames import safe_name
from ..infotext.files import save_picture, write_whole_text


_POLL_SECONDS = 0.2  # between two looks at jobs that other processes hold
_PROGRESS_SECONDS = 0.5

Drawn = tuple[Sequence[Image.Image], Sequence[str]]  # pictures and their texts


class Job(NamedTuple):
    """One call, and under which name its pictures go."""

    key: str  # 32 hexadecimal digits
    name: str  # of the file, without ending
    call: Mapping[str, Any]  # `model` may be among the arguments
    line: int  # in the file of jobs, from 1


class JobsDone(NamedTuple):
    """What a run leaves. Results and failures in the order of the jobs."""

    results: list[dict[str, Any]]
    failed: list[dict[str, Any]]


def make_jobs(calls: Iterable[tuple[int, str | None, Mapping[str, Any]]]) -> list[Job]:
    """Jobs of (line, name or None, arguments). Equal calls are told apart by their order.

    A call without a seed gets one made from its key: drawing it again gives the same picture. Raises ValueError for
    two jobs of one name.
    """
    seen: Counter[str] = Counter()
    jobs: list[Job] = []
    names: dict[str, int] = {}
    for line, name, call in calls:
        written = json.dumps(call, sort_keys=True, default=str)
        seen[written] += 1
        key = hashlib.sha256(f"{seen[written]}\n{written}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
        name = safe_name(name) if name else f"{line:05d}-{key[:8]}"
        if names.setdefault(name.lower(), line) != line:
            raise ValueError(f"lines {names[name.lower()]} and {line} have the same name {name!r}. Give each its own.")
        if call.get("seed") in (None, -1) and "generator" not in call:
            call = {**call, "seed": int(key[:8], 16)}
        jobs.append(Job(key, name, call, line))
    return jobs


class JobFolder:
    """Where jobs put their pictures and records. One object a process; it holds the process's locks."""

    def __init__(self, out: Path, extension: str = "png", quality: int | None = None) -> None:
        self.out, self.extension, self.quality = out, extension.lower().lstrip("."), quality
        self.records = out / ".jobs"
        self.records.mkdir(parents=True, exist_ok=True)
        self._locks = os.open(self.records / "lock", os.O_RDWR | os.O_CREAT, 0o666)

    def close(self) -> None:
        """Give all locks back."""
        os.close(self._locks)

    def is_done(self, job: Job) -> bool:
        """Whether a job's pictures are there, or only wait for their names."""
        return self._record(job).exists()

    def failed_since(self, job: Job, moment: float) -> bool:
        """Whether a process gave the job up after `moment` (seconds of `time.time`)."""
        try:
            return self._failure(job).stat().st_mtime >= moment
        except OSError:
            return False

    @contextlib.contextmanager
    def claimed(self, job: Job) -> Iterator[bool]:
        """Whether the job is this process's for the length of the block."""
        place = int(job.key[:12], 16)
        got = _lock_byte(self._locks, place)
        try:
            yield got
        finally:
            if got:
                _unlock_byte(self._locks, place)

    def note_start(self, job: Job) -> None:
        """Clear away what a killed process left of the job, and note that it is drawn now."""
        for pattern in (f"{job.key}.*.{self.extension}", f".{job.key}*.part"):
            for rest in self.records.glob(pattern):
                rest.unlink(missing_ok=True)
        line = json.dumps({"key": job.key, "line": job.line, "process": os.getpid(), "time": time.time()})
        with (self.records / "started").open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def keep(self, job: Job, drawn: Drawn) -> None:
        """Pictures to the disk, then the record, then the names: wherever it is cut short, the job is done or not."""
        images, texts = drawn
        files = []
        for index, (image, text) in enumerate(zip(images, texts)):
            waiting = self.records / f"{job.key}.{index}.{self.extension}"
            save_picture(image, waiting, text, quality=self.quality)
            name = job.name if len(images) == 1 else f"{job.name}-{index + 1}"
            files.append({"waiting": waiting.name, "path": f"{name}.{self.extension}", "infotext": text})
        record = {"key": job.key, "name": job.name, "line": job.line, "files": files}
        write_whole_text(self._record(job), json.dumps(record, ensure_ascii=False))
        self._failure(job).unlink(missing_ok=True)
        self._name_files(record)

    def give_up(self, job: Job, error: Exception) -> None:
        """Note why a job failed."""
        failure = {"line": job.line, "name": job.name, "error": f"{type(error).__name__}: {error}"}
        write_whole_text(self._failure(job), json.dumps(failure, ensure_ascii=False))

    def finish_names(self, jobs: Iterable[Job]) -> None:
        """Name the pictures of jobs that were killed between their record and their names."""
        waiting = {path.name.partition(".")[0] for path in self.records.glob(f"*.*.{self.extension}")}
        for job in jobs:
            if job.key in waiting and self.is_done(job):
                self._name_files(self.record(job))

    def record(self, job: Job) -> dict[str, Any]:
        """The record of a finished job."""
        return json.loads(self._record(job).read_text(encoding="utf-8"))

    def failure(self, job: Job) -> dict[str, Any]:
        """Why a job failed."""
        return json.loads(self._failure(job).read_text(encoding="utf-8"))

    def check_names(self, jobs: Iterable[Job]) -> None:
        """Raises ValueError where a job would be written over a file that no job here has made."""
        taken = [job for job in jobs if not self.is_done(job) and (self.out / f"{job.name}.{self.extension}").exists()]
        if not taken:
            return
        ours = set()
        for path in self.records.glob("*.json"):
            ours |= {file["path"] for file in json.loads(path.read_text(encoding="utf-8"))["files"]}
        for job in taken:
            if f"{job.name}.{self.extension}" not in ours:
                raise ValueError(
                    f"line {job.line}: `{self.out / job.name}.{self.extension}` is there already, and not from a "
                    "batch in this folder. Take another name or another --out."
                )

    def _name_files(self, record: Mapping[str, Any]) -> None:
        for file in record["files"]:
            with contextlib.suppress(FileNotFoundError):  # it has its name; perhaps another process was faster
                (self.records / file["waiting"]).replace(self.out / file["path"])

    def _record(self, job: Job) -> Path:
        return self.records / f"{job.key}.json"

    def _failure(self, job: Job) -> Path:
        return self.records / f"{job.key}.failed"


def run_jobs(
    jobs: Sequence[Job],
    folder: JobFolder,
    draw: Callable[[Job], Drawn],
    *,
    progress: Callable[[int], None] = lambda done: None,
    on_error: Callable[[Job, Exception], None] = lambda job, error: None,
) -> JobsDone:
    """Draw every job that is not done, together with the other processes that do the same.

    Ends when every job is done, or has failed since this run began; jobs of a process that died are taken over.
    progress: called with the number of jobs settled, whoever did. on_error: told of each failure in this process.
    """
    started, told_at = time.time(), 0.0
    folder.finish_names(jobs)
    while waiting := [job for job in jobs if not _is_settled(job, folder, started)]:
        drew = False
        for job in waiting:
            drew = _try_job(job, folder, draw, started, on_error) or drew
            if time.time() - told_at > _PROGRESS_SECONDS:
                told_at = time.time()
                progress(sum(_is_settled(job, folder, started) for job in jobs))
        if not drew:
            time.sleep(_POLL_SECONDS)
    folder.finish_names(jobs)
    progress(len(jobs))
    done = [job for job in jobs if folder.is_done(job)]
    return JobsDone(
        [folder.record(job) for job in done], [folder.failure(job) for job in jobs if not folder.is_done(job)]
    )


def _is_settled(job: Job, folder: JobFolder, started: float) -> bool:
    return folder.is_done(job) or folder.failed_since(job, started)


def _try_job(
    job: Job,
    folder: JobFolder,
    draw: Callable[[Job], Drawn],
    started: float,
    on_error: Callable[[Job, Exception], None],
) -> bool:
    """Draw a job if no other process does; whether it was drawn here."""
    with folder.claimed(job) as mine:
        if not mine or _is_settled(job, folder, started):
            return False
        folder.note_start(job)
        try:
            folder.keep(job, draw(job))
        except Exception as error:
            folder.give_up(job, error)
            on_error(job, error)
    return True


def _lock_byte(descriptor: int, place: int) -> bool:
    """Lock one byte of a file for this process, or tell that another one has it. The system gives it back."""
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(descriptor, place, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        raise
    return True


def _unlock_byte(descriptor: int, place: int) -> None:
    if os.name == "nt":
        import msvcrt

        os.lseek(descriptor, place, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined]
    else:
        import fcntl

        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, place)
