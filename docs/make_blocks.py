"""The README's sheet of blocks: one call of a ModularPipeline under three guiders of diffusers, two prompts.

python docs/make_blocks.py
"""

from pathlib import Path

import torch
from diffusers import AdaptiveProjectedGuidance, ClassifierFreeGuidance, LayerSkipConfig, PerturbedAttentionGuidance
from PIL import Image
from webui_diffusers.pipelines.blocks import WebUISDBlocks


DEMO = Path(__file__).parents[1] / "demo" / "model"
PROMPTS = ("a [panda:robot:0.3], white background", "a (red:1.3) heart, white background")
ATTENTION = ("down_blocks.1", "down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.1")


def guiders() -> list:
    """Plain guidance and adaptive projected guidance at a high scale, and perturbed attention guidance."""
    layers = [
        LayerSkipConfig(
            indices=[0],
            fqn=f"{block}.attentions.0.transformer_blocks",
            skip_attention=False,
            skip_attention_scores=True,
            skip_ff=False,
        )
        for block in ATTENTION
    ]
    perturbed = {"perturbed_guidance_config": layers, "perturbed_guidance_start": 0.0, "perturbed_guidance_stop": 1.0}
    return [
        ClassifierFreeGuidance(guidance_scale=12.0),
        AdaptiveProjectedGuidance(guidance_scale=12.0, adaptive_projected_guidance_rescale=2.0),
        PerturbedAttentionGuidance(guidance_scale=3.0, perturbed_guidance_scale=3.0, **perturbed),
    ]


def main() -> None:
    pipe = WebUISDBlocks().init_pipeline(str(DEMO))
    pipe.load_components(dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    drawn = []
    for guider in guiders():
        pipe.update_components(guider=guider)
        for prompt in PROMPTS:
            call = {"seed": 7, "sampler": "DPM++ 2M", "num_inference_steps": 16}
            drawn += pipe(prompt=prompt, **call, output="images")
    side = drawn[0].width
    sheet = Image.new("RGB", (side * len(drawn), side), "white")
    for i, picture in enumerate(drawn):
        sheet.paste(picture, (i * side, 0))
    sheet.save(Path(__file__).parent / "pictures" / "blocks.jpg", quality=88)


if __name__ == "__main__":
    main()
