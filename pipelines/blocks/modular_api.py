"""What the blocks take from Modular Diffusers, whose interface moves: which versions, base classes, components.

diffusers' command `custom_blocks` packs the first class of a file whose bases it knows by their names, and that shall
be the whole set of blocks; so the single ones derive from the same classes by other names.
"""

from diffusers import AutoencoderKL, ClassifierFreeGuidance, UNet2DConditionModel
from diffusers import __version__ as diffusers_version
from diffusers.configuration_utils import FrozenDict
from diffusers.models.modeling_utils import ModelMixin
from diffusers.modular_pipelines.modular_pipeline import ModularPipelineBlocks, SequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, ConfigSpec
from diffusers.schedulers import EulerDiscreteScheduler
from packaging.version import Version
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from .files import WebUIFiles


OLDEST_DIFFUSERS = "0.40"  # the first whose Modular Diffusers is not called experimental
TESTED_DIFFUSERS = f">={OLDEST_DIFFUSERS},<0.43"  # diffusers itself warns where another one loads the published blocks
GUIDER_SCALE = 7.5  # of diffusers' own blocks; SDXL's pipelines have 5.0


def check_diffusers(version: str) -> str:
    """The version. Raises ImportError for one whose Modular Diffusers is older than what the blocks are made for."""
    if Version(version) < Version(OLDEST_DIFFUSERS):
        raise ImportError(
            f"diffusers {version} is installed, and the blocks for Modular Diffusers need {OLDEST_DIFFUSERS} or "
            "newer: the interface was experimental before. Run `pip install -U diffusers`, or use "
            "WebUITxt2ImgPipeline, which draws the same."
        )
    return version


RUNNING_DIFFUSERS = check_diffusers(diffusers_version)  # before any class is derived from its blocks
SingleBlock = ModularPipelineBlocks
BlockSequence = SequentialPipelineBlocks


def config_specs(xl: bool) -> list[ConfigSpec]:
    """What the text block reads of a pipeline's configuration, as diffusers' own does."""
    zeros = "whether SDXL takes zeros for a negative prompt that is not given"
    return [ConfigSpec("force_zeros_for_empty_prompt", True, zeros)] if xl else []


def component_specs(*names: str) -> list[ComponentSpec]:
    """What blocks expect of a pipeline, by the names of diffusers' own components; three are ours.

    refiner: a UNet for the end of a pass. upscaler: a model for hires fix. webui_files: networks, embeddings and
    upscalers by name; it is made with the pipeline, as the guider is.
    """
    known = {
        "text_encoder": ComponentSpec("text_encoder", CLIPTextModel),
        "text_encoder_2": ComponentSpec("text_encoder_2", CLIPTextModelWithProjection),
        "tokenizer": ComponentSpec("tokenizer", CLIPTokenizer),
        "tokenizer_2": ComponentSpec("tokenizer_2", CLIPTokenizer),
        "unet": ComponentSpec("unet", UNet2DConditionModel),
        "vae": ComponentSpec("vae", AutoencoderKL),
        "scheduler": ComponentSpec("scheduler", EulerDiscreteScheduler),
        "refiner": ComponentSpec("refiner", UNet2DConditionModel, description="takes over at `refiner_switch_at`"),
        "upscaler": ComponentSpec("upscaler", ModelMixin, description="enlarges for hires fix"),
        "guider": ComponentSpec(
            "guider",
            ClassifierFreeGuidance,
            config=FrozenDict({"guidance_scale": GUIDER_SCALE}),
            default_creation_method="from_config",
        ),
        "webui_files": ComponentSpec(
            "webui_files",
            WebUIFiles,
            description="networks, embeddings and upscalers by name",
            config=FrozenDict({"lora_folder": None, "embeddings_folder": None}),
            default_creation_method="from_config",
        ),
    }
    return [known[name] for name in names]
