"""What the single blocks have in common."""

from diffusers.modular_pipelines.modular_pipeline import LoopSequentialPipelineBlocks

from .modular_api import TESTED_DIFFUSERS, SingleBlock


class WebUIStep(SingleBlock):
    """What the single blocks have in common."""

    model_name: str | None = "stable-diffusion-xl"
    is_xl = True
    _requirements = {"diffusers": TESTED_DIFFUSERS}
    progress_bar = LoopSequentialPipelineBlocks.progress_bar
    set_progress_bar_config = LoopSequentialPipelineBlocks.set_progress_bar_config
