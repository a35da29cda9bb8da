"""`batch`: many jobs, drawn by one process or several."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from .checks import is_usual_model, refuse_missing
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
from .draw import with_opened_images
from .dynamic import dynamic_options, filled_calls, is_dynamic
from .job_file import read_jobs
from .job_folder import JobFolder
from .job_names import Job
from .jobs import JobsDone, run_jobs
from .library import CallFiles, library_options, read_library
from .models import (
    ModelSetup,
    PipelineCache,
    draw_call,
    load_txt2img,
    model_options,
    read_setup,
    with_model_checked,
)
from .options import CALL_OPTIONS, call_options, read_call
from .outputs import format_option, out_option, quality_option
from .ray_jobs import LOCAL, BatchPlan, RayCluster, draw_with_ray
from .sources import SourceCall


RAY_HELP = "Draw on a Ray cluster: host:port, auto, or without an address one that is started here."


@click.command("batch", cls=DrawCommand)
@click.argument("jobs", type=click.Path(path_type=Path))
@out_option("batch", "Folder.")
@format_option
@quality_option
@dynamic_options
@json_option
@call_options(CALL_OPTIONS)
@model_options
@library_options
@click.option("--ray", "address", is_flag=False, flag_value=LOCAL, metavar="[ADDRESS]", help=RAY_HELP)
@click.option("--workers", type=click.IntRange(1), help="Actors of --ray; by default one a GPU, or one.")
@click.option("--num-gpus", type=click.FloatRange(0), help="GPUs of each actor; by default one where there are any.")
def batch_command(
    jobs: Path,
    out: Path,
    as_json: bool,
    address: str | None,
    workers: int | None,
    num_gpus: float | None,
    **values: Any,
) -> None:
    """Draw many jobs; run it again to go on after a stop, or to try failed jobs again.

    JOBS is a file with one job a line: JSON with a call's arguments, such as {"prompt": "a cat", "seed": 1}, or just
    a prompt. A job may also have `name` (of its file), `from` (a picture whose parameters to start from) and `model`.
    Or JOBS is a folder of pictures: each is drawn again, under its name. Options of the call count for every job that
    does not say otherwise.

    With several GPUs: accelerate launch --num_processes 2 -m webui_diffusers.pipelines.cli batch jobs.jsonl
    With several machines that see the same folders: batch jobs.jsonl --ray ADDRESS
    """
    own = read_call(values)
    listed = read_jobs(jobs, own, read_setup(values).model)
    if is_dynamic(values):
        listed = [job._replace(call=filled_calls(job.call, {**values, "count": 1})[0]) for job in listed]
    drawer = JobDrawer.from_options(listed, values, own)
    if address is None:
        done = draw_jobs(listed, drawer, JobFolder(out, values["extension"], values["quality"]))
    else:
        drawer.refuse_missing()
        plan = BatchPlan(drawer.by_model(listed), values, own, out.absolute(), os.getcwd())
        done = draw_with_ray(plan, RayCluster(address, workers, num_gpus))
    if is_main_process():
        found = {"done": [_job_result(record, out) for record in done.results], "failed": done.failed}
        said = f"{len(done.results)} jobs done, {len(done.failed)} failed, in {out}"
        print_result(found, as_json, lambda _: report(said))
    if done.failed:
        raise click.exceptions.Exit(EXIT_FAILED)


class JobDrawer:
    """What draws jobs in one process: the files that each names, and the pipelines they are drawn with."""

    def __init__(self, jobs: Sequence[Job], setup: ModelSetup, files: CallFiles) -> None:
        self.files = files
        self.ready = {job.key: find_job_files(job, setup, files) for job in jobs}
        self.pipes = PipelineCache(lambda own: load_txt2img(own, bars=False))

    @classmethod
    def from_options(cls, jobs: Sequence[Job], values: Mapping[str, Any], own: Mapping[str, Any]) -> "JobDrawer":
        """For the options of a command, as click gives them. own: the call's among them."""
        files = CallFiles(read_library(values), own, without_missing=values["without_missing"])
        return cls(jobs, read_setup(values), files)

    def refuse_missing(self) -> None:
        """Raises ValueError, before anything is loaded, for models and files that are not there."""
        refuse_missing(self.files, (problem for _, own in self.ready.values() for problem in _model_problems(own)))

    def by_model(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs of one model after those of another."""
        return sorted(jobs, key=lambda job: str(self.ready[job.key][1].model))

    def draw(self, job: Job) -> tuple[Any, Any]:
        """The job's pictures and their texts."""
        call, own = self.ready[job.key]
        pipe = self.pipes.pipe(own)
        self.files.attach(pipe, call)
        pipe.attached.row_cache.rows.clear()  # a job's bits depend on nothing that was drawn before it
        return draw_call(pipe, with_opened_images(call))


def draw_jobs(jobs: Sequence[Job], drawer: JobDrawer, folder: JobFolder) -> JobsDone:
    """Draw jobs with the other processes that draw them, and give what came of it in the order of their lines.

    Raises ValueError before anything is loaded for names that are not free, models that are not there, and files that
    are missing.
    """
    folder.check_names(jobs)
    drawer.refuse_missing()

    def on_error(job: Job, error: Exception) -> None:
        report(f"Line {job.line}: {error_message(error)}", "red")

    with progress_total("Jobs", len(jobs)) as progress:
        done = run_jobs(drawer.by_model(jobs), folder, drawer.draw, progress=progress, on_error=on_error)
    folder.close()
    return JobsDone(*(sorted(found, key=lambda entry: entry["line"]) for found in done))


def find_job_files(job: Job, setup: ModelSetup, files: CallFiles) -> tuple[dict[str, Any], ModelSetup]:
    """A job's call and what it is drawn with, with the files that were found for them."""
    arguments = {name: value for name, value in job.call.items() if name != "model"}
    model = job.call.get("model")
    usual = model == setup.model and is_usual_model()
    own = replace(setup, model=model or setup.model)
    source, own = files.find(SourceCall(job.name, arguments, [], job.fields), own, usual_model=usual)
    return source.arguments, own


def _model_problems(setup: ModelSetup) -> list[str]:
    try:
        with_model_checked(setup)
    except ValueError as error:
        return [str(error)]
    return []


def _job_result(record: Mapping[str, Any], out: Path) -> dict[str, Any]:
    pictures = [{"path": str(out / file["path"]), "infotext": file["infotext"]} for file in record["files"]]
    return {"line": record["line"], "name": record["name"], "pictures": pictures}
