"""File names of jobs' pictures, chosen before anything is drawn so that nothing is ever written over.

A job of one picture has its name as it is; where that is not free, it is refused. The pictures of others are numbered,
and numbers that are not free are left out. What an earlier version of the same job made (by its name) is replaced.

job                      files                        because
fox, 1 picture           fox.png
fox, 3 pictures          fox-1 fox-3 fox-4            somebody's own fox-2.png is there, or a job is called fox-2
"""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Job(NamedTuple):
    """One call, and under which name its pictures go."""

    key: str  # 32 hexadecimal digits
    name: str  # of the file, without ending
    call: Mapping[str, Any]  # `model` may be among the arguments
    line: int  # in the file of jobs, from 1
    fields: Mapping[str, Any] = {}  # of the text that the call comes from

    @property
    def count(self) -> int:
        """How many pictures the call makes."""
        prompts = self.call.get("prompt")
        rows = len(prompts) if isinstance(prompts, (list, tuple)) else 1
        return rows * int(self.call.get("num_images_per_prompt") or 1)


class FolderState(NamedTuple):
    """What is in a folder of jobs before any of them is drawn. Names as `plain_file_name` writes them."""

    extension: str
    there: set[str]
    records: Mapping[str, Mapping[str, Any]]  # key -> record
    broken: set[str]  # keys whose record cannot be read

    @property
    def made(self) -> dict[str, str]:
        """File name -> the key of the job that made it."""
        return {plain_file_name(path): key for key, record in self.records.items() for path in record_paths(record)}


def choose_names(jobs: Sequence[Job], state: FolderState) -> dict[str, list[str]]:
    """key -> the names of a job's pictures. Raises ValueError for two jobs of one name, or a name that is not free."""
    jobs = sorted(jobs, key=lambda job: job.line)
    made, current, names = state.made, {job.key for job in jobs}, {}
    owners: dict[str, Job] = {}

    def is_free(name: str, job: Job) -> bool:
        plain = plain_file_name(name)
        maker = made.get(plain)
        if plain in owners and owners[plain] is not job:
            return False
        if plain not in state.there or maker == job.key:
            return True
        if maker is None:
            return job.key in state.broken
        return maker not in current and state.records[maker].get("name") == job.name

    for job in jobs:
        if job.count == 1:
            name = f"{job.name}.{state.extension}"
            other = owners.setdefault(plain_file_name(name), job)
            if other is not job:
                raise ValueError(
                    f"lines {other.line} and {job.line} have the same name {job.name!r}. Give each its own."
                )
            if not is_free(name, job):
                raise ValueError(
                    f"line {job.line}: `{name}` is there already, and this job has not made it. Take another name or "
                    "another --out."
                )
            names[job.key] = [name]
    for job in jobs:
        if job.key not in names:
            names[job.key] = _numbered_names(job, state, is_free)
            owners |= {plain_file_name(name): job for name in names[job.key]}
    return names


def _numbered_names(job: Job, state: FolderState, is_free: Any) -> list[str]:
    """The names in a job's record, else the first free numbers."""
    known = [file["path"] for file in state.records.get(job.key, {}).get("files", ())]
    if len(known) == job.count and all(name.endswith(f".{state.extension}") for name in known):
        return known
    names: list[str] = []
    number = 0
    while len(names) < job.count:
        number += 1
        name = f"{job.name}-{number}.{state.extension}"
        if is_free(name, job):
            names.append(name)
    return names


def record_paths(record: Mapping[str, Any] | None) -> list[str]:
    """The files that a job has made: now, or in another format before."""
    return [] if record is None else [*(file["path"] for file in record["files"]), *record.get("earlier", ())]


def plain_file_name(name: str) -> str:
    """What two names share that some file systems take for one: capitals and accents written either way."""
    return unicodedata.normalize("NFC", name).casefold()
