"""Every way to a pipeline on the Hub, as a script for a process of its own: `python hub_routes.py JOB`.

JOB is JSON: class_name, model (its Hub id), folder (built by hub_upload) and module, code_repo, full_repo, tag,
snapshot, routes (names in ROUTES). Prints one JSON table, route -> sum of the pixels that were drawn.
"""

import hashlib
import json
import sys
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, logging
from diffusers.utils import dynamic_modules_utils
from PIL import Image


COMMON = {"dtype": torch.float32}
TRUST = {"trust_remote_code": True}


def pixels(pipe: DiffusionPipeline) -> str:
    """Sum of the picture that the pipeline draws."""
    pipe.set_progress_bar_config(disable=True)
    kind = type(pipe).__name__
    call: dict[str, Any] = {"prompt": "a red circle", "num_inference_steps": 2, "output_type": "np"}
    if kind.startswith("WebUI"):
        call |= {"prompt": "a (red:1.3) circle", "seed": 3, "sampler": "Euler a"}
    else:
        call |= {"generator": torch.Generator().manual_seed(3)}
    picture = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
    if "Img2Img" in kind:
        call |= {"image": picture, "strength": 0.9}
    if kind == "DetailerPipeline":
        call |= {"image": picture, "detailers": [{"detections": [{"bboxes": [[8, 8, 50, 40]]}]}], "seed": 3}
    torch.manual_seed(0)  # as in the webui, what encodes a picture draws from the global generator
    image = np.ascontiguousarray(pipe(**call).images[0])
    return hashlib.sha256(image.tobytes()).hexdigest()[:16]


def load(model: str, **more: Any) -> DiffusionPipeline:
    return DiffusionPipeline.from_pretrained(model, **COMMON, **TRUST, **more)


def local_file(job: dict) -> DiffusionPipeline:
    return load(job["model"], custom_pipeline=f"{job['folder']}/{job['module']}.py")


def local_folder(job: dict) -> DiffusionPipeline:
    return load(job["model"], custom_pipeline=job["folder"])


def code_repository(job: dict) -> DiffusionPipeline:
    return load(job["model"], custom_pipeline=job["code_repo"])


def code_at_a_tag(job: dict) -> DiffusionPipeline:
    return load(job["model"], custom_pipeline=job["code_repo"], custom_revision=job["tag"])


def full_repository(job: dict) -> DiffusionPipeline:
    return load(job["full_repo"])


def full_at_a_tag(job: dict) -> DiffusionPipeline:
    return load(job["full_repo"], revision=job["tag"])


def snapshot(job: dict) -> DiffusionPipeline:
    return load(job["snapshot"])


def from_pipe(job: dict) -> DiffusionPipeline:
    plain = DiffusionPipeline.from_pretrained(job["model"], **COMMON)
    return DiffusionPipeline.from_pipe(plain, custom_pipeline=job["code_repo"], **TRUST)


def community(job: dict) -> DiffusionPipeline:
    """By a bare name, as of examples/community: diffusers takes the file from its mirror on the Hub."""
    dynamic_modules_utils.get_diffusers_versions = lambda: []  # a list that it reads from PyPI
    return load(job["model"], custom_pipeline=job["module"], custom_revision="main")


def package(job: dict) -> DiffusionPipeline:
    import webui_diffusers.pipelines as pack

    return getattr(pack, job["class_name"]).from_pretrained(job["model"], **COMMON)


ROUTES = {
    function.__name__: function
    for function in (
        package,
        local_file,
        local_folder,
        code_repository,
        code_at_a_tag,
        full_repository,
        full_at_a_tag,
        from_pipe,
        snapshot,
        community,
    )
}


if __name__ == "__main__":
    logging.set_verbosity_error()
    asked = json.loads(sys.argv[1])
    if "package" not in asked["routes"]:
        sys.modules["webui_diffusers"] = None  # type: ignore[assignment]
    print(json.dumps({route: pixels(ROUTES[route](asked)) for route in asked["routes"]}))
