"""The configuration folders of the known base models, without their weights.

    sd1            Stable Diffusion 1.x         sd2            Stable Diffusion 2.x, 512 (eps) and 768 (v)
    sdxl           Stable Diffusion XL base     sdxl-refiner   Stable Diffusion XL refiner

The numbers are those published with the models (Hub repositories stable-diffusion-v1-5/stable-diffusion-v1-5,
stabilityai/stable-diffusion-2-base, -2-1, -xl-base-1.0, -xl-refiner-1.0). They are tables here and become a folder,
as diffusers' `from_single_file(..., config=folder)` wants it, in the user's cache; the tokenizer's two files are
built from one list of merges, once.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import huggingface_hub  # its names load when asked for

from ..data_files import package_file
from ..utils import atomic_write, cache_folder


def model_config_folder(
    base: str, *, prediction_type: str | None = None, unet_channels: int = 4, scheduler: Mapping[str, object] = {}
) -> Path:
    """A folder with model_index.json, the components' configurations and the tokenizers of `base`.

    prediction_type: "epsilon" or "v_prediction"; None is the base's own (for sd2: v). unet_channels: 4, or 9 for
    inpainting. scheduler: further entries of its configuration. Equal arguments give the same folder, made once.
    Raises ValueError for an unknown base or prediction type, OSError when there is nowhere to write.
    """
    files = model_config_files(base, prediction_type=prediction_type, unet_channels=unet_channels, scheduler=scheduler)
    texts = {name: json.dumps(content, indent=2, sort_keys=True) + "\n" for name, content in files.items()}
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()[:12]
    try:
        return _written_folder(cache_folder() / "configs" / f"{base}-{digest}", texts)
    except OSError:  # a home that cannot be written: for as long as the system keeps its temporary files
        return _written_folder(Path(tempfile.gettempdir()) / f"webui-diffusers-{os.getpid()}-{base}-{digest}", texts)


def model_config_files(
    base: str, *, prediction_type: str | None = None, unet_channels: int = 4, scheduler: Mapping[str, object] = {}
) -> dict[str, dict[str, object]]:
    """The content of such a folder: relative path -> JSON table, tokenizer vocabulary left out. Arguments as above."""
    if base not in MODEL_BASES:
        raise ValueError(f"`base` must be one of {', '.join(MODEL_BASES)}; got {base!r}.")
    known = MODEL_BASES[base]
    prediction_type = prediction_type or str(known["prediction_type"])
    if prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(f"`prediction_type` must be 'epsilon' or 'v_prediction'; got {prediction_type!r}.")
    unet = {**_UNET, **known["unet"], "in_channels": unet_channels}
    if base == "sd2" and prediction_type == "v_prediction":
        unet |= {"sample_size": 96, "upcast_attention": True}
    schedule = {**_TRAINED_BETAS, **known["scheduler"], "prediction_type": prediction_type, **scheduler}
    files: dict[str, dict[str, object]] = {
        "unet/config.json": unet,
        "vae/config.json": {**SD_VAE_CONFIG, **known["vae"]},
        "scheduler/scheduler_config.json": schedule,
    }
    index: dict[str, object] = {**known["index"], "scheduler": ["diffusers", schedule["_class_name"]]}
    index |= {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    for suffix, encoder, pad in known["text"]:
        files[f"text_encoder{suffix}/config.json"] = {**_CLIP_TEXT, **encoder}
        files[f"tokenizer{suffix}/tokenizer_config.json"] = {**_CLIP_TOKENIZER, "pad_token": pad}
        index[f"text_encoder{suffix}"] = ["transformers", encoder["architectures"][0]]
        index[f"tokenizer{suffix}"] = ["transformers", "CLIPTokenizer"]
    return {"model_index.json": index, **files}


def clip_tokenizer_files() -> dict[str, str]:
    """vocab.json and merges.txt of CLIP's tokenizer, as text.

    The vocabulary is the 256 bytes as printable characters, the same at a word's end, the merges, and two marks:
    49408 entries (OpenAI CLIP, clip/simple_tokenizer.py, MIT).
    """
    merges = _clip_merges_file().read_text(encoding="utf-8")
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(rest))]
    pairs = ["".join(line.split()) for line in merges.splitlines()[1:] if line]
    words = [*letters, *(letter + "</w>" for letter in letters), *pairs, "<|startoftext|>", "<|endoftext|>"]
    vocabulary = json.dumps({word: number for number, word in enumerate(words)}, ensure_ascii=False)
    return {"vocab.json": vocabulary, "merges.txt": merges}


def _clip_merges_file() -> Path:
    """The one that comes with this code; for a bundle that is nowhere on the Hub, OpenAI's."""
    try:
        return package_file("configs/clip/merges.txt")
    except FileNotFoundError:
        return Path(huggingface_hub.hf_hub_download("openai/clip-vit-large-patch14", "merges.txt"))


def _written_folder(folder: Path, texts: Mapping[str, str]) -> Path:
    """The folder with these files, and with those of its tokenizers. Each file is whole as soon as it is there and is
    never taken away: other processes make the same folder, or read from it, at the same time."""
    tokenizers = [name.rpartition("/")[0] for name in texts if name.endswith("tokenizer_config.json")]
    names = [*texts, *(f"{place}/{part}" for place in tokenizers for part in ("vocab.json", "merges.txt"))]
    missing = [name for name in names if not (folder / name).is_file()]
    words = clip_tokenizer_files() if any(name not in texts for name in missing) else {}
    for name in missing:
        content = texts[name] if name in texts else words[name.rpartition("/")[2]]
        try:
            with atomic_write(folder / name) as aside:
                aside.write_text(content, encoding="utf-8", newline="\n")
        except OSError:
            if not (folder / name).is_file():  # another process may have been faster
                raise
    return folder


_CLIP_TOKENIZER = {
    "tokenizer_class": "CLIPTokenizer",
    "model_max_length": 77,
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "add_prefix_space": False,
    "do_lower_case": True,
    "errors": "replace",
}

_CLIP_TEXT = {
    "model_type": "clip_text_model",
    "attention_dropout": 0.0,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 1,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
}

_CLIP_L = {
    "architectures": ["CLIPTextModel"],
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
}

_OPENCLIP_H = {  # 23 of 24 layers: the model reads the last but one
    "architectures": ["CLIPTextModel"],
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
}

_OPENCLIP_BIGG = {
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}

SD_VAE_CONFIG = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}

_UNET = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "center_input_sample": False,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "only_cross_attention": False,
    "out_channels": 4,
    "sample_size": 64,
    "upcast_attention": False,
    "use_linear_projection": False,
}

_UNET_SD = {
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}

_UNET_XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "sample_size": 128,
    "use_linear_projection": True,
}

_TRAINED_BETAS = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "trained_betas": None,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}

_PNDM = {"_class_name": "PNDMScheduler", "set_alpha_to_one": False, "skip_prk_steps": True}
_EULER = {"_class_name": "EulerDiscreteScheduler", "interpolation_type": "linear", "use_karras_sigmas": False}

_SD_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
}

_XL_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": True,
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
}

_REFINER_INDEX = {
    "_class_name": "StableDiffusionXLImg2ImgPipeline",
    "force_zeros_for_empty_prompt": False,
    "requires_aesthetics_score": True,
    "text_encoder": [None, None],
    "tokenizer": [None, None],
}

# text: component suffix, text encoder, what fills a prompt up to 77 tokens
MODEL_BASES: dict[str, dict] = {
    "sd1": {
        "prediction_type": "epsilon",
        "index": _SD_INDEX,
        "unet": {**_UNET_SD, "attention_head_dim": 8, "cross_attention_dim": 768},
        "vae": {"sample_size": 512},
        "scheduler": _PNDM,
        "text": [("", _CLIP_L, "<|endoftext|>")],
    },
    "sd2": {
        "prediction_type": "v_prediction",
        "index": _SD_INDEX,
        "unet": {
            **_UNET_SD,
            "attention_head_dim": [5, 10, 20, 20],
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
        },
        "vae": {"sample_size": 768},
        "scheduler": _PNDM,
        "text": [("", _OPENCLIP_H, "!")],
    },
    "sdxl": {
        "prediction_type": "epsilon",
        "index": _XL_INDEX,
        "unet": {
            **_UNET_XL,
            "attention_head_dim": [5, 10, 20],
            "block_out_channels": [320, 640, 1280],
            "cross_attention_dim": 2048,
            "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
            "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
            "projection_class_embeddings_input_dim": 2816,
            "transformer_layers_per_block": [1, 2, 10],
        },
        "vae": {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        "scheduler": _EULER,
        "text": [("", _CLIP_L, "<|endoftext|>"), ("_2", _OPENCLIP_BIGG, "!")],
    },
    "sdxl-refiner": {
        "prediction_type": "epsilon",
        "index": {**_XL_INDEX, **_REFINER_INDEX},
        "unet": {
            **_UNET_XL,
            "attention_head_dim": [6, 12, 24, 24],
            "block_out_channels": [384, 768, 1536, 1536],
            "cross_attention_dim": 1280,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "projection_class_embeddings_input_dim": 2560,
            "transformer_layers_per_block": 4,
        },
        "vae": {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        "scheduler": _EULER,
        "text": [("_2", _OPENCLIP_BIGG, "!")],
    },
}
