"""WebUISDBlocks: the same blocks for Stable Diffusion 1.x and 2.x, for which diffusers has none of its own.

    pipe = WebUISDBlocks().init_pipeline("stable-diffusion-v1-5/stable-diffusion-v1-5")
    pipe.load_components(dtype=torch.float16)
    image = pipe(prompt="a (red:1.2) fox", seed=1, sampler="Euler a", output="images")[0]

The pipeline is a plain ModularPipeline, which has no class for these models. What diffusers' pipelines have beyond
blocks (a safety checker, IP-Adapters, its own `load_lora_weights`) is not there.
"""

from typing import Any

from diffusers.modular_pipelines.modular_pipeline import SequentialPipelineBlocks
from webui_diffusers.pipelines.blocks.decode_step import WebUIDecodeStep
from webui_diffusers.pipelines.blocks.denoise_steps import WebUIDenoiseStep, WebUIHiresStep
from webui_diffusers.pipelines.blocks.inputs import EMBED_NAMES
from webui_diffusers.pipelines.blocks.modular_api import TESTED_DIFFUSERS
from webui_diffusers.pipelines.blocks.text_step import WebUITextEncoderStep
from webui_diffusers.pipelines.blocks.whole import WebUILoraStep, whole_call


class WebUISDTextEncoderStep(WebUITextEncoderStep):
    """Prompts to conditioning, with one text encoder."""

    model_name = None
    is_xl = False
    text_components = ("text_encoder", "tokenizer")
    embed_names = EMBED_NAMES[:2]


class WebUISDDenoiseStep(WebUIDenoiseStep):
    """Noise to latents."""

    model_name = None
    is_xl = False
    embed_names = EMBED_NAMES[:2]


class WebUISDHiresStep(WebUIHiresStep):
    """Hires fix."""

    model_name = None
    is_xl = False
    text_components = ("text_encoder", "tokenizer")


class WebUISDDecodeStep(WebUIDecodeStep):
    """Latents to images."""

    model_name = None
    is_xl = False


class WebUISDLoraStep(WebUILoraStep):
    """Networks around other blocks."""

    model_name = None
    is_xl = False


class WebUISDBlocks(SequentialPipelineBlocks):
    """The whole: networks, text encoder, denoise, hires fix, decode."""

    model_name = None
    _requirements = {"diffusers": TESTED_DIFFUSERS}
    block_classes = [
        WebUISDLoraStep,
        WebUISDTextEncoderStep,
        WebUISDDenoiseStep,
        WebUISDHiresStep,
        WebUISDDecodeStep,
    ]
    block_names = ["lora", "text_encoder", "denoise", "hires", "decode"]

    @property
    def description(self) -> str:
        return (
            "Draws with Stable Diffusion 1.x and 2.x what the webui's txt2img tab draws: its prompts, networks, "
            "samplers, schedules, noise and hires fix. Guidance is the guider's, 7.5 unless set; `guidance_scale` "
            "sets it for one call."
        )

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        return whole_call(self, components, state, super().__call__)
