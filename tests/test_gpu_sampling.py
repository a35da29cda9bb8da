"""Sampling on a CUDA device: nothing in a loop waits for it, and it draws what the CPU draws."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn
from webui_diffusers.pipelines.conditioning import Conditioning, TimedCond, WeightedCond
from webui_diffusers.pipelines.sampling import SAMPLERS, SeededNoise
from webui_diffusers.pipelines.sampling.denoiser import DenoiserModel, Guidance, GuidedDenoiser
from webui_diffusers.pipelines.sampling.discrete_schedule import NoiseTable, default_alphas_cumprod
from webui_diffusers.pipelines.sampling.plan import plan_sampling, sample_from_latents, sample_from_noise


pytestmark = pytest.mark.gpu
TABLE = NoiseTable(default_alphas_cumprod())
SHAPE = (4, 16, 16)
WIDTH = 8
# Its steps depend on the pictures' own numbers, so each one is waited for.
LOOPS = [label for label in SAMPLERS if label != "DPM adaptive"]


class BendingUNet(nn.Module):
    """A convolution, bent by the text's mean and the timestep."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 4, 3, padding=1).to(dtype)
        self.dtype = dtype

    def forward(self, sample, timestep, encoder_hidden_states, **given):
        bend = encoder_hidden_states.mean((1, 2)) + timestep.expand(len(sample)) * 1e-3
        return (torch.tanh(self.conv(sample) * bend.view(-1, 1, 1, 1)),)


def text(seed: int, until: int = 2**31) -> TimedCond:
    return TimedCond(until, torch.randn(77, WIDTH, generator=torch.Generator().manual_seed(seed)))


def draw(label: str, device: str, source: str, dtype: torch.dtype = torch.float32, t_enc: int | None = None):
    """Two images: one with an edit and AND, one plain, which alternates in its negative text."""
    positive = [
        [WeightedCond(1.0, [text(1, 4), text(2)]), WeightedCond(-0.3, [text(3)])],
        [WeightedCond(0.8, [text(4)])],
    ]
    conditioning = Conditioning(positive, [[text(5)], [text(6, 2), text(7)]])
    plan = plan_sampling(SAMPLERS[label], "Automatic", 9, TABLE, t_enc=t_enc)
    guidance = Guidance(s_min_uncond=1.0)
    sampler = plan.sampler
    denoiser = GuidedDenoiser(
        [DenoiserModel(BendingUNet(dtype).to(device), TABLE, conditioning)],
        guidance,
        total_calls=plan.calls,
        lcm=sampler.lcm,
        guidance_divisor=sampler.guidance_divisor,
    )
    noise = SeededNoise(SHAPE, [5, 6], source=source, device=device)
    init = torch.zeros(2, *SHAPE, device=device)
    with waiting_is_an_error() if device == "cuda" else waiting_is_fine():
        if t_enc is None:
            return sample_from_noise(plan, denoiser, noise)
        return sample_from_latents(plan, denoiser, init, noise)


@contextmanager
def waiting_is_an_error():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def waiting_is_fine():
    yield


@pytest.mark.parametrize("label", LOOPS)
@pytest.mark.parametrize("source", ["cpu", "gpu", "nv"])
def test_no_step_waits_for_the_device(label, source):
    assert draw(label, "cuda", source, torch.float16).isfinite().all()


@pytest.mark.parametrize("label", ["Euler a", "DDIM", "UniPC", "DPM++ 2M SDE"])
def test_no_step_of_a_pass_from_latents_waits_for_the_device(label):
    assert draw(label, "cuda", "cpu", torch.float16, t_enc=5).isfinite().all()


@pytest.mark.parametrize("label", [label for label in LOOPS if SAMPLERS[label].recorded])
def test_a_device_draws_what_the_cpu_draws(label):
    found, expected = draw(label, "cuda", "cpu").cpu(), draw(label, "cpu", "cpu")
    assert (found - expected).abs().max() <= 2e-3 * max(1.0, expected.abs().max().item())
