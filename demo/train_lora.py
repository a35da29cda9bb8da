"""Stage 3: a style as a LoRA on UNet and text encoder, written as Kohya's sd-scripts write it."""

import hashlib
import json
import math
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save, save_file
from torch import Tensor, nn
from train_common import Recipe, fit
from train_subjects import SUBJECTS
from train_text import caption_ids
from train_unet import CaptionedLatents, build_noise_schedule, noise_loss
from transformers import CLIPTextModel, CLIPTokenizer


RANK, ALPHA = 8, 4.0
"""Of linear layers and 1x1 convolutions. Alpha differs from the rank, so that a missing scale is seen."""

CONV_RANK, CONV_ALPHA = 4, 2.0
"""Of 3x3 convolutions (sd-scripts' conv_dim and conv_alpha)."""

BATCH = 8
LEARNING_RATE = 2e-3


_PASSED_OVER = "up_blocks.0.upsamplers.0.conv"


class LoraPair(nn.Module):
    """The low-rank change of one layer: up(down(x)) * alpha / rank, added to what the layer gives."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        if isinstance(layer, nn.Linear):
            rank, alpha = RANK, ALPHA
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        else:
            rank, alpha = (RANK, ALPHA) if layer.kernel_size == (1, 1) else (CONV_RANK, CONV_ALPHA)
            shape = {"kernel_size": layer.kernel_size, "stride": layer.stride, "padding": layer.padding}
            self.down = nn.Conv2d(layer.in_channels, rank, bias=False, **shape)
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)
        self.alpha, self.scale = alpha, alpha / rank

    def attach(self, layer: nn.Module) -> None:
        """Add this change to what `layer` gives, for as long as the layer lives."""
        layer.register_forward_hook(lambda _, inputs, output: output + self.up(self.down(inputs[0])) * self.scale)


def lora_layers(unet: UNet2DConditionModel, encoder: CLIPTextModel) -> dict[str, nn.Module]:
    """Kohya's name -> layer: attention blocks and resnets of the UNet, attention and MLP of the text encoder.

    Without the first up-sampler: where the first up block has attention, as here, the webui passes it over.
    """
    layers = {}
    for path, layer in unet.named_modules():
        inside = any(part in path for part in ("attentions.", "resnets.", "samplers."))
        if inside and path != _PASSED_OVER and isinstance(layer, nn.Linear | nn.Conv2d):
            layers["lora_unet_" + path.replace(".", "_")] = layer
    for path, layer in encoder.named_modules():
        if isinstance(layer, nn.Linear) and "encoder.layers." in path:
            inner = path.removeprefix("text_model.").replace(".", "_")
            layers["lora_te_text_model_" + inner] = layer
    return layers


def train_lora(
    data: CaptionedLatents,
    unet: UNet2DConditionModel,
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    folder: Path,
    steps: int,
    seed: int = 2,
) -> dict[str, Tensor]:
    """Train (or go on) for `steps` steps; returns the file's tensors. The two models keep the LoRA attached."""
    torch.manual_seed(seed)
    layers = lora_layers(unet, encoder)
    pairs = nn.ModuleDict({name: LoraPair(layer) for name, layer in layers.items()})
    for name, layer in layers.items():
        pairs[name].attach(layer)
    schedule = build_noise_schedule()

    def losses_at(step: int) -> dict[str, Tensor]:
        latents, captions = data.batch(np.random.default_rng((seed, step)), BATCH)
        text = encoder(caption_ids(tokenizer, captions)).last_hidden_state
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        return {"loss": noise_loss(unet, text, latents, schedule, generator)}

    recipe = Recipe(LEARNING_RATE, warmup=30, decay=0.98, save_every=100)
    fit({"lora": pairs}, pairs.parameters(), losses_at, folder, steps, recipe)
    tensors = {}
    for name, pair in pairs.items():
        tensors[f"{name}.lora_down.weight"] = pair.down.weight.detach()
        tensors[f"{name}.lora_up.weight"] = pair.up.weight.detach()
        tensors[f"{name}.alpha"] = torch.tensor(pair.alpha)
    return {name: tensor.half().contiguous() for name, tensor in tensors.items()}


def save_lora(tensors: dict[str, Tensor], file: Path, style: str, steps: int, seed: int = 2) -> None:
    """Write the file with the metadata of sd-scripts' networks.lora (all values are text)."""
    metadata = {
        "ss_output_name": file.stem,
        "ss_sd_model_name": "emoji",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(RANK),
        "ss_network_alpha": str(ALPHA),
        "ss_network_args": json.dumps({"conv_dim": str(CONV_RANK), "conv_alpha": str(CONV_ALPHA)}),
        "ss_learning_rate": str(LEARNING_RATE),
        "ss_lr_scheduler": "cosine",
        "ss_optimizer": "torch.optim.adamw.AdamW(betas=(0.9, 0.99))",
        "ss_max_train_steps": str(steps),
        "ss_steps": str(steps),
        "ss_seed": str(seed),
        "ss_min_snr_gamma": "5.0",
        "ss_resolution": "(128, 128)",
        "ss_batch_size_per_device": str(BATCH),
        "ss_num_train_images": str(len(SUBJECTS)),
        "ss_mixed_precision": "None",
        "ss_clip_skip": "None",
        "ss_training_comment": style,
        "ss_tag_frequency": json.dumps({f"1_{file.stem}": {names[0]: 1 for names in SUBJECTS.values()}}),
    }
    whole, legacy = _kohya_hashes(tensors, metadata)
    metadata |= {"sshs_model_hash": whole, "sshs_legacy_hash": legacy}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata)


def _kohya_hashes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> tuple[str, str]:
    """The two hashes of sd-scripts (Apache-2.0), library/train_util.py, precalculate_safetensors_hashes.

    Of the file as it is before the hashes are in it: SHA-256 of all after the header; and the first 8 digits of the
    SHA-256 of 64 KiB from 1 MiB on.
    """
    stream = BytesIO(save(tensors, metadata))
    content = stream.getvalue()
    header = int.from_bytes(content[:8], "little")
    return (
        hashlib.sha256(content[8 + header :]).hexdigest(),
        hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8],
    )
