"""A modular pipeline's components as the rest of this pack reads a pipeline's, and what blocks of one call share."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from diffusers import ClassifierFreeGuidance
from torch import device as TorchDevice

from ..argument_values import check_values
from ..arguments import txt2img_request
from ..base import WebUIMixin
from ..call_state import CallState, own_call
from ..images.seamless import seamless_tiling
from ..images.vae import needs_float32
from ..loras import ActiveLoras, LoraUse, networks_on
from ..request import Pass, Request
from ..sampling.guider_denoiser import check_under_guider


_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "refiner", "upscaler")
_RUNNING = "webui_running_call"  # where a pipeline's state has the RunningCall


class HandedLoras(list):
    """The networks of a call in a pipeline's state, which copies what it holds: these are not copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "HandedLoras":
        return self


class ModularModels(CallState):
    """Made for one block's run. A component that the pipeline does not have is None."""

    keep_networks = False
    safety_checker = face_restorer = face_detector = face_parser = controlnet = None
    is_sdxl = WebUIMixin.is_sdxl
    networks = WebUIMixin.networks

    def __init__(self, modular: Any, block: Any):
        """modular: a ModularPipeline with `webui_files`; block: has its progress bar."""
        self.modular = modular
        self.progress_bar = getattr(block, "progress_bar", None)
        for name in _PARTS:
            setattr(self, name, getattr(modular, name, None))
        self.scheduler = deepcopy(getattr(modular, "scheduler", None))  # a pass leaves its timesteps there
        self.attached = modular.webui_files.attached
        if self.is_sdxl and self.vae is not None and self.vae.config.get("force_upcast"):
            needs_float32(self.vae)

    @property
    def components(self) -> dict[str, Any]:
        """The models by name."""
        return {name: getattr(self, name) for name in _PARTS}

    @property
    def config(self) -> SimpleNamespace:
        """Where the model came from, for texts, and how SDXL reads a negative prompt that is not given."""
        source = getattr(self.modular, "_pretrained_model_name_or_path", None)
        return SimpleNamespace(
            _name_or_path=source or getattr(self.unet.config, "_name_or_path", None),
            force_zeros_for_empty_prompt=self.modular.config.get("force_zeros_for_empty_prompt", True),
        )

    @property
    def vae_scale_factor(self) -> int:
        """Pixels along one side of a latent cell."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def _execution_device(self) -> TorchDevice:
        return self.modular._execution_device

    @property
    def guidance_scale(self) -> float:
        """That of the running pass."""
        return self._guidance_scale

    @property
    def interrupt(self) -> bool:
        """Whether the pass shall stop."""
        return self._interrupt

    def maybe_free_model_hooks(self) -> None:
        """Nothing: whoever put offloading hooks on a modular pipeline's components looks after them."""


@dataclass
class RunningCall:
    """One call of a set of blocks, while it runs."""

    networks: ActiveLoras
    request: Request | None = None  # what the whole set is asked for; None: each block reads its own inputs
    embeddings: list[tuple[str, ...]] = field(default_factory=list)  # textual inversions in use, by pass


def running_call(state: Any) -> RunningCall | None:
    """What encloses the block that runs; None where it runs by itself."""
    return state.get(_RUNNING)


@contextmanager
def blocks_together(
    pipe: ModularModels, state: Any, backend: str, *, request: Request | None = None, changes: bool = True
) -> Iterator[RunningCall]:
    """One call around several blocks: networks that are switched inside stay on until the end, then every weight is as
    before, whatever happens."""
    with own_call(pipe, changes=changes), networks_on(pipe, backend) as networks:
        running = RunningCall(networks, request)
        state.set(_RUNNING, running)
        try:
            yield running
        finally:
            state.values.pop(_RUNNING, None)


@contextmanager
def networks_for_block(
    pipe: ModularModels,
    state: Any,
    backend: str,
    loras: Sequence[LoraUse],
    plan: Pass | None = None,
    tiled: bool = False,
) -> Iterator[ActiveLoras]:
    """These networks on the models, and the padding that tiles, while one block works.

    plan: the pass that it runs, if it runs one.
    """
    running = running_call(state)
    with ExitStack() as around:
        if running is None:
            changes = bool(loras) or tiled or (plan is not None and runs_unet_otherwise(plan))
            around.enter_context(own_call(pipe, changes=changes))
            networks = around.enter_context(networks_on(pipe, backend))
        else:
            networks = running.networks
        padded = [model for model in (pipe.unet, pipe.vae) if tiled and model is not None]
        around.enter_context(seamless_tiling(*padded))
        pipe.modular.webui_files.reports = networks.switch(loras)
        yield networks


def runs_unet_otherwise(plan: Pass) -> bool:
    """Whether a pass changes how the UNet runs: by perturbed attention, FreeU, or a guider, which may hook into it."""
    return any(part is not None for part in (plan.guidance.guider, plan.guidance.pag, plan.guidance.freeu))


def request_of(pipe: ModularModels, given: dict[str, Any]) -> Request:
    """The request for a call's arguments, guided as the pipeline's guider says. Raises ValueError before any work."""
    check_values(given)
    guider, scale = pipe.modular.guider, given["guidance_scale"]
    if scale is not None and not hasattr(guider, "guidance_scale"):
        raise ValueError(
            f"`guidance_scale` is {scale}, and the guider {type(guider).__name__} has none. Leave it out."
        )
    scale = getattr(guider, "guidance_scale", 1.0) if scale is None else scale
    plain = is_plain_guidance(guider)
    rescale = given["guidance_rescale"]
    if rescale is None:
        rescale = guider.guidance_rescale if plain else 0.0
    request = txt2img_request(pipe, {**given, "guidance_scale": scale, "guidance_rescale": rescale})
    if plain:
        return request
    return replace(
        request,
        first=_under_guider(request.first, guider),
        second=request.second and _under_guider(request.second, guider),
    )


def is_plain_guidance(guider: Any) -> bool:
    """Whether a guider is nothing but a scale (and its rescaling), which the samplers' own arithmetic does."""
    if type(guider) is not ClassifierFreeGuidance or guider.use_original_formulation or not guider._enabled:
        return False
    return (guider.config.start, guider.config.stop) == (0.0, 1.0)


def _under_guider(plan: Pass, guider: Any) -> Pass:
    """A pass under a copy of the guider, since guiders keep what they know of a pass in themselves."""
    own = copy(guider)
    if hasattr(own, "guidance_scale"):
        own.guidance_scale = plan.guidance.guidance_scale
    guidance = replace(plan.guidance, guider=own, do_classifier_free_guidance=True)
    check_under_guider(guidance, 1.0 if plan.sampler is None else plan.sampler.guidance_divisor)
    return replace(plan, guidance=guidance)


def block_without(modular: Any, component: str, value: str) -> str:
    """The name of the first block of a pipeline that runs the model `component` and does not read `value`; else ""."""
    for block in _single_blocks(modular.blocks):
        runs = component in block.component_names
        if component == "unet":  # others only look at its configuration
            runs = runs and any(param.kwargs_type == "denoiser_input_fields" for param in block.inputs)
        if runs and value not in block.input_names:
            return type(block).__name__
    return ""


def refuse_block_without(modular: Any, component: str, value: str, what: str) -> None:
    """Raises ValueError where a block of the pipeline would draw without `what`, because it does not read `value`."""
    name = block_without(modular, component, value)
    if name:
        raise ValueError(
            f"The prompts or `loras` ask for {what}, and `{name}` in this pipeline cannot read them: it would draw as "
            "if they were not there. Put this pack's block in its place, or leave them out; networks also hold for "
            "any block inside a `WebUILoraStep.from_blocks_dict({...})`."
        )


def _single_blocks(block: Any) -> list[Any]:
    if not block.sub_blocks:
        return [block]
    return [single for inner in block.sub_blocks.values() for single in _single_blocks(inner)]
