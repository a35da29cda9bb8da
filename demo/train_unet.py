"""Stage 2: UNet and text encoder together, on cached latents of the captioned Noto drawings."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from tqdm import tqdm
from train_common import Recipe, fit
from train_data import caption, captioned_placement, place
from train_subjects import SUBJECTS
from train_text import WIDTH, caption_ids
from transformers import CLIPTextModel, CLIPTokenizer


BATCH = 16
LEARNING_RATE = 1e-3
NO_CAPTION = 0.1
"""Share of empty captions, for classifier-free guidance."""

SNR_CLAMP = 5.0
"""Min-SNR weighting (Hang et al. 2023, arXiv 2303.09556): steps with little noise count less."""


def build_unet() -> UNet2DConditionModel:
    """4.9 M parameters for 16x16 latents (128 px), cross attention at 8x8 and 4x4: at 16x16 it doubles the time."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 104, 112),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
    )


def build_noise_schedule() -> DDPMScheduler:
    """Stable Diffusion 1.x's betas; the model predicts the noise."""
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)


class CaptionedLatents:
    """Latents of every drawing of one style in some placements, with what a caption of each has to say."""

    def __init__(self, vae: AutoencoderKL, drawings: np.ndarray, file: Path, variants: int, seed: int = 0) -> None:
        """Read `file`, or encode all and write it."""
        if not file.exists():
            plan = [(number, icon, np.random.default_rng((seed, number))) for number, icon in enumerate(SUBJECTS)]
            placed = [(n, icon, *captioned_placement(rng)) for n, icon, rng in plan for _ in range(variants)]
            facts = [(icon, size_word, colour) for _, icon, _, size_word, colour in placed]
            pictures = (place(drawings[n], placement) for n, _, placement, _, _ in placed)
            torch.save({"facts": facts, "latents": _encoded(vae, pictures, len(placed))}, file)
        kept = torch.load(file, weights_only=True)
        self.facts: list[tuple[str, str, str]] = kept["facts"]
        self.latents: Tensor = kept["latents"]

    def batch(self, rng: np.random.Generator, count: int = BATCH) -> tuple[Tensor, list[str]]:
        """(count, 4, 16, 16) latents and their captions, a tenth of them empty."""
        rows = rng.integers(len(self.facts), size=count)
        captions = ["" if rng.random() < NO_CAPTION else caption(*self.facts[row], rng) for row in rows]
        return self.latents[torch.from_numpy(rows)], captions


@torch.no_grad()
def _encoded(vae: AutoencoderKL, pictures: Iterator[np.ndarray], total: int) -> Tensor:
    """(total, 4, 16, 16) scaled means."""
    means = []
    for start in tqdm(range(0, total, 16), desc="latents", mininterval=5):
        chunk = np.stack([next(pictures) for _ in range(min(16, total - start))])
        batch = torch.from_numpy(chunk).permute(0, 3, 1, 2).float() / 127.5 - 1
        means.append(vae.encode(batch).latent_dist.mean * vae.config.scaling_factor)
    return torch.cat(means)


def noise_loss(
    unet: UNet2DConditionModel,
    text: Tensor,
    latents: Tensor,
    schedule: DDPMScheduler,
    generator: torch.Generator,
    control: Callable[[Tensor, Tensor, Tensor], dict[str, object]] | None = None,
) -> Tensor:
    """Min-SNR weighted mean square error of the predicted noise at random times.

    `control(x, times, text)` gives further arguments of the UNet: a ControlNet's residuals.
    """
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    count = schedule.config.num_train_timesteps
    times = torch.randint(0, count, (len(latents),), generator=generator).to(latents.device)
    alpha_bar = schedule.alphas_cumprod.to(latents.device)[times]
    snr = alpha_bar / (1 - alpha_bar)
    x = schedule.add_noise(latents, noise, times)
    predicted = unet(x, times, text, **(control(x, times, text) if control else {})).sample
    return ((predicted - noise).square().mean((1, 2, 3)) * snr.clamp(max=SNR_CLAMP) / snr).mean()


def train_unet(
    data: CaptionedLatents,
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    folder: Path,
    steps: int,
    seed: int = 0,
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Train UNet and `encoder` (or go on) for `steps` steps; returns the averaged weights of both."""
    torch.manual_seed(seed)
    unet, schedule = build_unet(), build_noise_schedule()

    def losses_at(step: int) -> dict[str, Tensor]:
        latents, captions = data.batch(np.random.default_rng((seed, step)))
        text = encoder(caption_ids(tokenizer, captions)).last_hidden_state
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        return {"loss": noise_loss(unet, text, latents, schedule, generator)}

    parameters = [*unet.parameters(), *encoder.parameters()]
    recipe = Recipe(LEARNING_RATE, warmup=200)
    fit({"unet": unet, "text_encoder": encoder}, parameters, losses_at, folder, steps, recipe)
    return unet.eval().requires_grad_(False), encoder.eval().requires_grad_(False)
