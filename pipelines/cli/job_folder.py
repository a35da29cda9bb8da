"""The folder that jobs write to: pictures under their names, and records that say what is done.

out/00007-5f0c21ab.png      the picture of line 7
out/.jobs/<key>.json        its record: written when its pictures are on the disk
out/.jobs/<key>.<n>.png     a picture that waits for its record, or for its name
out/.jobs/<key>.failed      why it failed; such a job is tried again by the next run
out/.jobs/locks/<xx>.lock   held while a process draws a job whose key begins so: a killed process holds none
out/.jobs/started           a line for each drawing that was begun

A job is done when its record can be read and its pictures are there and whole, in the format and under the name asked
for: so nothing waits for the disk, and a power cut costs the jobs that were not yet on it. Order decides everything,
clocks nothing.
"""

import contextlib
import itertools
import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from PIL import Image

from ...loaders.utils import atomic_write, take_name
from ..infotext.files import save_picture
from .job_names import FolderState, Job, choose_names, plain_file_name, record_paths


_KEY_LENGTH = 32
DrawnPictures = tuple[Sequence[Image.Image], Sequence[str]]  # pictures and their texts


class JobFolder:
    """Where jobs put their pictures and records. One object a process."""

    def __init__(self, out: Path, extension: str = "png", quality: int | None = None) -> None:
        self.out, self.extension, self.quality = Path(out), extension.lower().lstrip("."), quality
        self.records = self.out / ".jobs"
        (self.records / "locks").mkdir(parents=True, exist_ok=True)
        self._names: dict[str, list[str]] = {}  # key -> file names that its pictures will have
        self._made: dict[str, str] = {}  # file name -> key of the job that made it, before this run
        self._broken: set[str] = set()  # keys whose record could not be read
        self._left: dict[str, list[str]] = {}  # key -> files of pictures that never got their names

    def close(self) -> None:
        """Nothing is held between jobs; here for callers that close what they opened."""

    def check_names(self, jobs: Sequence[Job]) -> None:
        """Choose the file names of all jobs' pictures. Raises ValueError where a name that was given is not free.

        Other processes may be at work in the folder: a name is refused when it is so at a second look as well.
        """
        refused = ""
        while True:
            state = self._look_around()
            try:
                self._names, self._made, self._broken = choose_names(jobs, state), state.made, state.broken
                return
            except ValueError as error:
                if str(error) == refused:
                    raise
                refused = str(error)

    def _look_around(self) -> FolderState:
        """What is in the folder. Pictures get their names after their records: seen first, each has a record."""
        there = {plain_file_name(name) for name in os.listdir(self.out)}
        keys = set()
        self._left = {}
        for name in os.listdir(self.records):
            key, _, ending = name.lstrip(".").partition(".")
            if ending == "json":
                keys.add(key)
            elif len(key) == _KEY_LENGTH and ending != "failed":
                self._left.setdefault(key, []).append(name)
        records = {key: record for key in sorted(keys) if (record := self._read_record(key)) is not None}
        return FolderState(self.extension, there, records, keys - set(records))

    def is_done(self, job: Job) -> bool:
        """Whether a job's pictures are there, or only wait for their names."""
        record = self._read_record(job.key)
        return record is not None and self._is_whole(record)

    @contextlib.contextmanager
    def claimed(self, job: Job, *, wait: bool = False) -> Iterator[bool]:
        """Whether the job is this process's for the length of the block. wait: until no other has it."""
        lock = FileLock(self.records / "locks" / f"{job.key[:2]}.lock", thread_local=False)
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def note_start(self, job: Job) -> None:
        """Clear away what a killed process left of the job, and note that it is drawn now."""
        for name in self._left.pop(job.key, ()):
            (self.records / name).unlink(missing_ok=True)
        line = json.dumps({"key": job.key, "line": job.line, "process": os.getpid(), "time": time.time()})
        with (self.records / "started").open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def keep(self, job: Job, drawn: DrawnPictures) -> None:
        """Pictures to the disk, then the record, then the names: wherever it is cut short, the job is done or not."""
        images, texts = drawn
        names = self._names.get(job.key) or []
        if len(names) != len(images):  # another number than the call said; placing them finds free names
            numbers = [f"-{index + 1}" for index in range(len(images))] if len(images) > 1 else [""]
            names = [f"{job.name}{number}.{self.extension}" for number in numbers]
        before = record_paths(self._read_record(job.key))
        try:
            files = [self._wait(job, index, *pair) for index, pair in enumerate(zip(images, texts))]
            self._clear(job, names, before)
            record = {"key": job.key, "name": job.name, "line": job.line}
            record["files"] = [{**file, "path": name} for file, name in zip(files, names)]
            record["earlier"] = sorted({*before} - set(names))
            _write_table(self._record(job.key), record)
        except BaseException:
            for index in range(len(images)):
                self._waiting(job.key, index).unlink(missing_ok=True)
            raise
        self._failure(job.key).unlink(missing_ok=True)
        self._name_files(record)

    def give_up(self, job: Job, error: Exception) -> None:
        """Note why a job failed."""
        failure = {"line": job.line, "name": job.name, "error": f"{type(error).__name__}: {error}"}
        _write_table(self._failure(job.key), {**failure, "mark": uuid.uuid4().hex})

    def failure_marks(self) -> dict[str, str]:
        """Of each job that has failed, the mark of its last failure: another one means that it failed again."""
        failed = [name.removesuffix(".failed") for name in os.listdir(self.records) if name.endswith(".failed")]
        return {key: self._read_failure(key).get("mark", "") for key in failed}

    def failed_again(self, job: Job, marks: Mapping[str, str]) -> bool:
        """Whether a job has failed since `failure_marks` gave `marks`, in any process."""
        found = self._read_failure(job.key)
        return bool(found) and found.get("mark") != marks.get(job.key)

    def finish_names(self, jobs: Iterable[Job]) -> None:
        """Name the pictures of jobs that were killed between their record and their names."""
        waiting = {
            name.partition(".")[0] for name in os.listdir(self.records) if not name.endswith((".json", ".part"))
        }
        for job in jobs:
            if job.key in waiting and self._read_record(job.key) is not None:
                with self.claimed(job, wait=True):  # whoever is at work on the job names its pictures first
                    self._name_files(self.record(job))

    def record(self, job: Job) -> dict[str, Any]:
        """The record of a finished job."""
        return self._read_record(job.key) or {}

    def failure(self, job: Job) -> dict[str, Any]:
        """Why a job failed: line, name, error."""
        found = {"line": job.line, "name": job.name, "error": "it was not drawn"} | self._read_failure(job.key)
        return {name: found[name] for name in ("line", "name", "error")}

    # --- files

    def _wait(self, job: Job, index: int, image: Image.Image, text: str) -> dict[str, Any]:
        """Save a picture where it waits for its record; what the record says of it."""
        waiting = self._waiting(job.key, index)
        save_picture(image, waiting, text, quality=self.quality, flush=False)
        return {"waiting": waiting.name, "size": waiting.stat().st_size, "infotext": text}

    def _name_files(self, record: dict[str, Any]) -> None:
        """Give waiting pictures their names, never over a file that is there: then the record gets a free name."""
        for file in record.get("files", ()):
            waiting = self.records / file["waiting"]
            for name in _free_names(file["path"]):
                try:
                    place_file(waiting, self.out / name)
                except FileExistsError:
                    continue
                if name != file["path"]:
                    file["path"] = name
                    _write_table(self._record(record["key"]), record)
                break

    def _clear(self, job: Job, names: Sequence[str], before: Sequence[str]) -> None:
        """Take away what this job, or an earlier version of it, made under the names of its new pictures."""
        made_by: dict[str, set[str]] = {}  # what each of the makers has by now: other processes replace it, too
        for name in names:
            plain = plain_file_name(name)
            maker = self._made.get(plain)
            if maker is not None and maker not in made_by:
                made_by[maker] = {plain_file_name(path) for path in record_paths(self._read_record(maker))}
            replaced = maker == job.key or (maker is not None and plain in made_by[maker])
            if name in before or replaced or job.key in self._broken:
                (self.out / name).unlink(missing_ok=True)
            if maker not in (None, job.key):
                self._record(str(maker)).unlink(missing_ok=True)

    def _is_whole(self, record: Mapping[str, Any]) -> bool:
        """Whether the pictures of a record are there."""
        return bool(record["files"]) and all(
            file["path"].endswith(f".{self.extension}") and self._is_there(file) for file in record["files"]
        )

    def _is_there(self, file: Mapping[str, Any]) -> bool:
        """Looked for twice: it may be getting its name just now. Of another size, somebody has edited it, or it is
        what a power cut left."""
        for path in (self.out / file["path"], self.records / file["waiting"], self.out / file["path"]):
            try:
                if path.stat().st_size == file.get("size"):
                    return True
                with Image.open(path) as picture:
                    picture.load()
                return True
            except (OSError, SyntaxError, ValueError):
                continue
        return False

    def _read_record(self, key: str) -> dict[str, Any] | None:
        """A record, or None where there is none, or one that was cut short by a power cut."""
        found = _read_table(self._record(key))
        files = found.get("files")
        return found if isinstance(files, list) and all(map(_is_file_entry, files)) else None

    def _read_failure(self, key: str) -> dict[str, Any]:
        return _read_table(self._failure(key))

    def _record(self, key: str) -> Path:
        return self.records / f"{key}.json"

    def _failure(self, key: str) -> Path:
        return self.records / f"{key}.failed"

    def _waiting(self, key: str, index: int) -> Path:
        return self.records / f"{key}.{index}.{self.extension}"


def _free_names(name: str) -> Iterator[str]:
    """A file name, and what it may be called where that is taken."""
    yield name
    stem, dot, suffix = name.rpartition(".")
    for number in itertools.count(2):
        yield f"{stem}-{number}{dot}{suffix}"


def place_file(source: Path, target: Path) -> None:
    """Move a file to a name that nothing has; FileExistsError where something has. Another process may do the same."""
    try:
        take_name(source, target)
    except FileNotFoundError:  # another process was faster
        return
    except FileExistsError:
        with contextlib.suppress(FileNotFoundError):
            if not os.path.samefile(source, target):
                raise
        source.unlink(missing_ok=True)


def _is_file_entry(entry: Any) -> bool:
    """Whether a record's entry names files of this folder."""
    names = [entry.get("path"), entry.get("waiting")] if isinstance(entry, dict) else [None]
    return all(isinstance(name, str) and name and Path(name).name == name for name in names) and "infotext" in entry


def _write_table(path: Path, table: Mapping[str, Any]) -> None:
    with atomic_write(path, flush=False) as aside:
        aside.write_text(json.dumps(table, ensure_ascii=False), encoding="utf-8", errors="surrogatepass")


def _read_table(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
