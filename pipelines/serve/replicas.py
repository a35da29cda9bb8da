"""The API as a Ray Serve deployment: one model a replica, a replica a device (extra `[ray]`).

    serve run webui_diffusers.pipelines.serve:ray_app model=model.safetensors replicas=2 num_gpus=1

Ray's proxy gives each request to a replica that has room. Every replica has its own queue, options and progress:
`/sdapi/v1/progress`, `interrupt` and a POST of `options` concern the replica that they reach, so clients that switch
models or watch a picture grow want one replica.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ...loaders.library.folder import WebUIFolder
from ...loaders.utils import require, unknown_choice
from ..txt2img import WebUITxt2ImgPipeline
from .application import app


BESIDE_DRAWING = 32  # requests that a replica answers while others wait for their pictures


@dataclass(frozen=True)
class ReplicaOptions:
    """What `ray_app` takes, by name.

    model: a checkpoint file, a diffusers folder or a Hub id; or webui: a webui's folder. lora_folder: where `<lora:…>`
    tags of `model` are looked up. replicas, num_cpus, num_gpus: how many, and what Ray keeps for each. max_queue:
    requests that may wait for a replica. api_auth: "user:password". cors_allow_origins: an origin whose pages may
    call.
    """

    model: str | None = None
    webui: str | None = None
    lora_folder: str | None = None
    replicas: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    max_queue: int = 32
    api_auth: str | None = None
    cors_allow_origins: str | None = None

    @classmethod
    def read(cls, args: Mapping[str, Any]) -> "ReplicaOptions":
        """Of texts as the command line has them, or of values. Raises ValueError naming what is not right."""
        kinds = {field.name: type(field.default) if field.default is not None else str for field in fields(cls)}
        found = {}
        for name, value in args.items():
            if name not in kinds:
                raise ValueError(unknown_choice("option of ray_app", name, kinds))
            try:
                found[name] = kinds[name](value)
            except ValueError as error:
                raise ValueError(f"`{name}` is {value!r}: give a number.") from error
        if (found.get("model") is None) == (found.get("webui") is None):
            raise ValueError("Give `model`, or `webui` for a webui's folder: one of them, not both.")
        return cls(**found)

    def source(self) -> Any:
        """The pipeline, in half precision on the replica's GPU where it has one; or the library of files."""
        if self.webui is not None:
            return WebUIFolder(self.webui)
        on_gpu = torch.cuda.is_available()
        is_file = Path(str(self.model)).is_file()
        load = WebUITxt2ImgPipeline.from_single_file if is_file else WebUITxt2ImgPipeline.from_pretrained
        pipe = load(self.model).to("cuda", torch.float16) if on_gpu else load(self.model).to("cpu", torch.float32)
        pipe.set_progress_bar_config(disable=True)
        if self.lora_folder is not None:
            pipe.lora_folder = self.lora_folder
        return pipe

    def application(self) -> Any:
        """The API of one replica."""
        return app(
            self.source(),
            auth=() if self.api_auth is None else (self.api_auth,),
            cors_allow_origins=() if self.cors_allow_origins is None else (self.cors_allow_origins,),
            max_queue=self.max_queue,
        )


def ray_app(args: Mapping[str, Any]) -> Any:
    """The API as a Ray Serve application, for `serve run` or `ray.serve.run(ray_app({...}))`.

    args: see `ReplicaOptions`. Raises ImportError without Ray, ValueError for what is not among them.

    >>> serve.run(ray_app({"model": "model.safetensors", "replicas": 2, "num_gpus": 1}))
    """
    ray_serve = require("ray.serve", extra="ray", feature="`ray_app`")
    options = ReplicaOptions.read(args)

    def build() -> Any:  # Ray takes a function for a builder, and any other callable for an application
        return options.application()

    class Replica:
        """One model and its queue; every route is the application's."""

    deployment = ray_serve.deployment(
        name="webui-diffusers",
        num_replicas=options.replicas,
        max_ongoing_requests=options.max_queue + BESIDE_DRAWING,
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": options.num_gpus},
        graceful_shutdown_timeout_s=600.0,
    )
    return deployment(ray_serve.ingress(build)(Replica)).bind()
