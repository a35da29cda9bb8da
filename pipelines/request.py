"""What one call asks for, with every name resolved: read from the arguments (arguments.py), never changed.

A pass can be made from another one: `replace(request, second=None, first=replace(request.first, steps=8))` draws the
same with 8 steps, without a call.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from .conditioning import Conditioning, SizeArguments
from .control.guidance import PassControl
from .control.units import ControlUnit
from .detailer_settings import Detailer, DetailerPlan
from .images.detail.boxes import Detection
from .images.detail.jobs import DetailTexts
from .images.hires import HiresTarget
from .images.init_image import InitArguments, InitPictures
from .images.upscale import UpscalerModel
from .loras import LoraUse
from .prompt.encode import PromptEncoder
from .prompt.prompt_2 import SecondTexts
from .prompt.text_encoder import PromptSettings
from .sampling.denoiser import Guidance
from .sampling.discrete_schedule import NoiseTable
from .sampling.samplers import Sampler
from .script_settings import Loopback, SDUpscale, SkippedDrawing


@dataclass(frozen=True)
class NoiseRequest:
    """Where the noise of a batch comes from: seeds, one an image, or diffusers' generators where `seeds` is None."""

    seeds: Sequence[int] | None = None
    subseeds: Sequence[int] = ()
    subseed_strength: float = 0.0
    seed_resize: tuple[int, int] | None = None  # (width, height) in pixels
    source: str = "gpu"
    generator: Generator | list[Generator] | None = None
    device: torch.device = torch.device("cpu")  # where the latents are

    @property
    def bare(self) -> "NoiseRequest":
        """The same seeds without a variation."""
        return replace(self, subseed_strength=0.0, seed_resize=None)


@dataclass(frozen=True)
class StepArguments:
    """`timesteps`, `sigmas` and `denoising_end` of diffusers' calls, as given. A scheduler reads them."""

    timesteps: Sequence[int] | None = None  # instead of `num_inference_steps`
    sigmas: Sequence[float] | None = None  # the same
    denoising_end: float | None = None  # the share of the noise levels at which to stop, 0..1

    def count(self, steps: int) -> int:
        """How many steps are asked for; `steps` where neither list is given."""
        given = self.timesteps if self.timesteps is not None else self.sigmas
        return steps if given is None else len(given)


def prompt_evaluations(steps: int, sampler: Sampler | None) -> int:
    """Model evaluations that prompt editing counts with: twice the steps for two-evaluation samplers."""
    return steps * (2 if sampler is not None and sampler.second_order else 1)


@dataclass(frozen=True)
class Pass:
    """One pass over the latents of a batch."""

    prompts: list[str]  # one an image, without network tags
    negatives: list[str]
    written: list[str]  # the prompts as texts have them: with their tags, and those of `loras` behind
    loras: list[LoraUse]  # for the whole batch
    encoder: PromptEncoder | None  # knows the embeddings of `loras`; None: there are no text encoders
    sampler: Sampler | None  # None: the pipeline's scheduler does the stepping
    schedule: str | None  # label; "Automatic" is the sampler's own
    table: NoiseTable | None  # the model's noise levels, options applied; None: its scheduler knows none
    steps: int
    width: int  # of the latents, in pixels
    height: int
    cell: int  # pixels along one side of a latent cell: 8 but for tiny VAEs
    asked_size: tuple[int, int]  # (height, width) as asked for, not rounded to cells: what SDXL reads
    guidance: Guidance
    refines: bool = False  # whether the refiner takes over in this pass
    first_pass_evaluations: int | None = None  # hires only: the first pass's steps as prompts count them
    strength: float | None = None  # hires and img2img
    exact_steps: bool = True  # run `steps` steps whatever the strength
    noise_multiplier: float = 1.0  # of the noise put on the latents that a pass begins with
    seconds: SecondTexts | None = None  # for SDXL's second encoder, without network tags
    step_arguments: StepArguments = StepArguments()
    control: PassControl = PassControl()

    @property
    def prompt_steps(self) -> int:
        """Model evaluations that prompt editing counts with: twice the steps for two-evaluation samplers."""
        return prompt_evaluations(self.steps, self.sampler)

    @property
    def cells(self) -> tuple[int, int]:
        """(rows, columns) of the latents."""
        return self.height // self.cell, self.width // self.cell

    @property
    def batch_size(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class Enlargement:
    """Between the passes of hires fix."""

    target: HiresTarget
    label: str  # of the upscaler, as texts have it
    upscaler: UpscalerModel | str  # a model, or a filter's label
    scale: float | None = None  # these three as asked for
    size: tuple[int, int] | None = None
    steps: int = 0
    pipe: Any = None  # whose components draw the second pass; None: the call's own


@dataclass(frozen=True)
class InitRequest:
    """What img2img redraws."""

    arguments: InitArguments
    images: InitPictures  # brought to the job's size
    rows: Sequence[int]  # which of them each image of the batch begins with
    masked: bool
    generator: Generator | list[Generator] | None = None  # draws the VAE's encoding; None: torch's global one
    pictures: Sequence[Image.Image] = ()  # as given, flattened
    mask: Image.Image | None = None  # as given


class FaceRestoration(NamedTuple):
    """What `restore_faces` does to each image."""

    name: str
    restore: Callable[[np.ndarray], np.ndarray]  # of an 8-bit image (h, w, 3)

    def edit(self, pictures: list[Image.Image]) -> list[Image.Image]:
        """Each image with its faces restored."""
        return [Image.fromarray(self.restore(np.array(picture))) for picture in pictures]


@dataclass(frozen=True)
class DetailPass:
    """One active detailing pass, with every name resolved."""

    settings: Detailer
    find: Callable[[np.ndarray, int], Detection]  # in a picture (h, w, 3) uint8, which is that of image k
    sampler: Sampler | None  # None: the pipeline's scheduler does the stepping
    schedule: str | None
    steps: int
    guidance_scale: float
    noise_multiplier: float
    clip_skip: int | None  # layers counted as the webui does, 1 is the last; None: the job's
    faces: FaceRestoration | None
    pipe: Any  # whose components draw: the call's own, or one with another checkpoint or VAE


@dataclass(frozen=True)
class DetailRequest:
    """What is done to the finished pictures of a call."""

    plan: DetailerPlan
    passes: Sequence[DetailPass]
    texts: Sequence[DetailTexts]  # one an image
    size: tuple[int, int]  # (width, height) of the drawing job, before hires fix
    loras: Any = None  # the argument: for every job, beside the tags of its prompt
    backend: str = "webui"
    within: Image.Image | None = None  # "L": an inpainting of the whole picture that goes on around it
    changes_models: bool = False  # whether a pass has networks of its own


@dataclass(frozen=True)
class Request:
    """One call."""

    first: Pass
    noise: NoiseRequest
    options: Mapping[str, Any]  # all of WEBUI_OPTIONS, as they are in force
    prompt_settings: PromptSettings
    sizes: SizeArguments = SizeArguments()  # SDXL
    second: Pass | None = None  # hires fix
    enlargement: Enlargement | None = None  # what comes before it
    init: InitRequest | None = None  # img2img
    embeds: Conditioning | None = None  # stands for the prompts
    latents: Tensor | None = None  # noise of unit variance that stands for the first draw
    eta: float | None = None
    faces: FaceRestoration | None = None
    details: DetailRequest | None = None
    script: SDUpscale | Loopback | SkippedDrawing | None = None  # img2img: several jobs in place of one
    tiling: bool = False
    scheduler: Any = None  # the pipeline's when the call began: others may set another one since
    seeds: Sequence[int] = ()  # of each image, as far as one is known; also of generators
    units: Sequence[ControlUnit] = ()  # those of `control_units` that are enabled
    overlays: Sequence[np.ndarray] = ()  # (h, w, 4) each: what the module inpaint_only lays over finished images

    @property
    def changes_models(self) -> bool:
        """Whether others must not use the models meanwhile."""
        passes = [one for one in (self.first, self.second) if one is not None]
        scaled = any("scale" in (one.guidance.cross_attention_kwargs or {}) for one in passes)
        hooked = any(one.control.hooked for one in passes)  # it runs the UNet another way
        hooked = hooked or any(one.guidance.pag or one.guidance.freeu for one in passes)  # so do these
        tagged = self.details is not None and self.details.changes_models
        return self.tiling or scaled or hooked or tagged or any(one.loras for one in passes)

    @property
    def call_needs(self) -> dict[str, Any]:
        """Arguments of `own_call`."""
        return {"changes": self.changes_models, "others": self.other_pipes, "scheduler": self.scheduler}

    @property
    def other_pipes(self) -> list[Any]:
        """The pipelines that draw a part of it: with the checkpoint of the second pass, and of detailing passes."""
        second = [] if self.enlargement is None or self.enlargement.pipe is None else [self.enlargement.pipe]
        return second + ([] if self.details is None else [one.pipe for one in self.details.passes])
