"""A model folder of real classes at tiny size with random weights, for trying a pipeline: it draws noise, fast."""

import sys
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from webui_diffusers.loaders.checkpoint.configs import clip_tokenizer_files


def save_tiny_model(folder: Path, *, xl: bool = False) -> Path:
    """Write a folder of StableDiffusionPipeline (with `xl`: StableDiffusionXLPipeline) for 64x64 pixels; its path."""
    for name, text in clip_tokenizer_files().items():
        (folder / "vocabulary").mkdir(parents=True, exist_ok=True)
        (folder / "vocabulary" / name).write_text(text, encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "vocabulary", model_max_length=77)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = {
            "unet": _tiny_unet(64 if xl else 32, xl),
            "vae": AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(8, 16, 16, 16),
                norm_num_groups=8,
                sample_size=64,
            ),
            "text_encoder": _shifted(CLIPTextModel(_tiny_text())),
            "tokenizer": tokenizer,
            "scheduler": PNDMScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
            ),
        }
        if xl:
            second = _shifted(CLIPTextModelWithProjection(_tiny_text()))
            pipe = StableDiffusionXLPipeline(**parts, text_encoder_2=second, tokenizer_2=tokenizer)
        else:
            nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
            pipe = StableDiffusionPipeline(**parts, **nothing)
    pipe.save_pretrained(folder)
    return folder


def _tiny_unet(context: int, xl: bool) -> UNet2DConditionModel:
    size_input = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        cross_attention_dim=context,
        **(size_input | {"projection_class_embeddings_input_dim": 6 * 8 + 32} if xl else {}),
    )


def _shifted(encoder: torch.nn.Module) -> torch.nn.Module:
    """A new encoder's states are 0 on average, and the webui divides by their average."""
    for name, weights in encoder.named_parameters():
        if name.endswith("final_layer_norm.bias"):
            torch.nn.init.constant_(weights, 0.1)
    return encoder


def _tiny_text() -> CLIPTextConfig:
    marks = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return CLIPTextConfig(**marks, **sizes, projection_dim=32)


if __name__ == "__main__":
    save_tiny_model(Path(sys.argv[1]), xl="--xl" in sys.argv)
