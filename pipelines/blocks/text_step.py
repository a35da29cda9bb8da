"""The text encoder block: prompts to conditioning."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, ConfigSpec, InputParam, OutputParam

from ...loaders.lora.peft_inject import scaled_adapters
from ..argument_values import check_clip_skip, check_values
from ..checks import prompt_list
from ..conditioning import Conditioning
from ..loras import LoraUse
from ..options import webui_settings
from ..prompt.encode import PromptEncoder, single_encodings
from ..prompt.prompt_2 import SecondTexts
from ..prompt.text_encoder import PromptSettings
from ..request import Request, StepArguments, prompt_evaluations
from ..sampling.samplers import resolve_sampler
from ..texts import pass_texts, prompt_encoder, prompt_settings
from .inputs import EMBED_NAMES, TEXT_INPUTS, TEXT_STEP_INPUTS, call_arguments_of, input_params, output_params
from .models import HandedLoras, ModularModels, networks_for_block, refuse_block_without, running_call
from .modular_api import component_specs, config_specs
from .step import WebUIStep


class TextJob(NamedTuple):
    """What a text encoder block encodes; lists have one entry a prompt."""

    prompts: list[str]
    negatives: list[str]
    evaluations: int  # of the model in the pass, which prompt editing counts with
    loras: Sequence[LoraUse]
    encoder: PromptEncoder
    settings: PromptSettings
    pad: bool
    seconds: SecondTexts | None

    def conditioning(self) -> Conditioning:
        """The texts encoded."""
        return self.encoder.conditioning(
            self.prompts,
            self.negatives,
            self.evaluations,
            settings=self.settings,
            pad=self.pad,
            seconds=self.seconds,
        )


def asked_text_job(pipe: ModularModels, given: dict[str, Any], loras: Sequence[LoraUse] | None) -> TextJob:
    """Of a block's own inputs. loras: those of a block before; None: the prompts' tags and `loras`."""
    check_values(given)
    check_clip_skip(given["clip_skip"], pipe.text_encoder)
    options = webui_settings(given["webui_options"])
    prompts, negatives = prompt_list(given["prompt"], given["negative_prompt"], 1)
    texts = pass_texts(pipe, given if loras is None else {**given, "loras": None}, prompts)
    loras = texts.loras if loras is None else loras
    sampler = None if given["sampler"] is None else resolve_sampler(given["sampler"], None)[0]
    asked = StepArguments(given["timesteps"], given["sigmas"])
    evaluations = prompt_evaluations(asked.count(given["num_inference_steps"]), sampler)
    settings = prompt_settings(options, given["clip_skip"])
    encoder = prompt_encoder(pipe, given, loras)
    encoder.check(texts.prompts, negatives, evaluations, settings, texts.seconds)
    pad = bool(options["pad_cond_uncond"])
    return TextJob(texts.prompts, negatives, evaluations, loras, encoder, settings, pad, texts.seconds)


def requested_text_job(request: Request, each: int) -> TextJob:
    """Of the first pass of a whole call. each: images of a prompt."""
    plan = request.first
    seconds = plan.seconds and tuple(texts and texts[::each] for texts in plan.seconds)
    pad = bool(request.options["pad_cond_uncond"])
    texts = plan.prompts[::each], plan.negatives[::each]
    return TextJob(*texts, plan.prompt_steps, plan.loras, plan.encoder, request.prompt_settings, pad, seconds)


class WebUITextEncoderStep(WebUIStep):
    """Prompts to conditioning, in place of diffusers' text encoder block."""

    text_components: tuple[str, ...] = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    embed_names: tuple[str, ...] = EMBED_NAMES

    @property
    def description(self) -> str:
        return (
            "Encodes prompts as the webui does: emphasis, prompt editing, alternation, AND, BREAK, chunks of 75 "
            "tokens, clip skip, textual inversions, network tags. `webui_conditioning` is for WebUIDenoiseStep; "
            "embeddings for other denoise blocks are there where each prompt has one encoding, else None."
        )

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return component_specs(*self.text_components, "webui_files")

    @property
    def expected_configs(self) -> list[ConfigSpec]:
        return config_specs(self.is_xl)

    @property
    def inputs(self) -> list[InputParam]:
        return input_params((*TEXT_INPUTS, *TEXT_STEP_INPUTS), ("webui_loras",), xl=self.is_xl)

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return output_params(*self.embed_names, "webui_conditioning", "webui_loras")

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        block_state = self.get_block_state(state)
        pipe, given, running = ModularModels(components, self), call_arguments_of(block_state), running_call(state)
        if running is None or running.request is None:
            job = asked_text_job(pipe, given, block_state.webui_loras)
        else:
            job = requested_text_job(running.request, state.get("num_images_per_prompt") or 1)
        if running is None and job.loras:
            refuse_block_without(components, "unet", "webui_loras", "networks")
        scale = (given["cross_attention_kwargs"] or {}).get("scale", 1.0)
        with networks_for_block(pipe, state, given["lora_backend"], job.loras):
            with scaled_adapters([each.model for each in job.encoder.encoders], scale):
                found = job.conditioning()
                single = all(single_encodings(found))
                embeds = job.encoder.stacked(found, job.settings) if single else {}
        if not single:
            refuse_block_without(components, "unet", "webui_conditioning", "edits, AND and weights of whole prompts")
        model = job.encoder.encoders[-1].model
        for name in self.embed_names:
            tensor = embeds.get(name)
            setattr(
                block_state, name, None if tensor is None else tensor.to(components._execution_device, model.dtype)
            )
        block_state.webui_conditioning, block_state.webui_loras = found, HandedLoras(job.loras)
        self.set_block_state(state, block_state)
        return components, state
