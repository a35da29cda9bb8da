"""The blocks that draw: noise to latents, and hires fix."""

from dataclasses import replace
from typing import Any

import torch
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam
from torch import Tensor

from ..conditioning import given_conditioning
from ..controlled import encoding_noise
from ..images.hires import enlarge_latents
from ..passes import StepWatch, noise_start, pass_models, pass_noise, run_pass
from ..request import Request
from .inputs import (
    EMBED_NAMES,
    HIRES_INPUTS,
    NOISE_INPUTS,
    PASS_INPUTS,
    TEXT_INPUTS,
    call_arguments_of,
    input_params,
    output_params,
)
from .models import ModularModels, networks_for_block, request_of, running_call
from .modular_api import component_specs
from .step import WebUIStep


class WebUIDenoiseStep(WebUIStep):
    """Noise to latents with the webui's samplers, in place of diffusers' denoise block and those that prepare it."""

    embed_names: tuple[str, ...] = EMBED_NAMES

    @property
    def description(self) -> str:
        return (
            "Draws noise by seed and denoises it with the webui's samplers and schedules, under prompt editing, AND "
            "and the refiner. The guider guides (7.5 unless set; SDXL's pipelines have 5.0). Reads "
            "`webui_conditioning`, or embeddings of any text encoder block."
        )

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return component_specs("unet", "vae", "scheduler", "guider", "refiner", "webui_files")

    @property
    def inputs(self) -> list[InputParam]:
        handed = (*self.embed_names, "batch_size", "webui_conditioning", "webui_loras")
        return input_params((*PASS_INPUTS, *NOISE_INPUTS), handed, xl=self.is_xl)

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return output_params("latents", "seeds")

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        block_state = self.get_block_state(state)
        pipe, running = ModularModels(components, self), running_call(state)
        if running is None or running.request is None:
            request = asked_pass(pipe, block_state)
        else:
            request = with_embeds(pipe, running.request, block_state)
        plan = request.first
        work = networks_for_block(pipe, state, block_state.lora_backend, plan.loras, plan, request.tiling)
        with work as networks:
            models = pass_models(pipe, request, plan)
            start = noise_start(pipe, request, plan)
            block_state.latents = run_pass(pipe, request, plan, models, start, StepWatch(pipe, networks=networks))
        if running is not None:
            running.embeddings.append(models[0].conditioning.embeddings)
        block_state.seeds = list(request.seeds)
        self.set_block_state(state, block_state)
        return components, state


def asked_pass(pipe: ModularModels, block_state: Any) -> Request:
    """The request of a denoise block's own inputs. Its texts are encoded already."""
    given = call_arguments_of(block_state)
    given |= _given_embeds(block_state, given["num_images_per_prompt"])
    if given["prompt_embeds"] is None:
        raise ValueError(
            "There is nothing to draw: neither `webui_conditioning` nor `prompt_embeds` are there. Put a text encoder "
            "block before the denoise block, or pass embeddings."
        )
    if isinstance(block_state.timesteps, Tensor):  # a block before set the scheduler, and scaled the noise by it
        latents = given["latents"] if given["seed"] is None else None
        given["latents"] = None if latents is None else latents / pipe.scheduler.init_noise_sigma
    if block_state.webui_loras is not None:
        given["loras"] = None
    request = request_of(pipe, given)
    if block_state.webui_loras is None:
        return request
    return replace(request, first=replace(request.first, loras=list(block_state.webui_loras)))


def with_embeds(pipe: ModularModels, request: Request, block_state: Any) -> Request:
    """A whole call's request for its first pass, whose texts a block before encoded."""
    given = _given_embeds(block_state, 1)
    embeds = given["prompt_embeds"]
    if embeds is None:
        return request
    each = request.first.batch_size // len(embeds)
    found = given_conditioning({**given, "num_images_per_prompt": each, "negative_prompt": None}, is_sdxl=pipe.is_sdxl)
    return replace(request, embeds=found)


def _given_embeds(block_state: Any, each: int) -> dict[str, Any]:
    """The arguments that stand for prompts, and how many images each of them is for."""
    if block_state.webui_conditioning is not None:
        return {"prompt_embeds": block_state.webui_conditioning, "num_images_per_prompt": each}
    embeds = {name: getattr(block_state, name, None) for name in EMBED_NAMES}
    rows, prompts = embeds["prompt_embeds"], block_state.batch_size
    repeated = rows is not None and prompts is not None and len(rows) == prompts * each
    return {**embeds, "num_images_per_prompt": 1 if repeated else each}


class WebUIHiresStep(WebUIStep):
    """Hires fix: the latents larger, and a second pass over them."""

    text_components: tuple[str, ...] = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")

    @property
    def description(self) -> str:
        return (
            "Enlarges denoised latents, by themselves or through pixels and an upscaler, and draws them partly anew. "
            "Encodes the texts again, since prompt editing goes on in the second pass. Without `hires_scale` and "
            "`hires_size` it leaves the latents as they are."
        )

    @property
    def expected_components(self) -> list[ComponentSpec]:
        parts = ("unet", "vae", "scheduler", "guider", "refiner", "upscaler", "webui_files")
        return component_specs(*self.text_components, *parts)

    @property
    def inputs(self) -> list[InputParam]:
        own = [name for name in (*HIRES_INPUTS, *TEXT_INPUTS, *PASS_INPUTS, *NOISE_INPUTS) if name != "latents"]
        return input_params(own, ("latents", "seeds", "webui_loras"), xl=self.is_xl)

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return output_params("latents")

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        block_state = self.get_block_state(state)
        pipe, running = ModularModels(components, self), running_call(state)
        if running is not None and running.request is not None:
            request = running.request
        elif block_state.hires_scale or any(block_state.hires_size or ()):
            request = asked_hires(pipe, block_state)
        else:
            return components, state
        plan = request.second
        if plan is None:
            return components, state
        encoded_under = request.first if request.options["hires_fix_use_firstpass_conds"] else plan
        backend = block_state.lora_backend
        with networks_for_block(pipe, state, backend, encoded_under.loras, plan, request.tiling) as networks:
            models = pass_models(pipe, request, plan)
            components.webui_files.reports = networks.switch(plan.loras)
            noise = pass_noise(pipe, request.noise, request.first, 0).global_generator()
            noise, before = encoding_noise(pipe, request.first, noise), request.enlargement
            x = block_state.latents.float()
            x = enlarge_latents(pipe.vae, x, before.target, before.upscaler, request.options, noise)
            start, watch = noise_start(pipe, request, plan, x), StepWatch(pipe, networks=networks)
            block_state.latents = run_pass(pipe, request, plan, models, start, watch)
        if running is not None:
            running.embeddings.append(models[0].conditioning.embeddings)
        self.set_block_state(state, block_state)
        return components, state


def asked_hires(pipe: ModularModels, block_state: Any) -> Request:
    """The request of a hires block's own inputs; its first pass is done."""
    given = {**call_arguments_of(block_state), "latents": None}
    drawn = tuple(cells * pipe.vae_scale_factor for cells in block_state.latents.shape[-2:])
    for name in ("original_size", "target_size"):  # a block before wrote the first pass's size there
        given[name] = None if given[name] == drawn else given[name]
    if block_state.seeds and given["seed"] is not None:
        given["seed"] = list(block_state.seeds)
    request = request_of(pipe, given)
    if block_state.webui_loras is None or given["hires_prompt"]:
        return request
    return replace(request, second=replace(request.second, loras=list(block_state.webui_loras)))
