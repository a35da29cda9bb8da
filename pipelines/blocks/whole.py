"""Blocks around others: networks for as long as they run, and a whole call."""

from typing import Any

import torch
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam

from ..prompt.network_tags import split_network_tags
from ..texts import pass_texts
from .inputs import EMBED_NAMES, call_arguments_of, input_params, output_params
from .models import (
    HandedLoras,
    ModularModels,
    blocks_together,
    refuse_block_without,
    request_of,
    running_call,
    runs_unet_otherwise,
)
from .modular_api import TESTED_DIFFUSERS, BlockSequence, component_specs


class WebUILoraStep(BlockSequence):
    """Networks of tags and `loras`: around the blocks inside it, or for those of this pack behind it.

    >>> blocks = WebUILoraStep.from_blocks_dict(StableDiffusionXLAutoBlocks().get_workflow("text2image").sub_blocks)
    """

    model_name: str | None = "stable-diffusion-xl"
    is_xl = True
    _requirements = {"diffusers": TESTED_DIFFUSERS}

    @property
    def description(self) -> str:
        return (
            "Takes network tags out of the prompts and puts their networks, and those of `loras`, on the models: for "
            "as long as the blocks inside it run, whatever blocks these are, and then every weight is as before. "
            "Without blocks inside, the text encoder, denoise and hires blocks of this pack put them on themselves."
        )

    @property
    def expected_components(self) -> list[ComponentSpec]:
        inner = super().expected_components
        return inner + [spec for spec in component_specs("webui_files") if spec not in inner]

    @property
    def inputs(self) -> list[InputParam]:
        own = input_params(("prompt", "prompt_2", "loras", "lora_backend"), xl=self.is_xl)
        names = {param.name for param in own}
        return own + [param for param in super().inputs if param.name not in {*names, "webui_loras"}]

    @property
    def required_inputs(self) -> list[str]:
        return [name for block in self.sub_blocks.values() for name in block.required_inputs]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return output_params("webui_loras") + super().intermediate_outputs

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """That of the blocks inside."""
        for block in self.sub_blocks.values():
            if hasattr(block, "set_progress_bar_config"):
                block.set_progress_bar_config(**kwargs)

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        pipe, running = ModularModels(components, self), running_call(state)
        prompts = {name: state.get(name) for name in ("prompt", "prompt_2")}
        backend = state.get("lora_backend") or "webui"
        if running is not None and running.request is not None:
            loras = running.request.first.loras
        else:
            given = {**prompts, "negative_prompt_2": None, "loras": state.get("loras")}
            texts = [prompts["prompt"]] if isinstance(prompts["prompt"], str) else list(prompts["prompt"] or [])
            loras = pass_texts(pipe, given, texts).loras
        for name, text in prompts.items():
            state.set(name, _without_tags(text))
        state.set("webui_loras", HandedLoras(loras))
        if not self.sub_blocks:
            if running is not None:
                components.webui_files.reports = running.networks.switch(loras)
            elif loras:
                for part in ("text_encoder", "unet"):
                    refuse_block_without(components, part, "webui_loras", "networks")
            return components, state
        with blocks_together(pipe, state, backend) as together:
            components.webui_files.reports = together.networks.switch(loras)
            components, state = super().__call__(components, state)
        for name, text in prompts.items():
            state.set(name, text)
        return components, state


def _without_tags(text: Any) -> Any:
    """A text, or each of a list, without network tags."""
    if isinstance(text, str):
        return split_network_tags(text)[0]
    return None if text is None else [split_network_tags(each)[0] for each in text]


def whole_call(blocks: Any, components: Any, state: Any, run: Any) -> tuple[Any, Any]:
    """A call of a whole set of blocks: everything that cannot be drawn as asked is refused before any work.

    run: the set's own `__call__`, which runs its blocks one after the other.
    """
    block_state = blocks.get_block_state(state)
    pipe, given = ModularModels(components, blocks), call_arguments_of(block_state)
    if given["prompt"] is None:
        given |= {name: getattr(block_state, name, None) for name in EMBED_NAMES}
    request = request_of(pipe, given)
    changes = request.changes_models or runs_unet_otherwise(request.first)
    with blocks_together(pipe, state, given["lora_backend"], request=request, changes=changes):
        components, state = run(components, state)
    for name in ("prompt", "prompt_2"):  # with their tags again
        state.set(name, given[name])
    return components, state
