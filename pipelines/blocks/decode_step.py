"""The block that ends: latents to images, and their texts."""

from typing import Any

import torch
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam

from ..drawn import request_drawn
from ..infotext.from_call import drawn_infotexts
from ..output import decoded_pixels, output_images
from .inputs import DECODE_INPUTS, input_params, output_params
from .models import ModularModels, networks_for_block, running_call
from .modular_api import component_specs
from .step import WebUIStep


class WebUIDecodeStep(WebUIStep):
    """Latents to images with the webui's rounding, and its texts."""

    @property
    def description(self) -> str:
        return (
            "Decodes latents to images: 8-bit values are cut off after a sampler of the webui, as there, and rounded "
            "after a scheduler, as in diffusers. Restores faces where asked for."
        )

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return component_specs("vae", "webui_files")

    @property
    def inputs(self) -> list[InputParam]:
        return input_params(DECODE_INPUTS, ("latents",), xl=self.is_xl)

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return output_params("images", "infotexts")

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        block_state = self.get_block_state(state)
        pipe, running = ModularModels(components, self), running_call(state)
        request = None if running is None else running.request
        block_state.images, block_state.infotexts = block_state.latents, []
        if block_state.output_type != "latent":
            with networks_for_block(pipe, state, "webui", [], tiled=block_state.tiling):
                pixels, _ = decoded_pixels(pipe, block_state.latents.float())
            edits = [] if request is None else [request.faces and request.faces.edit]
            truncates = block_state.sampler is not None
            block_state.images = output_images(pixels, block_state.output_type, truncates=truncates, edits=edits)
        if request is not None:
            block_state.infotexts = drawn_infotexts(request_drawn(pipe, request, *running.embeddings))
        self.set_block_state(state, block_state)
        return components, state
