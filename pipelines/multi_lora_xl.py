"""MultiLoraXLPipeline: diffusers' own, with every Kohya and LyCORIS file, mixed per image."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Generator, Tensor
from webui_diffusers.pipelines.bundle.saving import SavedWithCode
from webui_diffusers.pipelines.call_state import CallState, encoding_alone
from webui_diffusers.pipelines.lora_methods import LoraMethods
from webui_diffusers.pipelines.loras import draw_with_networks


class MultiLoraXLPipeline(CallState, LoraMethods, SavedWithCode, StableDiffusionXLPipeline):
    """StableDiffusionXLPipeline with networks by name, in prompts and in `loras`: one mix for each image of a batch.

    Everything StableDiffusionXLPipeline does works the same. Networks act through PEFT by default, beside the adapters
    that are active, and are off after the call; `lora_backend="webui"` or "reference" merges them into the weights.

    >>> pipe = MultiLoraXLPipeline.from_pretrained("stabilityai/stable-diffusion-xl-base-1.0")
    >>> pipe.lora_folder = "models/Lora"
    >>> pipe("a fox <lora:ink:0.8>").images[0]
    >>> pipe(["a fox"] * 3, loras=[{"ink": 0.8}, None, [("ink", 0.5), ("snow", 1.0, 0.7)]]).images
    """

    encode_prompt = encoding_alone(StableDiffusionXLPipeline.encode_prompt)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        denoising_end: float | None = None,
        guidance_scale: float = 5.0,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: Generator | list[Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: list[Tensor] | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] = (0, 0),
        target_size: tuple[int, int] | None = None,
        negative_original_size: tuple[int, int] | None = None,
        negative_crops_coords_top_left: tuple[int, int] = (0, 0),
        negative_target_size: tuple[int, int] | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        loras: Mapping[str, float] | Sequence | None = None,
        lora_backend: str = "peft",
        **kwargs: Any,
    ) -> Any:
        """Generate images. All arguments but two are StableDiffusionXLPipeline's and mean what they mean there.

        Args:
            prompt: `<lora:name:te:unet>` in a prompt holds for that prompt's images; its own networks come first.
            loras: {name or path: weight} or [(name or path, te, unet[, dyn][, blocks])] for all images, or a list of
                such, one for every image of the batch (or for every prompt), None for an image without.
            lora_backend: "peft" (adapters, exact or refused), "webui" or "reference" (merged by those rules, in groups
                of equal mixes; the only way for DoRA, OFT, IA3, GLoRA and norms at any strength).

        Raises:
            NetworkError, ValueError: for a network that is unknown, broken, for another base model, or beyond what
                `lora_backend` holds exactly; nothing is changed then.
        """
        given = {name: value for name, value in locals().items() if name not in _NOT_OF_DIFFUSERS_SDXL}
        output, self._network_reports = draw_with_networks(
            self, StableDiffusionXLPipeline.__call__, {**given, **kwargs}, self.networks, loras, lora_backend
        )
        return output


_NOT_OF_DIFFUSERS_SDXL = ("self", "kwargs", "__class__", "loras", "lora_backend")
