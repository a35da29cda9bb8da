"""The loops over sigmas, their table, and the plan of a pass."""

import json
import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import GOLDEN
from webui_diffusers.pipelines.sampling import SAMPLERS, SeededNoise, make_sigmas
from webui_diffusers.pipelines.sampling.discrete_schedule import (
    NoiseTable,
    default_alphas_cumprod,
    scheduled_alphas_cumprod,
)
from webui_diffusers.pipelines.sampling.labels import SAMPLER_ROWS, SCHEDULE_ROWS, find_schedule
from webui_diffusers.pipelines.sampling.ode_samplers import restart_steps
from webui_diffusers.pipelines.sampling.plan import (
    SamplingPlan,
    img2img_steps,
    plan_sampling,
    sample_from_latents,
    sample_from_noise,
)
from webui_diffusers.pipelines.sampling.samplers import SAMPLER_LOOPS, find_sampler, resolve_sampler
from webui_diffusers.pipelines.sampling.schedules import karras_sigmas


ALPHAS = default_alphas_cumprod()
SHAPE = (4, 6, 5)


def plan_of(sampler: str, schedule: str | None, steps: int, alphas_cumprod: torch.Tensor, **given) -> SamplingPlan:
    """`plan_sampling` by names, over a table as trained."""
    table = NoiseTable(scheduled_alphas_cumprod(alphas_cumprod, given.get("options")))
    return plan_sampling(*resolve_sampler(sampler, schedule), steps, table, **given)


OVER_SIGMAS = [label for label, row in SAMPLERS.items() if row.kind == "sigmas"]
KDIFFUSION = {
    "DPM++ 2M": "sample_dpmpp_2m",
    "DPM++ SDE": "sample_dpmpp_sde",
    "DPM++ 2M SDE": "sample_dpmpp_2m_sde",
    "DPM++ 2S a": "sample_dpmpp_2s_ancestral",
    "DPM++ 3M SDE": "sample_dpmpp_3m_sde",
    "Euler a": "sample_euler_ancestral",
    "LMS": "sample_lms",
    "DPM2 a": "sample_dpm_2_ancestral",
}


class Gaussian:
    """Ideal denoiser of data ~ N(0, 1): D = x / (1 + sigma**2), and x(sigma) grows as sqrt(1 + sigma**2)."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        assert sigma.ndim == 0 and sigma.device == x.device
        return x / (1 + sigma**2)

    def sides(self, x: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self(x, sigma), 0.5 * x / (1 + sigma**2)

    def eps(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += 1
        assert t.ndim == 0 and t.is_floating_point()
        eps = (1 - ALPHAS[int(t)]).sqrt() * x
        return eps, 0.5 * eps


def waves(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """No ideal denoiser, but one that bends."""
    return torch.tanh(x / (1 + sigma**2)) + 0.1 * torch.sin(3 * sigma.view(-1)[0])


def silence(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
    return torch.zeros(1, *SHAPE, dtype=torch.float64)


@pytest.fixture(scope="module")
def k_sampling() -> ModuleType:
    """`k_diffusion.sampling` without the package's __init__, which imports far more than it needs."""
    spec = find_spec("k_diffusion") or pytest.skip("k-diffusion is not installed (`make test` installs it)")
    package = ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules.setdefault("k_diffusion", package)
    return import_module("k_diffusion.sampling")


@pytest.mark.parametrize(
    "name, schedule, label, settled",
    [
        ("Euler a", None, "Euler a", "Automatic"),
        ("euler a", "karras", "Euler a", "Karras"),
        ("k_euler_ancestral", None, "Euler a", "Automatic"),
        ("ddim", None, "DDIM", "Automatic"),
        ("DPM++ 2M Karras", None, "DPM++ 2M", "Karras"),
        ("DPM++ 2M SDE Heun Exponential", None, "DPM++ 2M SDE Heun", "Exponential"),
        ("Euler SGMUniform", None, "Euler", "SGM Uniform"),
        ("Euler sgm_uniform", None, "Euler", "SGM Uniform"),
        ("Euler a Karras", "Exponential", "Euler a", "Karras"),
        ("Euler Automatic", "Karras", "Euler", "Karras"),
        ("DPM2 a Karras", None, "DPM2 a", "Karras"),
        ("UniPC", "Exponential", "UniPC", "Exponential"),
        ("euler_ancestral", None, "Euler a", "Automatic"),
        ("sample_dpmpp_2s_ancestral", None, "DPM++ 2S a", "Automatic"),
        ("dpmpp_2m_sde_gpu", "karras", "DPM++ 2M SDE", "Karras"),
        ("dpm++2m", "sgm_uniform", "DPM++ 2M", "SGM Uniform"),
        ("dpmpp_3m_sde_karras", None, "DPM++ 3M SDE", "Karras"),
        ("euler_a_align_your_steps", None, "Euler a", "Align Your Steps"),
        ("uni_pc", None, "UniPC", "Automatic"),
        ("heun_k", None, "Heun", "Karras"),
        ("k_dpm_2_ancestral", None, "DPM2 a", "Automatic"),
        ("Euler A AYS", None, "Euler a", "Align Your Steps"),
        ("EulerDiscreteScheduler", "ddim_uniform", "Euler", "DDIM"),
        ("DPMSolverMultistepScheduler", "discrete", "DPM++ 2M", "Uniform"),
    ],
)
def test_names_of_samplers(name, schedule, label, settled):
    row, found = resolve_sampler(name, schedule)
    assert (row.label, found) == (label, settled)


@pytest.mark.goldens
def test_the_table_is_the_webui_s():
    rows = json.loads((GOLDEN / "sampling/sigmas.json").read_text())["samplers"]
    assert [row["name"] for row in rows] == [row.label for row in SAMPLER_ROWS if row.recorded]
    for row in rows:
        sampler, known = SAMPLERS[row["name"]], row["options"]
        assert list(sampler.aliases) == row["aliases"]
        assert (sampler.schedule or "").lower() == known.get("scheduler", "")
        assert sampler.second_order == known.get("second_order", False)
        assert sampler.discards == known.get("discard_next_to_last_sigma", False)
        assert sampler.brownian == known.get("brownian_noise", False)
        assert sampler.uses_ensd == known.get("uses_ensd", False)


def test_every_loop_has_a_row_and_no_spelling_has_two():
    assert {f"sample_{row.loop}" for row in SAMPLER_ROWS} == {function.__name__ for function in SAMPLER_LOOPS}
    for row in SAMPLER_ROWS:
        assert all(find_sampler(spelling).label == row.label for spelling in row.spellings), row.label
    for schedule in SCHEDULE_ROWS:
        assert all(find_schedule(spelling) == schedule.label for spelling in schedule.spellings), schedule.label


@pytest.mark.goldens
def test_old_names_are_read_as_recorded():
    file = GOLDEN / "prompt/sampler_names.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    read = 0
    for row in rows:
        known = row["op"] == "first pass" and row["Sampler"] not in (None, "nope", "euler a", "k_euler")
        if known and row["Schedule type"] != "Nonexistent":
            sampler, schedule = resolve_sampler(row["Sampler"], row["Schedule type"])
            own = schedule == sampler.schedule and row["scheduler"] == "Automatic"
            assert sampler.label == row["sampler"] and (own or schedule == row["scheduler"]), row
            read += 1
    assert read


@pytest.mark.goldens
def test_img2img_runs_as_many_steps_as_recorded():
    for row in json.loads((GOLDEN / "sampling/sigmas.json").read_text())["img2img_steps"]:
        exact = row["img2img_fix_steps"] or row["steps_arg"] is not None
        found = img2img_steps(row["denoising_strength"], row["steps_arg"] or row["steps"], exact)
        assert found == (row["schedule_steps"], row["t_enc"]), row


@pytest.mark.parametrize("label", sorted(KDIFFUSION))
@pytest.mark.parametrize("schedule", ["Karras", "Exponential", "KL Optimal"])
def test_loops_are_those_of_k_diffusion(label, schedule, k_sampling):
    sigmas = make_sigmas(schedule, 9, ALPHAS)
    x, row = SeededNoise(SHAPE, [1]).next() * sigmas[0], SAMPLERS[label]
    noise, reference = SeededNoise(SHAPE, [2]), SeededNoise(SHAPE, [2])
    extra = {"noise_sampler": lambda a, b: reference.next()} if row.takes else {}
    expected = getattr(k_sampling, KDIFFUSION[label])(waves, x, sigmas, disable=True, **extra)
    found = row.function(waves, x, sigmas, noise=lambda a, b: noise.next())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name, label", [("euler", "Euler"), ("heun", "Heun"), ("dpm_2", "DPM2")])
def test_churn_is_that_of_k_diffusion(name, label, k_sampling, monkeypatch):
    sigmas, churn = make_sigmas("Karras", 9, ALPHAS), {"s_churn": 5.0, "s_tmin": 0.2, "s_tmax": 9.0, "s_noise": 1.01}
    x = SeededNoise(SHAPE, [1]).next() * sigmas[0]
    noise, reference = SeededNoise(SHAPE, [2]), SeededNoise(SHAPE, [2])
    monkeypatch.setattr(k_sampling.torch, "randn_like", lambda x: reference.next())
    expected = getattr(k_sampling, "sample_" + name)(waves, x, sigmas, disable=True, **churn)
    found = SAMPLERS[label].function(waves, x, sigmas, noise=lambda a, b: noise.next(), **churn)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name, label", [("fast", "DPM fast"), ("adaptive", "DPM adaptive")])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("n", [10, 11, 12])
def test_dpm_solvers_are_those_of_k_diffusion(name, label, eta, n, k_sampling):
    x = SeededNoise(SHAPE, [1]).next() * 14.6
    noise, reference = SeededNoise(SHAPE, [2]), SeededNoise(SHAPE, [2])
    settings_ = {"eta": eta, "noise_sampler": lambda a, b: reference.next(), "disable": True}
    counted = {"n": n} if name == "fast" else {}
    expected = getattr(k_sampling, "sample_dpm_" + name)(waves, x, 0.03, 14.6, **counted, **settings_)
    found = SAMPLERS[label].function(waves, x, 0.03, 14.6, n, noise=lambda a, b: noise.next(), eta=eta)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "label, order",
    [
        ("Euler", 1),
        ("Euler a", 1),
        ("Heun", 2),
        ("DPM2", 2),
        ("DPM2 a", 2),
        ("DPM++ 2M", 2),
        ("DPM++ SDE", 2),
        ("DPM++ 2M SDE", 2),
        ("DPM++ 2M SDE Heun", 2),
        ("DPM++ 2S a", 2),
    ],
)
def test_order_of_convergence(label, order):
    """Without noise each loop solves the flow of a Gaussian, and halving the step divides the error by 2**order."""
    errors, eta = [], {"eta": 0.0} if "eta" in SAMPLERS[label].takes else {}
    for steps in (40, 80):
        sigmas = karras_sigmas(steps, 0.03, 14.6)[:-1].double()
        x = torch.full((1, *SHAPE), 14.6, dtype=torch.float64)
        found = SAMPLERS[label].function(Gaussian(), x, sigmas, noise=silence, **eta)
        exact = 14.6 * ((1 + sigmas[-1] ** 2) / (1 + sigmas[0] ** 2)) ** 0.5
        errors.append((found - exact).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.12)


@pytest.mark.parametrize("label", ["LMS", "DPM++ 3M SDE", "DPM fast", "DPM adaptive"])
def test_higher_orders_come_close(label):
    row, x = SAMPLERS[label], torch.full((1, *SHAPE), 14.6, dtype=torch.float64)
    sigmas = karras_sigmas(60, 0.03, 14.6)[:-1].double()
    places = (sigmas,) if row.kind == "sigmas" else (0.03, 14.6, 60)
    found = row.function(Gaussian(), x, *places, noise=silence, **({"eta": 0.0} if "eta" in row.takes else {}))
    exact = 14.6 * ((1 + 0.03**2) / (1 + 14.6**2)) ** 0.5
    assert (found - exact).abs().max() < (0.05 if label == "DPM adaptive" else 5e-4)


@settings(deadline=None, max_examples=40)
@given(
    label=st.sampled_from([label for label in SAMPLERS if label != "DPM adaptive"]),
    seeds=st.lists(st.integers(0, 2**40), min_size=2, max_size=3),
    t_enc=st.sampled_from([None, 7]),
)
def test_an_image_of_a_batch_is_the_image_alone(label, seeds, t_enc):
    plan = plan_of(label, None, 12, ALPHAS, t_enc=t_enc, options={"s_churn": 3.0, "eta_ddim": 0.5})

    def draw(seeds: list[int]) -> torch.Tensor:
        noise = SeededNoise(SHAPE, seeds)
        if t_enc is None:
            return sample_from_noise(plan, Gaussian(), noise)
        return sample_from_latents(plan, Gaussian(), torch.full((len(seeds), *SHAPE), 0.3), noise)

    torch.testing.assert_close(draw(seeds), torch.cat([draw([seed]) for seed in seeds]), rtol=1e-5, atol=1e-5)


def test_dpm_adaptive_sees_its_batch():
    plan = plan_of("DPM adaptive", None, 12, ALPHAS)
    alone = sample_from_noise(plan, waves_of_images, SeededNoise(SHAPE, [1]))
    beside = sample_from_noise(plan, waves_of_images, SeededNoise(SHAPE, [1, 2]))
    assert not torch.allclose(alone[0], beside[0], atol=1e-4)


def waves_of_images(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return torch.tanh(8 * x / (1 + sigma**2))


@pytest.mark.parametrize("label", list(SAMPLERS))
@pytest.mark.parametrize("t_enc", [None, 6])
def test_on_step_is_called_in_order_and_may_replace_the_latents(label, t_enc):
    plan, seen = plan_of(label, None, 12, ALPHAS, t_enc=t_enc), []

    def on_step(i: int, x: torch.Tensor) -> torch.Tensor:
        seen.append(i)
        return torch.zeros_like(x)

    noise = SeededNoise(SHAPE, [3])
    if t_enc is None:
        found = sample_from_noise(plan, Gaussian(), noise, on_step=on_step)
    else:
        found = sample_from_latents(plan, Gaussian(), torch.ones(1, *SHAPE), noise, on_step=on_step)
    assert found.abs().max() == 0
    assert seen == list(range(len(seen) if plan.step_count is None else plan.step_count)) and seen


def test_on_step_may_raise():
    def on_step(i: int, x: torch.Tensor) -> torch.Tensor:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        sample_from_noise(plan_of("Euler", None, 5, ALPHAS), Gaussian(), SeededNoise(SHAPE, [3]), on_step=on_step)


@pytest.mark.parametrize(
    "label, steps, planned, made",
    [("Euler", 9, 9, 9), ("Heun", 9, 18, 17), ("Restart", 20, 40, 39), ("DDIM", 9, 9, 9), ("DPM fast", 10, 10, 10)],
)
def test_calls_are_counted_as_the_webui_plans_them(label, steps, planned, made):
    plan, denoiser = plan_of(label, None, steps, ALPHAS), Gaussian()
    sample_from_noise(plan, denoiser, SeededNoise(SHAPE, [1]))
    assert (plan.calls, denoiser.calls) == (planned, made)
    assert plan_of(label, None, steps, ALPHAS, t_enc=4).calls == 5 * planned // steps


def test_restart_goes_back_up_from_20_steps_on():
    for steps, leaps in [(19, 0), (20, 1), (35, 1), (36, 2), (60, 2)]:
        path = restart_steps(make_sigmas("Karras", steps, ALPHAS))
        up = sum(bool(path[i + 1][0] > path[i][1] * 1.01) for i in range(len(path) - 1))
        assert (len(path), up) == (steps, leaps) and path[-1][1] == 0


def test_brownian_noise_spans_the_uncut_schedule():
    """A tail that starts where a whole pass stands ends where that ends: its increments are the same."""
    whole = plan_of("DPM++ SDE", None, 12, ALPHAS)
    tail = plan_of("DPM++ SDE", None, 12, ALPHAS, t_enc=5)
    latents = []

    def keep(i: int, x: torch.Tensor) -> torch.Tensor:
        latents.append(x)
        return x

    end = sample_from_noise(whole, Gaussian(), SeededNoise(SHAPE, [4]), on_step=keep)
    middle = latents[len(whole.levels) - len(tail.run) - 1]
    init = middle - SeededNoise(SHAPE, [4]).next() * tail.run[0]
    found = sample_from_latents(tail, Gaussian(), init, SeededNoise(SHAPE, [4]))
    torch.testing.assert_close(found, end, rtol=1e-4, atol=1e-4)


def test_options_reach_the_loops():
    options = {"eta_ancestral": 0.4, "eta_ddim": 0.2, "s_churn": 2.0, "s_tmax": 0.0, "s_noise": 1.1, "uni_pc_order": 2}
    assert plan_of("Euler a", None, 8, ALPHAS, options=options).arguments == {"eta": 0.4}
    assert plan_of("Euler a", None, 8, ALPHAS, options=options, eta=0.0).arguments == {"eta": 0.0}
    assert plan_of("DDIM", None, 8, ALPHAS, options=options).arguments == {"eta": 0.2}
    assert plan_of("DPM++ SDE", None, 8, ALPHAS, options=options).arguments == {"eta": 0.4, "s_noise": 1.1}
    churn = {"s_churn": 2.0, "s_tmin": 0.0, "s_tmax": float("inf"), "s_noise": 1.1}
    assert plan_of("Heun", None, 8, ALPHAS, options=options).arguments == churn
    assert plan_of("UniPC", None, 8, ALPHAS, options=options).arguments["order"] == 2


@pytest.mark.parametrize(
    "options, scale", [({}, 14.614641), ({"sgm_noise_multiplier": True}, (1 + 14.614641**2) ** 0.5)]
)
def test_the_first_latent_is_the_noise_at_the_first_sigma(options, scale):
    first, seen = SeededNoise(SHAPE, [1]).next(), []
    plan = plan_of("Euler", None, 3, ALPHAS, options=options)
    sample_from_noise(plan, lambda x, sigma: seen.append(x) or x, SeededNoise(SHAPE, [1]))
    torch.testing.assert_close(seen[0], first * scale)


def test_latents_of_the_caller_take_the_place_of_the_first_noise():
    plan, mine = plan_of("Euler a", None, 4, ALPHAS), SeededNoise(SHAPE, [8]).next()
    found = sample_from_noise(plan, Gaussian(), SeededNoise(SHAPE, [1]), latents=mine)
    again = sample_from_noise(plan, Gaussian(), SeededNoise(SHAPE, [1]))
    assert not torch.allclose(found, again)
    same = sample_from_noise(plan, Gaussian(), SeededNoise(SHAPE, [1]), latents=SeededNoise(SHAPE, [1]).next())
    assert torch.equal(same, again)


@pytest.mark.parametrize("label", ["Euler", "DDIM"])
def test_extra_noise_and_noise_multiplier(label):
    noise, init, seen = SeededNoise(SHAPE, [1]).next(), torch.full((1, *SHAPE), 0.7), []
    plan = plan_of(label, None, 10, ALPHAS, t_enc=5, options={"img2img_extra_noise": 0.1})
    if label == "Euler":
        expected = init + 0.9 * noise * (plan.run[0] + 0.1)
        sample_from_latents(
            plan, lambda x, s: seen.append(x) or x, init, SeededNoise(SHAPE, [1]), noise_multiplier=0.9
        )
    else:
        a = ALPHAS[plan.levels[5]]
        expected = a.sqrt() * init + 0.9 * noise * ((1 - a).sqrt() + 0.1 * a.sqrt())
        denoiser = Gaussian()
        denoiser.eps = lambda x, t: seen.append(x) or (x, x)
        sample_from_latents(plan, denoiser, init, SeededNoise(SHAPE, [1]), noise_multiplier=0.9)
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: find_sampler("Eulr"), "'Euler'"),
        (lambda: resolve_sampler("DPM++ 2N Karras"), "'DPM\\+\\+ 2M'"),
        (lambda: resolve_sampler("Euler", "Exponentail"), "'Exponential'"),
        (lambda: resolve_sampler("Karras"), "sampler 'Karras' is unknown"),
        (lambda: plan_of("Euler", None, 0, ALPHAS), "at least one"),
        (lambda: plan_of("DDIM", None, 1001, ALPHAS), "1 to 1000 steps"),
        (lambda: img2img_steps(1.5, 20), "between 0"),
    ],
)
def test_what_cannot_be_sampled_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_dpm_fast_needs_a_range():
    plan = plan_of("DPM fast", None, 10, ALPHAS, t_enc=0)
    with pytest.raises(ValueError, match="raise `strength`"):
        sample_from_latents(plan, Gaussian(), torch.zeros(1, *SHAPE), SeededNoise(SHAPE, [1]))
