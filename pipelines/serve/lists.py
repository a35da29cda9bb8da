"""What there is: samplers, schedules, upscalers, models and files, as the webui's API lists them."""

import os
import sys
from typing import Any

from fastapi import APIRouter, Request

from ..sampling.labels import SAMPLER_ROWS, SCHEDULE_ROWS, SamplerRow
from .control_routes import Run
from .script_table import script_names, script_rows
from .shelf import ModelShelf
from .worker import Worker


def list_routes(worker: Worker, shelf: ModelShelf, run: Run) -> APIRouter:
    """The routes that only tell. run: gives work to the worker and waits."""
    routes = APIRouter()
    _fixed_lists(routes, shelf)
    _file_lists(routes, shelf)
    _machine_facts(routes, worker, shelf)
    for kind in ("checkpoints", "vae", "loras", "embeddings"):

        @routes.post(f"/sdapi/v1/refresh-{kind}", name=f"refresh {kind}")
        async def refresh(request: Request) -> None:
            """Look at the folders again."""
            await run(request, "refresh", lambda _: shelf.refresh())

    return routes


def _fixed_lists(routes: APIRouter, shelf: ModelShelf) -> None:
    @routes.get("/sdapi/v1/samplers")
    def samplers() -> list[dict[str, Any]]:
        return [
            {"name": row.label, "aliases": list(row.aliases), "options": _sampler_options(row)} for row in SAMPLER_ROWS
        ]

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
        return {kind: script_names(kind) for kind in ("txt2img", "img2img")}

    @routes.get("/sdapi/v1/script-info")
    def script_info() -> list[dict[str, Any]]:
        return script_rows()

    @routes.get("/sdapi/v1/extensions")
    def extensions() -> list[dict[str, Any]]:
        """None: what extensions do stands in `scripts`."""
        return []

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


def _sampler_options(row: SamplerRow) -> dict[str, str]:
    """The webui's facts about a sampler, as texts."""
    facts = {"scheduler": row.schedule and row.schedule.lower(), "second_order": row.second_order}
    facts |= {"discard_next_to_last_sigma": row.discards, "brownian_noise": row.brownian, "uses_ensd": row.uses_ensd}
    return {name: str(value) for name, value in facts.items() if value}
