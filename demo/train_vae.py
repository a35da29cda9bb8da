"""Stage 1: an AutoencoderKL (factor 8, 4 latent channels) for small flat drawings in three styles."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from train_common import Recipe, fit
from train_data import CROP, STYLES, captioned_placement, place, random_placement


BATCH = 8
LEARNING_RATE = 2e-3
KL_WEIGHT = 3e-4
LATENT_NOISE = 0.1
"""Noise added to latents, as a share of their standard deviation: a denoiser's latents are never exact."""

SCALING_FACTOR = 0.18215
"""Stable Diffusion 1.x's, so that code with the number built in works too."""


def build_vae() -> AutoencoderKL:
    """1.7 M parameters. Few norm groups: with one channel a group, normalising would wipe out a surface's colour."""
    return AutoencoderKL(
        sample_size=128,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 64, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )


def picture_batch(drawings: dict[str, np.ndarray], rng: np.random.Generator, count: int = BATCH) -> Tensor:
    """(count, 3, CROP, CROP) in [-1, 1]: half Noto, a quarter of each other style."""
    pictures = []
    for style in rng.choice(STYLES, size=count, p=[0.5, 0.25, 0.25]):
        drawing = drawings[style][rng.integers(len(drawings[style]))]
        pictures.append(place(drawing, random_placement(rng), CROP))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def picture_loss(drawn: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Means of: absolute and square error, its differences between neighbours, and error of 8x8 means.

    Errors are in luma, blue against luma, and red against green.
    """
    red, green, blue = (drawn - target).unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    error = torch.stack((luma, blue - luma, red - green), 1)
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return {
        "colour": error.abs().mean(),
        "square": error.square().mean(),
        "edges": edges,
        "patches": F.avg_pool2d(error, 8).abs().mean(),
    }


def train_vae(drawings: dict[str, np.ndarray], folder: Path, steps: int, seed: int = 0) -> AutoencoderKL:
    """Train encoder and decoder (or go on) for `steps` steps; returns the averaged weights, latents standardised."""
    torch.manual_seed(seed)
    vae = build_vae()
    vae.colour_head = nn.Conv2d(4, 3, 1)
    _train(vae, vae.parameters(), _whole_vae, drawings, folder, steps, seed)
    del vae.colour_head
    _standardise_latents(vae, drawings, seed)
    return vae.eval().requires_grad_(False)


def refine_decoder(
    vae: AutoencoderKL, drawings: dict[str, np.ndarray], folder: Path, steps: int, seed: int = 1
) -> AutoencoderKL:
    """Train the decoder alone for `steps` steps; the latents stay as they are. Returns the same `vae`, better."""
    torch.manual_seed(seed)
    vae.decoder.requires_grad_(True)
    vae.decoder.train()
    _train(vae, vae.decoder.parameters(), _decoder_alone, drawings, folder, steps, seed)
    return vae.eval().requires_grad_(False)


def _train(
    vae: AutoencoderKL,
    parameters: Iterable[nn.Parameter],
    draw: Callable[[AutoencoderKL, Tensor], tuple[Tensor, Tensor]],
    drawings: dict[str, np.ndarray],
    folder: Path,
    steps: int,
    seed: int,
) -> None:
    def losses_at(step: int) -> dict[str, Tensor]:
        target = picture_batch(drawings, np.random.default_rng((seed, step)))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            drawn, other = draw(vae, target)
        parts = picture_loss(drawn.float(), target)
        return {"loss": sum(parts.values()) + other, "other": other, **parts}

    recipe = Recipe(LEARNING_RATE, weight_decay=1e-3, save_every=50)
    fit({"vae": vae}, parameters, losses_at, folder, steps, recipe)


def _whole_vae(vae: AutoencoderKL, target: Tensor) -> tuple[Tensor, Tensor]:
    """The picture drawn from sampled latents, and what else is to be small.

    That is KL_WEIGHT times the mean KL divergence from the unit normal, and the error of the mean colours of 8x8
    pixels as a linear map of the latents: without it some colours are found thousands of steps later than shapes.
    """
    posterior = vae.encode(target).latent_dist
    strength = posterior.std + LATENT_NOISE * posterior.mean.detach().std((0, 2, 3), keepdim=True)
    latents = posterior.mean + strength * torch.randn_like(posterior.mean)
    kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
    colours = (vae.colour_head(latents).float() - F.avg_pool2d(target, 8)).abs().mean()
    return vae.decode(latents).sample, KL_WEIGHT * kl + colours


def _decoder_alone(vae: AutoencoderKL, target: Tensor) -> tuple[Tensor, Tensor]:
    """The picture drawn from the latents' means with noise of a random strength."""
    with torch.no_grad():
        mean = vae.encode(target).latent_dist.mean
        strength = LATENT_NOISE * torch.rand(len(mean), 1, 1, 1) / vae.config.scaling_factor
    return vae.decode(mean + strength * torch.randn_like(mean)).sample, torch.zeros(())


@torch.no_grad()
def _standardise_latents(vae: AutoencoderKL, drawings: dict[str, np.ndarray], seed: int) -> None:
    """Fold into the 1x1 convolutions around the latents what makes each channel mean 0, std 1 / SCALING_FACTOR.

    Of Noto drawings on backgrounds as captions name them, which is what the UNet learns.
    """
    rng = np.random.default_rng((seed, 1_000_000))
    numbers = rng.integers(len(drawings["noto"]), size=256)
    pictures = np.stack([place(drawings["noto"][i], captioned_placement(rng)[0]) for i in numbers])
    batches = (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1).split(16)
    latents = torch.cat([vae.encode(batch).latent_dist.mean for batch in batches])
    mean, factor = latents.mean((0, 2, 3)), 1 / (latents.std((0, 2, 3)) * SCALING_FACTOR)
    inward, outward = vae.quant_conv, vae.post_quant_conv
    channels = len(mean)
    inward.weight[:channels] *= factor[:, None, None, None]
    inward.bias[:channels] = (inward.bias[:channels] - mean) * factor
    inward.bias[channels:] += 2 * factor.log()
    outward.bias += outward.weight[:, :, 0, 0] @ mean
    outward.weight /= factor[None, :, None, None]
    vae.register_to_config(scaling_factor=SCALING_FACTOR)
