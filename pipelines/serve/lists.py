"""What there is: samplers, schedules, upscalers, models and files, as the webui's API lists them."""

import os
import sys
from asyncio import wrap_future
from typing import Any

from fastapi import APIRouter, Request

from ..sampling.labels import SAMPLER_ROWS, SCHEDULE_ROWS
from .shelf import ModelShelf
from .worker import Job, Worker


def list_routes(worker: Worker, shelf: ModelShelf) -> APIRouter:
    """The routes that only tell."""
    routes = APIRouter()
    _fixed_lists(routes, shelf)
    _file_lists(routes, shelf)
    _machine_facts(routes, worker, shelf)
    return routes


def _fixed_lists(routes: APIRouter, shelf: ModelShelf) -> None:
    @routes.get("/sdapi/v1/samplers")
    def samplers() -> list[dict[str, Any]]:
        return [{"name": row.label, "aliases": list(row.aliases), "options": {}} for row in SAMPLER_ROWS]

    @routes.get("/sdapi/v1/schedulers")
    def schedulers() -> list[dict[str, Any]]:
        return [
            {"name": row.name, "label": row.label, "aliases": None, "default_rho": -1.0, "need_inner_model": False}
            for row in SCHEDULE_ROWS
        ]

    @routes.get("/sdapi/v1/latent-upscale-modes")
    def latent_upscale_modes() -> list[dict[str, str]]:
        return [{"name": name} for name in shelf.latent_upscalers()]

    @routes.get("/sdapi/v1/scripts")
    def scripts() -> dict[str, list[str]]:
        return {"txt2img": ["adetailer", "controlnet"], "img2img": ["adetailer", "controlnet", "soft inpainting"]}

    @routes.get("/sdapi/v1/script-info")
    def script_info() -> list[dict[str, Any]]:
        return [
            {"name": name, "is_alwayson": True, "is_img2img": is_img2img, "args": []}
            for is_img2img, names in ((False, scripts()["txt2img"]), (True, scripts()["img2img"]))
            for name in names
        ]

    @routes.get("/sdapi/v1/prompt-styles")
    def prompt_styles() -> list[dict[str, Any]]:
        return [
            {"name": name, "prompt": style.prompt, "negative_prompt": style.negative_prompt}
            for name, style in shelf.styles.items()
        ]


def _file_lists(routes: APIRouter, shelf: ModelShelf) -> None:
    @routes.get("/sdapi/v1/upscalers")
    def upscalers() -> list[dict[str, Any]]:
        return [
            {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4}
            for name in shelf.upscalers()
        ]

    @routes.get("/sdapi/v1/realesrgan-models")
    def realesrgan_models() -> list[dict[str, Any]]:
        return [{"name": name, "path": None, "scale": 4} for name in shelf.upscalers() if name.startswith("R-ESRGAN")]

    @routes.get("/sdapi/v1/face-restorers")
    def face_restorers() -> list[dict[str, Any]]:
        return [{"name": name, "cmd_dir": None} for name in shelf.face_restorers()]

    @routes.get("/sdapi/v1/sd-models")
    def sd_models() -> list[dict[str, Any]]:
        return shelf.checkpoints()

    @routes.get("/sdapi/v1/sd-vae")
    def sd_vae() -> list[dict[str, Any]]:
        return [{"model_name": name, "filename": name} for name in shelf.names("vae")]

    @routes.get("/sdapi/v1/loras")
    def loras() -> list[dict[str, Any]]:
        return shelf.loras()

    @routes.get("/sdapi/v1/embeddings")
    def embeddings() -> dict[str, Any]:
        return shelf.embeddings()

    @routes.get("/sdapi/v1/hypernetworks")
    def hypernetworks() -> list[dict[str, Any]]:
        return [{"name": name, "path": None} for name in shelf.names("hypernetwork")]

    @routes.get("/controlnet/model_list")
    def controlnet_models() -> dict[str, list[str]]:
        return {"model_list": shelf.names("controlnet")}

    @routes.get("/controlnet/module_list")
    def controlnet_modules() -> dict[str, list[str]]:
        return {"module_list": shelf.control_modules()}

    @routes.get("/controlnet/version")
    def controlnet_version() -> dict[str, int]:
        return {"version": 3}


def _machine_facts(routes: APIRouter, worker: Worker, shelf: ModelShelf) -> None:
    @routes.get("/sdapi/v1/cmd-flags")
    def cmd_flags() -> dict[str, Any]:
        """What the server was started with, as far as the webui has a flag of the name."""
        return {"api": True, "listen": False, "port": None, "ckpt": None, "hypernetwork_dir": None}

    @routes.get("/sdapi/v1/memory")
    def memory() -> dict[str, Any]:
        return shelf.memory()

    @routes.get("/sdapi/v1/server-info")
    def server_info() -> dict[str, Any]:
        return {
            "version": shelf.version,
            "python": sys.version.split()[0],
            "pid": os.getpid(),
            "queue": worker.waiting,
        }

    for kind in ("checkpoints", "vae", "loras", "embeddings"):

        @routes.post(f"/sdapi/v1/refresh-{kind}", name=f"refresh {kind}")
        async def refresh(request: Request) -> None:
            """Look at the folders again."""
            await worker_job(worker, Job("refresh", lambda _: shelf.refresh()))


async def worker_job(worker: Worker, job: Job) -> Any:
    """Wait for a short job."""
    return await wrap_future(worker.submit(job).result)
