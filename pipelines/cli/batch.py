"""`batch`: a file of jobs, drawn by one process or many."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from .common import (
    EXIT_FAILED,
    DrawCommand,
    error_message,
    is_main_process,
    json_option,
    print_result,
    progress_total,
    report,
)
from .jobs import Job, JobFolder, JobsDone, make_jobs, run_jobs
from .models import ModelSetup, PipelineCache, draw_call, model_options, read_setup
from .options import CALL_OPTIONS, call_options, merge_call, read_call, take_option, with_usual_sampler
from .outputs import format_option, out_option, quality_option
from .sources import arguments_from


_SHOWN_PROBLEMS = 5


@click.command("batch", cls=DrawCommand)
@click.argument("jobs", type=click.Path(path_type=Path))
@out_option("batch", "Folder.")
@format_option
@quality_option
@json_option
@call_options(CALL_OPTIONS)
@model_options
def batch_command(jobs: Path, out: Path, as_json: bool, **values: Any) -> None:
    """Draw a file of jobs; run it again to go on after a stop, or to try failed jobs again.

    JOBS has one job a line: JSON with a call's arguments, or just a prompt. Options of the call count for every job
    that does not say otherwise. A job may also have `name` (of its file), `from` (a picture whose parameters to start
    from) and `model`. With several GPUs:

    accelerate launch --num_processes 2 -m webui_diffusers.pipelines.cli batch jobs.jsonl
    """
    setup = read_setup(values)
    listed = read_jobs(jobs, read_call(values), setup.model)
    done = draw_jobs(listed, setup, JobFolder(out, values["extension"], values["quality"]))
    if is_main_process():
        found = {"done": [_job_result(record, out) for record in done.results], "failed": done.failed}
        said = f"{len(done.results)} jobs done, {len(done.failed)} failed, in {out}"
        print_result(found, as_json, lambda _: report(said))
    if done.failed:
        raise click.exceptions.Exit(EXIT_FAILED)


def read_jobs(path: Path, defaults: Mapping[str, Any], model: str | None) -> list[Job]:
    """The jobs of a file, all checked before the first is drawn. Raises ValueError with the lines that are wrong."""
    calls, problems = [], []
    for line, text in _job_lines(path):
        try:
            calls.append((line, *_read_job(text, defaults, model, path.parent)))
        except ValueError as error:
            problems.append(f"line {line}: {error}")
    if problems:
        shown = "\n  ".join(problems[:_SHOWN_PROBLEMS])
        more = f"\n  and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise ValueError(f"`{path}` is not drawn, because of\n  {shown}{more}")
    if not calls:
        raise ValueError(f'`{path}` has no jobs. Write one a line, such as {{"prompt": "a cat", "seed": 1}}.')
    return make_jobs(calls)


def draw_jobs(jobs: list[Job], setup: ModelSetup, folder: JobFolder) -> JobsDone:
    """Draw jobs with the other processes that draw them, and give what came of it in the order of their lines."""
    folder.check_names(jobs)
    pipes = PipelineCache(setup)

    def draw(job: Job) -> tuple[Any, Any]:
        arguments = {name: value for name, value in job.call.items() if name != "model"}
        pipe = pipes.pipe(job.call.get("model"))
        pipe.attached.row_cache.rows.clear()  # a job's bits depend on nothing that was drawn before it
        return draw_call(pipe, arguments)

    def on_error(job: Job, error: Exception) -> None:
        report(f"Line {job.line}: {error_message(error)}", "red")

    by_model = sorted(jobs, key=lambda job: str(job.call.get("model")))
    with progress_total("Jobs", len(jobs)) as progress:
        done = run_jobs(by_model, folder, draw, progress=progress, on_error=on_error)
    folder.close()
    return JobsDone(*(sorted(found, key=lambda entry: entry["line"]) for found in done))


def _job_result(record: Mapping[str, Any], out: Path) -> dict[str, Any]:
    pictures = [{"path": str(out / file["path"]), "infotext": file["infotext"]} for file in record["files"]]
    return {"line": record["line"], "name": record["name"], "pictures": pictures}


def _job_lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"`{path}` cannot be read as UTF-8 text ({error}). Give a file with one job a line."
        ) from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line.strip()


def _read_job(
    text: str, defaults: Mapping[str, Any], model: str | None, folder: Path
) -> tuple[str | None, dict[str, Any]]:
    """Name and arguments of one line."""
    if text.startswith("{"):
        try:
            job = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"it is no JSON ({error})") from error
    else:
        job = {"prompt": text}
    name, source = job.pop("name", None), job.pop("from", None)
    if name is not None and (not isinstance(name, str) or not name.strip(". ")):
        raise ValueError(f"`name` is {name!r}; it must be a file's name without ending")
    base = arguments_from(folder / source)[0] if source is not None else {}
    own = {argument: take_option(argument, value) for argument, value in job.items()}
    call = merge_call(merge_call(defaults, base), own)
    if not isinstance(call.get("prompt"), (str, list)):
        raise ValueError("it has no `prompt`")
    return name, {"model": model, **with_usual_sampler(call)}
