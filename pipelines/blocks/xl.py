"""WebUIXLBlocks: the webui's txt2img tab for SDXL as blocks of Modular Diffusers, and each of its parts alone.

    blocks = WebUIXLBlocks()
    pipe = blocks.init_pipeline("stabilityai/stable-diffusion-xl-base-1.0")
    pipe.load_components(dtype=torch.float16)
    image = pipe(prompt="a (red:1.2) fox", seed=1, sampler="Euler a", guidance_scale=5.0, output="images")[0]

It draws what WebUITxt2ImgPipeline draws with the same arguments. Without `guidance_scale` the guider guides: its 7.5
is another guidance than the 5.0 of SDXL's pipelines.
"""

from typing import Any

from diffusers.modular_pipelines.modular_pipeline import SequentialPipelineBlocks
from webui_diffusers.pipelines.blocks.decode_step import WebUIDecodeStep
from webui_diffusers.pipelines.blocks.denoise_steps import WebUIDenoiseStep, WebUIHiresStep
from webui_diffusers.pipelines.blocks.modular_api import TESTED_DIFFUSERS
from webui_diffusers.pipelines.blocks.text_step import WebUITextEncoderStep
from webui_diffusers.pipelines.blocks.whole import WebUILoraStep, whole_call


class WebUIXLBlocks(SequentialPipelineBlocks):
    """The whole: networks, text encoder, denoise, hires fix, decode."""

    model_name = "stable-diffusion-xl"
    _requirements = {"diffusers": TESTED_DIFFUSERS}
    block_classes = [WebUILoraStep, WebUITextEncoderStep, WebUIDenoiseStep, WebUIHiresStep, WebUIDecodeStep]
    block_names = ["lora", "text_encoder", "denoise", "hires", "decode"]

    @property
    def description(self) -> str:
        return (
            "Draws with SDXL what the webui's txt2img tab draws: its prompts, networks, samplers, schedules, noise, "
            "refiner and hires fix. Guidance is the guider's, 7.5 unless set, where SDXL's pipelines have 5.0; "
            "`guidance_scale` sets it for one call."
        )

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        return whole_call(self, components, state, super().__call__)
