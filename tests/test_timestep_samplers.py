"""DDIM, DDIM CFG++, PLMS, UniPC."""

import json

import pytest
import torch
from diffusers import DDIMScheduler, UniPCMultistepScheduler
from recordings import GOLDEN
from webui_diffusers.pipelines.sampling import SeededNoise
from webui_diffusers.pipelines.sampling.discrete_schedule import (
    NoiseTable,
    default_alphas_cumprod,
    scheduled_alphas_cumprod,
)
from webui_diffusers.pipelines.sampling.plan import SamplingPlan, plan_sampling, sample_from_latents, sample_from_noise
from webui_diffusers.pipelines.sampling.samplers import resolve_sampler
from webui_diffusers.pipelines.sampling.timestep_samplers import ddim_timesteps, sample_ddim, sample_plms
from webui_diffusers.pipelines.sampling.unipc import UniPCTime, sample_unipc, unipc_weights


ALPHAS = default_alphas_cumprod()
SHAPE = (4, 6, 5)


def plan_of(sampler: str, schedule: str | None, steps: int, alphas_cumprod: torch.Tensor, **given) -> SamplingPlan:
    """`plan_sampling` by names, over a table as trained."""
    table = NoiseTable(scheduled_alphas_cumprod(alphas_cumprod, given.get("options")))
    return plan_sampling(*resolve_sampler(sampler, schedule), steps, table, **given)


class Narrow:
    """Ideal eps of data ~ N(0, 1/4): x(t) grows as sqrt(a / 4 + 1 - a). The negative prompt's is half of it."""

    def __init__(self):
        self.timesteps = []

    def alpha(self, t: float) -> torch.Tensor:
        low = min(int(t), 998)
        return torch.lerp(ALPHAS[low].double().log(), ALPHAS[low + 1].double().log(), t - low).exp()

    def eps(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.timesteps.append(float(t))
        a = self.alpha(float(t))
        eps = ((1 - a).sqrt() / (a / 4 + 1 - a)).to(x.dtype) * x
        return eps, eps / 2


def silence(t: torch.Tensor, t_prev: torch.Tensor) -> torch.Tensor:
    return torch.zeros(1, *SHAPE, dtype=torch.float64)


def flow_error(sample, steps: int) -> float:
    timesteps, x = ddim_timesteps(steps), torch.ones(1, *SHAPE, dtype=torch.float64)
    found = sample(Narrow(), x, timesteps, ALPHAS.double(), noise=silence)
    start, end = (999, 0) if sample is sample_unipc else (timesteps[-1], 1)
    a, a_end = ALPHAS[start].double(), ALPHAS[end].double()
    exact = ((a_end / 4 + 1 - a_end) / (a / 4 + 1 - a)).sqrt()
    return (found - exact).abs().max().item()


@pytest.mark.goldens
def test_timesteps_are_those_of_the_recordings():
    for steps, timesteps in json.loads((GOLDEN / "sampling/sigmas.json").read_text())["ddim_timesteps"].items():
        assert ddim_timesteps(int(steps)).tolist() == timesteps


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_ddim_is_diffusers_ddim_on_these_timesteps(eta):
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
    )
    timesteps, noise, draws = ddim_timesteps(8), SeededNoise(SHAPE, [1]), SeededNoise(SHAPE, [1])
    scheduler.set_timesteps(8)
    x = expected = SeededNoise(SHAPE, [2]).next()
    for t in timesteps[1:].flip(0).tolist():
        eps = Narrow().eps(expected, torch.tensor(t))[0]
        expected = scheduler.step(eps, t, expected, eta=eta, variance_noise=draws.next()).prev_sample
    found = sample_ddim(
        Narrow(), x, timesteps, scheduler.alphas_cumprod, noise=lambda t, t_prev: noise.next(), eta=eta
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant, order", [("bh1", 3), ("bh2", 2), ("bh2", 3)])
def test_unipc_is_diffusers_unipc_on_these_times(variant, order):
    scheduler = UniPCMultistepScheduler(solver_order=order, solver_type=variant, prediction_type="epsilon")
    scheduler.set_timesteps(9)
    time, ts = UniPCTime(ALPHAS), UniPCTime(ALPHAS).grid("time_uniform", 1.0, 9)
    alpha, sigma, _ = time.levels(ts)
    scheduler.sigmas, scheduler.timesteps = sigma / alpha, torch.arange(9)  # the names of steps, not times
    x = expected = SeededNoise(SHAPE, [2]).next()
    for i in range(9):
        eps = Narrow().eps(expected, (ts[i] - 1 / 1000) * 1000)[0]
        expected = scheduler.step(eps, torch.tensor(i), expected).prev_sample
    found = sample_unipc(Narrow(), x, ddim_timesteps(9)[:9], ALPHAS, noise=silence, variant=variant, order=order)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_order_of_convergence():
    assert flow_error(sample_ddim, 25) / flow_error(sample_ddim, 50) == pytest.approx(2, rel=0.12)
    assert flow_error(sample_plms, 50) < flow_error(sample_ddim, 50) / 5
    assert flow_error(sample_unipc, 50) < flow_error(sample_ddim, 50) / 2


@pytest.mark.parametrize("spacing", ["time_uniform", "time_quadratic", "logSNR"])
@pytest.mark.parametrize("variant", ["bh1", "bh2", "vary_coeff"])
def test_every_unipc_draws_the_gaussian(spacing, variant):
    x = torch.ones(1, *SHAPE)
    found = sample_unipc(Narrow(), x, ddim_timesteps(50), ALPHAS, noise=silence, variant=variant, skip_type=spacing)
    exact = ((ALPHAS[0] / 4 + 1 - ALPHAS[0]) / (ALPHAS[999] / 4 + 1 - ALPHAS[999])).sqrt()
    torch.testing.assert_close(found, x * exact, rtol=0.04, atol=0)


def test_variants_of_unipc_meet_in_small_steps():
    weights = [unipc_weights(variant, [torch.tensor(-1.0)], torch.tensor(-0.01)) for variant in ("bh1", "bh2")]
    for a, b in zip(weights[0][1:], weights[1][1:]):
        torch.testing.assert_close(torch.stack(a) * weights[0][0], torch.stack(b) * weights[1][0], rtol=0.02, atol=0)


def test_n_timesteps_make_one_call_less_but_not_in_unipc():
    for label, seen in [
        ("DDIM", [751, 501, 251]),
        ("DDIM CFG++", [751, 501, 251]),
        ("PLMS", [751, 501, 501, 251]),
        ("UniPC", [999.0, 749.25, 499.5, 249.75]),
    ]:
        denoiser = Narrow()
        sample_from_noise(plan_of(label, "Karras", 4, ALPHAS), denoiser, SeededNoise(SHAPE, [1]))
        assert denoiser.timesteps == pytest.approx(seen)


def test_img2img_starts_one_timestep_below_its_noise():
    for label, seen in [("DDIM", [501, 401, 301, 201, 101]), ("UniPC", [501, 417.5, 334, 250.5, 167, 83.5])]:
        denoiser, plan = Narrow(), plan_of(label, None, 10, ALPHAS, t_enc=6)
        assert plan.levels[plan.t_enc] == 601
        sample_from_latents(plan, denoiser, torch.zeros(1, *SHAPE), SeededNoise(SHAPE, [1]))
        assert denoiser.timesteps == pytest.approx(seen, abs=1e-2)


def test_cfgpp_goes_back_along_the_negative_prompt():
    x, timesteps = SeededNoise(SHAPE, [1]).next(), torch.tensor([1, 501])
    found = sample_ddim(Narrow(), x, timesteps, ALPHAS, noise=silence, cfgpp=True)
    guided, negative = Narrow().eps(x, torch.tensor(501.0))
    a, a_prev = ALPHAS[501], ALPHAS[1]
    x0 = (x - (1 - a).sqrt() * guided) / a.sqrt()
    torch.testing.assert_close(found.float(), a_prev.sqrt() * x0 + (1 - a_prev).sqrt() * negative)


@pytest.mark.parametrize("eta, draws", [(0.0, 1), (0.5, 4)])
def test_ddim_takes_a_draw_in_every_step_where_eta_is_not_0(eta, draws):
    noise, other = SeededNoise(SHAPE, [1]), SeededNoise(SHAPE, [1])
    sample_from_noise(plan_of("DDIM", None, 4, ALPHAS, eta=eta), Narrow(), noise)
    [other.next() for _ in range(draws)]
    assert torch.equal(noise.next(), other.next())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"uni_pc_order": 9}, "at least 9 steps"),
        ({"uni_pc_variant": "bh3"}, "bh1, bh2, vary_coeff"),
        ({"uni_pc_skip_type": "linear"}, "logSNR"),
    ],
)
def test_what_unipc_does_not_know_is_refused(options, message):
    plan = plan_of("UniPC", None, 5, ALPHAS, options=options)
    with pytest.raises(ValueError, match=message):
        sample_from_noise(plan, Narrow(), SeededNoise(SHAPE, [1]))
