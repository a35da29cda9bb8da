"""Samplers and schedules of the webui's forks, held to the code or the paper of those who invented them.

solvers/reference.json: what the authors' own files gave (solvers/record.py says which, and ran them).
"""

import json
import math
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, EulerAncestralDiscreteScheduler, SASolverScheduler, TCDScheduler
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule
from diffusers.schedulers import AysSchedules
from webui_diffusers.pipelines.conditioning import Conditioning, TimedCond, WeightedCond
from webui_diffusers.pipelines.sampling import SAMPLERS, SCHEDULES, make_sigmas
from webui_diffusers.pipelines.sampling.denoiser import DenoiserModel, Guidance, GuidedDenoiser
from webui_diffusers.pipelines.sampling.discrete_schedule import NoiseTable, default_alphas_cumprod
from webui_diffusers.pipelines.sampling.latent_mask import LatentMask
from webui_diffusers.pipelines.sampling.multistep_samplers import deis_times, deis_weights, ipndm_v_weights
from webui_diffusers.pipelines.sampling.plan import plan_sampling
from webui_diffusers.pipelines.sampling.schedules import karras_sigmas


SOLVERS = Path(__file__).parent / "solvers"
REFERENCE = json.loads((SOLVERS / "reference.json").read_text(encoding="utf-8"))
ALPHAS = default_alphas_cumprod()
TABLE = NoiseTable(ALPHAS)


def _record():
    spec = spec_from_file_location("solvers_record", SOLVERS / "record.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


record = _record()


class Waves:
    """The denoiser of the reference, with a negative side of its own for CFG++."""

    def __init__(self, guided_by: float = 0.0):
        self.guided_by = guided_by

    def __call__(self, x, sigma):
        return self.sides(x, sigma)[0]

    def sides(self, x, sigma):
        negative = record.waves(x, sigma)
        return negative + self.guided_by * torch.cos(x), negative


def draws():
    """The noise of the reference: draw 0, 1, … whatever the sigmas."""
    numbers = iter(range(10**6))
    return lambda sigma, sigma_next: record.draw(next(numbers))


SIGMAS = torch.tensor(record.SIGMAS, dtype=torch.float64)


@pytest.mark.parametrize("label", sorted(REFERENCE))
def test_a_loop_gives_what_its_authors_code_gives(label):
    churn = {"s_tmin": 0.2, "s_tmax": 10.0, "s_noise": 1.01} if "Dy" in label else {}
    sigmas = SIGMAS[:-1] if label == "DEIS" else SIGMAS  # the authors' integrals have no value at 0
    found = SAMPLERS[label].function(Waves(), record.start(), sigmas, noise=draws(), **churn)
    expected = torch.tensor(REFERENCE[label], dtype=torch.float64).view(record.SHAPE)
    # DEIS: the authors add up 10,000 points, we integrate
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=2e-3 if label == "DEIS" else 1e-9)


def test_the_reference_has_every_solver_of_its_repositories():
    assert {"IPNDM", "IPNDM_V", "DEIS", "ER SDE", "Gradient Estimation", "Euler Dy", "Euler SMEA Dy"} == set(REFERENCE)


def test_forks_rows_say_that_the_webui_has_them_not():
    recorded = [label for label, row in SAMPLERS.items() if row.recorded]
    assert len(recorded) == 20 and recorded == list(SAMPLERS)[:20]
    assert [label for label, row in SCHEDULES.items() if not row.recorded] == [
        "Turbo",
        "Cosine",
        "Laplace",
        "Linear Quadratic",
    ]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_deis_integrates_polynomials_in_its_time(order):
    """A midpoint sum of 200,000 points over the authors' time, with d sigma / d time by difference."""
    levels = [9.0, 5.0, 2.5, 1.0, 0.4]
    ends = deis_times(np.array([levels[3], levels[4]]))
    beta = deis_times(np.array([0.0, 80.0]))
    assert beta[1] == pytest.approx(1.0)  # the time of 80 is 1
    sigmas = np.linspace(levels[3], levels[4], 200_001)
    times, known = deis_times((sigmas[1:] + sigmas[:-1]) / 2), deis_times(np.array(levels[3::-1][:order]))
    for j, weight in enumerate(deis_weights(levels, 3, order)):
        others = [k for k in range(order) if k != j]
        values = np.prod([(times - known[k]) / (known[j] - known[k]) for k in others], axis=0)
        assert weight == pytest.approx(float(np.sum(values * np.diff(sigmas))), rel=1e-6)
    assert ends[0] > ends[1]


def test_weights_of_uneven_steps_are_the_even_ones_on_even_steps_up_to_order_3():
    assert ipndm_v_weights([-1.0]) == [1.0]
    assert ipndm_v_weights([-1.0, -1.0]) == [1.5, -0.5]
    assert ipndm_v_weights([-1.0, -1.0, -1.0]) == pytest.approx([23 / 12, -16 / 12, 5 / 12])
    assert ipndm_v_weights([-1.0, -2.0]) == [1.25, -0.25]


def diffusers_run(scheduler, timesteps, sigmas, **step) -> torch.Tensor:
    """The scheduler's own loop in its scale, for a denoiser over sigmas; the result in the scale of sigmas."""
    x = record.start() / (1 + sigmas[0] ** 2).sqrt()
    for t, sigma in zip(timesteps, sigmas):
        scaled = x * (1 + sigma**2).sqrt()
        x = scheduler.step((scaled - record.waves(scaled, sigma)) / sigma, t, x, **step).prev_sample
    return x * (1 + sigmas[-1] ** 2).sqrt()


def seeded_draws(seed: int = 7):
    generator = torch.Generator().manual_seed(seed)
    return lambda *_: torch.randn(record.SHAPE, generator=generator, dtype=torch.float64)


def test_ddpm_is_that_of_diffusers():
    scheduler = DDPMScheduler(clip_sample=False)
    scheduler.alphas_cumprod = ALPHAS.double()
    scheduler.set_timesteps(timesteps=[999, 700, 410, 160, 30])
    sigmas = torch.cat(
        [((1 - ALPHAS.double()) / ALPHAS.double()).sqrt()[scheduler.timesteps], torch.zeros(1).double()]
    )
    expected = diffusers_run(scheduler, scheduler.timesteps, sigmas, generator=torch.Generator().manual_seed(7))
    found = SAMPLERS["DDPM"].function(Waves(), record.start(), sigmas, noise=seeded_draws())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_tcd_is_that_of_diffusers(eta):
    scheduler = TCDScheduler()
    scheduler.alphas_cumprod = ALPHAS.double()
    scheduler.set_timesteps(4)
    levels = ((1 - ALPHAS.double()) / ALPHAS.double()).sqrt()
    sigmas = levels[torch.cat([scheduler.timesteps, torch.tensor([0])])]  # its last step is to timestep 0
    generator = torch.Generator().manual_seed(7)
    expected = diffusers_run(scheduler, scheduler.timesteps, sigmas, eta=eta, generator=generator)
    found = SAMPLERS["TCD"].function(Waves(), record.start(), sigmas, noise=seeded_draws(), table=TABLE, eta=eta)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_tcd_has_an_eta_of_its_own_until_a_call_names_one():
    row = SAMPLERS["TCD"]
    assert plan_sampling(row, "Automatic", 4, TABLE).arguments == {"table": TABLE}
    assert plan_sampling(row, "Automatic", 4, TABLE, eta=0.5).arguments == {"table": TABLE, "eta": 0.5}


@pytest.mark.parametrize("steps", [2, 9])
def test_sa_solver_is_that_of_diffusers(steps):
    scheduler = SASolverScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas = scheduler.sigmas.double()
    expected = diffusers_run(scheduler, scheduler.timesteps, sigmas, generator=torch.Generator().manual_seed(7))
    taken, draw = [], seeded_draws()

    def noise(sigma, sigma_next):
        """diffusers draws in every step, used or not."""
        while len(taken) < int((sigmas == sigma).nonzero()):
            taken.append(draw())
        taken.append(draw())
        return taken[-1]

    found = SAMPLERS["SA-Solver"].function(Waves(), record.start(), sigmas, noise=noise, table=TABLE)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert steps == 2 or len(taken) > 4


def test_sa_solver_ends_at_the_last_estimate():
    sigmas, seen = karras_sigmas(6, 0.03, 14.6), []

    def denoiser(x, sigma):
        seen.append(record.waves(x, sigma))
        return seen[-1]

    found = SAMPLERS["SA-Solver"].function(denoiser, record.start(), sigmas, noise=seeded_draws(), table=TABLE)
    assert len(seen) == 6 and torch.equal(found, seen[-1])


@pytest.mark.parametrize(
    "label, plain", [("Euler CFG++", "Euler"), ("Euler a CFG++", "Euler a"), ("DPM++ 2M CFG++", "DPM++ 2M")]
)
def test_cfgpp_without_guidance_is_the_plain_loop(label, plain):
    found, expected = (
        SAMPLERS[name].function(Waves(), record.start(), SIGMAS, noise=draws()) for name in (label, plain)
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("label", ["Euler CFG++", "DPM++ 2M CFG++"])
def test_cfgpp_puts_back_the_noise_of_the_negative_prompt(label):
    """The first step of both: x0 guided, and sigma' / sigma of what the negative prompt calls noise."""
    x, denoiser = record.start(), Waves(guided_by=0.6)
    found = SAMPLERS[label].function(denoiser, x, SIGMAS[:2], noise=draws())
    guided, negative = denoiser.sides(x, SIGMAS[0])
    torch.testing.assert_close(found, guided + SIGMAS[1] / SIGMAS[0] * (x - negative))


def test_cfgpp_is_given_both_sides_by_the_denoiser():
    class Means(torch.nn.Module):
        dtype = torch.float32

        def forward(self, sample, timestep, encoder_hidden_states, **_):
            return (encoder_hidden_states.mean((1, 2)).view(-1, 1, 1, 1) + torch.zeros_like(sample),)

    c, u = (TimedCond(99, torch.full((77, 2), value)) for value in (0.5, 0.1))
    model = DenoiserModel(Means(), TABLE, Conditioning([[WeightedCond(1.0, [c])]], [[u]]))
    mask = LatentMask(*(torch.full((1, 1, 4, 4), value) for value in (9.0, 0.0, 1.0)))
    mask.keep[..., :2, :], mask.change[..., :2, :] = 1.0, 0.0
    denoiser = GuidedDenoiser([model], Guidance(guidance_scale=0.6), total_calls=9, mask=mask)
    guided, negative = denoiser.sides(torch.ones(1, 1, 4, 4), torch.tensor(2.0))
    assert negative[0, 0, 3, 0] == pytest.approx(1 - 0.2) and guided[0, 0, 3, 0] == pytest.approx(1 - 2 * 0.34)
    assert guided[0, 0, 0].tolist() == [9.0] * 4
    half, _ = denoiser.sides(torch.ones(1, 1, 2, 2), torch.tensor(2.0))  # as Euler Dy looks at it
    assert half[0, 0].tolist() == [[9.0, 9.0], pytest.approx([1 - 2 * 0.34] * 2)]


def test_unipc_bh2_is_unipc_with_its_variant():
    row, options = SAMPLERS["UniPC BH2"], {"uni_pc_variant": "vary_coeff"}
    assert plan_sampling(row, "Automatic", 5, TABLE, options=options).arguments["variant"] == "bh2"
    assert row.function is SAMPLERS["UniPC"].function


@pytest.mark.parametrize("label, order", [("IPNDM", 1.5), ("SA-Solver", 1.8), ("DPM++ 2M CFG++", 1.8)])
def test_order_of_convergence(label, order):
    """On the flow of a Gaussian, halving the step divides the error by at least 2**order."""

    class Gaussian:
        def __call__(self, x, sigma):
            return x / (1 + sigma**2)

        def sides(self, x, sigma):
            return self(x, sigma), self(x, sigma)

    class Never:
        """A table whose timesteps are outside those where SA-Solver adds noise."""

        def sigma_to_t(self, sigma):
            return torch.tensor(900.0)

    errors, extra = [], {"table": Never()} if label == "SA-Solver" else {}
    for steps in (40, 80):
        sigmas = karras_sigmas(steps, 0.03, 14.6)[:-1].double()
        x = torch.full(record.SHAPE, 14.6, dtype=torch.float64)
        found = SAMPLERS[label].function(Gaussian(), x, sigmas, noise=draws(), **extra)
        exact = 14.6 * ((1 + sigmas[-1] ** 2) / (1 + sigmas[0] ** 2)) ** 0.5
        errors.append((found - exact).abs().max().item())
    assert errors[0] / errors[1] > 2**order


@pytest.mark.parametrize("steps", [1, 4, 7, 30])
def test_turbo_is_the_trailing_spacing_of_diffusers(steps):
    scheduler = EulerAncestralDiscreteScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    places = TABLE.sigma_to_t(make_sigmas("Turbo", steps, ALPHAS)[:-1])
    assert places.round().tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 33])
def test_linear_quadratic_is_that_of_diffusers(steps):
    found = make_sigmas("Linear Quadratic", steps, ALPHAS)
    expected = [1.0] if steps == 1 else linear_quadratic_schedule(steps, 0.025)
    assert (found / TABLE.sigma_max).tolist() == pytest.approx([*expected, 0.0])


def test_cosine_is_even_in_the_time_of_its_paper():
    sigmas = make_sigmas("Cosine", 9, ALPHAS)[:-1].double()
    alpha_bar, s = 1 / (1 + sigmas**2), 0.008
    times = 2 / math.pi * alpha_bar.sqrt().acos() * (1 + s) - s  # alpha_bar(t) = cos((t + s) / (1 + s) pi / 2) ** 2
    assert times.diff().tolist() == pytest.approx([times.diff()[0].item()] * 8, rel=1e-4)
    assert sigmas[[0, -1]].tolist() == pytest.approx([TABLE.sigma_max, TABLE.sigma_min])


def test_laplace_is_even_in_the_quantiles_of_its_paper():
    sigmas = make_sigmas("Laplace", 9, ALPHAS)[:-1].double()
    log_snr = -2 * sigmas.log()
    below = torch.where(log_snr < 0, 0.5 * (log_snr / 0.5).exp(), 1 - 0.5 * (-log_snr / 0.5).exp())
    assert below.diff().tolist() == pytest.approx([below.diff()[0].item()] * 8, rel=1e-3)
    assert sigmas[4] == pytest.approx(1.0, rel=1e-3)  # the middle of the noise
    wide = make_sigmas("Laplace", 9, ALPHAS, options={"sd_noise_schedule": "Zero Terminal SNR"})
    assert wide.isfinite().all() and wide[0] > 4500


def test_align_your_steps_is_the_table_that_diffusers_has_too():
    for is_sdxl, name in ((False, "StableDiffusionSigmas"), (True, "StableDiffusionXLSigmas")):
        found = make_sigmas("Align Your Steps 11", 11, ALPHAS, is_sdxl=is_sdxl)
        assert found[:10].tolist() == pytest.approx(AysSchedules[name][:10])


def test_nothing_of_the_reference_needs_its_authors_files():
    assert not {"solvers", "er_sde_solver", "smea_sampling"} & set(sys.modules)
