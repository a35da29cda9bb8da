"""`batch --ray`: the jobs of a batch drawn by actors of a Ray cluster, one pipeline an actor.

Ray Data gives each job to an actor that is free, starts an actor anew whose process died, and gives it the job that it
had in hand again. What is done is written in the job folder, as by processes that Ray knows nothing of: so every
machine must see that folder, the models and the jobs' pictures under the same paths.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Any

from ...loaders.utils import require
from .common import error_message, progress_total, report
from .job_folder import JobFolder
from .job_names import Job
from .jobs import POLL_SECONDS, JobRun, JobsDone, jobs_done


LOCAL = "local"


@dataclass(frozen=True)
class RayCluster:
    """Where the jobs are drawn: a cluster's address ("local" starts one here, "auto" finds the one that runs),
    how many actors draw, and how many GPUs each has."""

    address: str = LOCAL
    workers: int | None = None
    num_gpus: float | None = None


class JobActor:
    """One process that draws jobs. `plan` has all that a process needs to draw any of them."""

    def __init__(self, plan: "BatchPlan") -> None:
        os.chdir(plan.working_folder)
        self.jobs = {job.key: job for job in plan.jobs}
        self.drawer = plan.drawer()
        folder = plan.folder()
        folder.check_names(plan.jobs)
        self.failed: dict[str, str] = {}
        self.run = JobRun(folder, self.drawer.draw, self._note_failure)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """Draw the jobs of these keys; what went wrong with each, "" where nothing did."""
        keys = [str(key) for key in batch["key"]]
        for key in keys:
            while not self.run.settle(self.jobs[key]):
                sleep(POLL_SECONDS)  # another process holds it, or one whose key begins alike
        return {"key": keys, "error": [self.failed.pop(key, "") for key in keys]}

    def _note_failure(self, job: Job, error: Exception) -> None:
        self.failed[job.key] = error_message(error)


@dataclass(frozen=True)
class BatchPlan:
    """A batch as it travels to the actors: the jobs, and the command's options to read the rest from."""

    jobs: Sequence[Job]
    values: Mapping[str, Any]
    own: Mapping[str, Any]
    out: Path
    working_folder: str

    def drawer(self) -> Any:
        """What draws these jobs in this process."""
        from .batch import JobDrawer

        return JobDrawer.from_options(self.jobs, self.values, self.own)

    def folder(self) -> JobFolder:
        """The folder that they write to."""
        return JobFolder(self.out, self.values["extension"], self.values["quality"])


def draw_with_ray(plan: BatchPlan, cluster: RayCluster) -> JobsDone:
    """Draw the jobs of `plan` on a cluster, and give what came of them in the order of their lines.

    Raises ImportError without Ray, ConnectionError where nothing answers at the address.
    """
    ray = require("ray", extra="ray", feature="`batch --ray`")
    require("ray.data", extra="ray", feature="`batch --ray`")
    folder = plan.folder()
    folder.check_names(plan.jobs)
    folder.finish_names(plan.jobs)
    waiting = [job for job in plan.jobs if not folder.is_done(job)]
    lines = {job.key: job.line for job in plan.jobs}
    if waiting:
        ray.init(address=cluster.address, ignore_reinit_error=True, log_to_driver=False)
        with progress_total("Jobs", len(plan.jobs)) as progress:
            settled = len(plan.jobs) - len(waiting)
            for key, error in _drawn(ray, plan, waiting, cluster):
                settled += 1
                progress(settled)
                if error:
                    report(f"Line {lines[key]}: {error}", "red")
        folder.finish_names(plan.jobs)
    return jobs_done(sorted(plan.jobs, key=lambda job: job.line), folder)


def _drawn(ray: Any, plan: BatchPlan, waiting: Sequence[Job], cluster: RayCluster) -> Iterator[tuple[str, str]]:
    """Keys of jobs as they are settled, each with what went wrong."""
    gpus = ray.cluster_resources().get("GPU", 0)
    each = cluster.num_gpus if cluster.num_gpus is not None else float(gpus > 0)
    fitting = int(gpus // each) if each else 1
    workers = max(1, min(cluster.workers or fitting, len(waiting)))
    ray.data.DataContext.get_current().enable_progress_bars = False
    keys = ray.data.from_items([{"key": job.key} for job in waiting], override_num_blocks=len(waiting))
    settled = keys.map_batches(
        JobActor,
        fn_constructor_args=(plan,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_gpus=each or None,
    )
    for row in settled.iter_rows():
        yield row["key"], row["error"]
