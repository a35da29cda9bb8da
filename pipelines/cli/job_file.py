"""Files of jobs: a line each, JSON with a call's arguments or just a prompt; or a folder of pictures, a job each."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .jobs import Job, make_jobs
from .options import merge_call, take_option, with_usual_sampler
from .sources import SourceCall, call_from, expand_sources, read_source


_SHOWN_PROBLEMS = 5


def read_jobs(path: Path, defaults: Mapping[str, Any], model: str | None) -> list[Job]:
    """The jobs of a file or folder, all checked before the first is drawn: arguments by name and type.

    defaults: arguments of every job that does not say otherwise. Raises ValueError with the lines and keys that are
    wrong.
    """
    path = path.expanduser()
    calls, fields, problems = [], [], []
    entries = _picture_jobs(path) if path.is_dir() else _job_lines(path)
    for line, job in entries:
        try:
            table = _read_table_line(job) if isinstance(job, str) else job
            name, call, own_fields = _read_job(table, defaults, path if path.is_dir() else path.parent)
            calls.append((line, name, {"model": model, **call}))
            fields.append(own_fields)
        except (ValueError, OSError) as error:
            problems.append(f"line {line}: {error}" if isinstance(job, str) else str(error))
    if problems:
        shown = "\n  ".join(problems[:_SHOWN_PROBLEMS])
        more = f"\n  and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise ValueError(f"`{path}` is not drawn, because of\n  {shown}{more}")
    if not calls:
        raise ValueError(f'`{path}` has no jobs. Write one a line, such as {{"prompt": "a cat", "seed": 1}}.')
    return [job._replace(fields=own) for job, own in zip(make_jobs(calls), fields)]


def _picture_jobs(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """A job for each picture, under its name; with its ending where two differ only there."""
    pictures = [Path(source) for source in expand_sources([folder])]
    stems = [picture.stem.casefold() for picture in pictures]
    for number, picture in enumerate(pictures, start=1):
        alone = stems.count(picture.stem.casefold()) == 1
        yield number, {"name": picture.stem if alone else picture.name, "from": picture.name}


def _job_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers; empty ones and those that begin with # are left out."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"`{path}` is no UTF-8 text ({error}). Give a file with one job a line.") from error
    except OSError as error:
        raise ValueError(f"`{path}` cannot be read: {(error.strerror or str(error)).lower()}.") from error
    for number, line in enumerate(text.split("\n"), start=1):  # JSON may hold other line ends
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line.strip()


def _read_table_line(text: str) -> dict[str, Any]:
    if not text.startswith("{"):
        return {"prompt": text}
    try:
        return json.loads(text, object_pairs_hook=_without_doubles, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON ({error})") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply to be a job") from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A table of JSON; a key that stands twice is refused, for one of the two would be lost."""
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"`{double}` stands there twice: leave out one of the two")
    return table


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number that an argument can have")


def _read_job(
    job: Mapping[str, Any], defaults: Mapping[str, Any], folder: Path
) -> tuple[str | None, dict[str, Any], Mapping[str, Any]]:
    """Name, arguments, and the fields of its text, of one job. folder: where a relative `from` begins."""
    name, source = job.get("name"), job.get("from")
    if name is not None and (not isinstance(name, str) or not name.strip(". ")):
        raise ValueError(f"`name` must be a file's name without ending; got {name!r}.")
    if source is not None and (not isinstance(source, str) or not source):
        raise ValueError(f"`from` must be a picture's path; got {source!r}.")
    path = None if source is None else folder / Path(source).expanduser()
    base = SourceCall("", {}, []) if path is None else call_from(read_source(path), str(path))
    own = {key: take_option(key, value) for key, value in job.items() if key not in ("name", "from")}
    call = with_usual_sampler(merge_call(merge_call(defaults, base.arguments), own))
    call = {key: value for key, value in call.items() if value is not None or key == "sampler"}
    if "prompt" not in call:
        raise ValueError("it has no `prompt`.")
    return name, call, base.fields
