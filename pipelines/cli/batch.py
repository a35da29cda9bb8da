"""`batch`: many jobs, drawn by one process or several."""

from collections.abc import Mapping
from dataclasses import replace
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
from .job_file import read_jobs
from .job_folder import JobFolder
from .job_names import Job
from .jobs import JobsDone, run_jobs
from .models import ModelSetup, PipelineCache, draw_call, model_options, read_setup, with_model_checked
from .options import CALL_OPTIONS, call_options, read_call
from .outputs import format_option, out_option, quality_option


@click.command("batch", cls=DrawCommand)
@click.argument("jobs", type=click.Path(path_type=Path))
@out_option("batch", "Folder.")
@format_option
@quality_option
@json_option
@call_options(CALL_OPTIONS)
@model_options
def batch_command(jobs: Path, out: Path, as_json: bool, **values: Any) -> None:
    """Draw many jobs; run it again to go on after a stop, or to try failed jobs again.

    JOBS is a file with one job a line: JSON with a call's arguments, such as {"prompt": "a cat", "seed": 1}, or just
    a prompt. A job may also have `name` (of its file), `from` (a picture whose parameters to start from) and `model`.
    Or JOBS is a folder of pictures: each is drawn again, under its name. Options of the call count for every job that
    does not say otherwise.

    With several GPUs: accelerate launch --num_processes 2 -m webui_diffusers.pipelines.cli batch jobs.jsonl
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


def draw_jobs(jobs: list[Job], setup: ModelSetup, folder: JobFolder) -> JobsDone:
    """Draw jobs with the other processes that draw them, and give what came of it in the order of their lines."""
    folder.check_names(jobs)
    for model in dict.fromkeys(job.call.get("model") or setup.model for job in jobs):
        with_model_checked(replace(setup, model=model))
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
