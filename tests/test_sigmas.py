"""Noise tables and schedules."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import GOLDEN, recorded_json
from safetensors.torch import load_file
from webui_diffusers.pipelines.sampling import SCHEDULES, make_sigmas
from webui_diffusers.pipelines.sampling.discrete_schedule import (
    LcmTable,
    NoiseTable,
    default_alphas_cumprod,
    scheduled_alphas_cumprod,
)
from webui_diffusers.pipelines.sampling.labels import find_schedule


CASES = recorded_json("sampling/sigmas.json", "cases", at_least=195)
ALPHAS = default_alphas_cumprod()
ZERO_SNR, DOWNCAST = {"sd_noise_schedule": "Zero Terminal SNR"}, {"use_downcasted_alpha_bar": True}


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "sampling/sigmas.safetensors")


@pytest.fixture(scope="module")
def mappings() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "sampling/denoiser.safetensors")


@pytest.mark.parametrize(
    "name, label",
    [
        (None, "Automatic"),
        ("automatic", "Automatic"),
        ("karras", "Karras"),
        ("SGMUniform", "SGM Uniform"),
        ("sgm_uniform", "SGM Uniform"),
        ("KL Optimal", "KL Optimal"),
        ("align_your_steps", "Align Your Steps"),
    ],
)
def test_schedules_answer_to_label_name_and_alias(name, label):
    assert find_schedule(name) == label


def test_labels_are_the_webui_s():
    listed = (
        "Uniform Karras Exponential Polyexponential SGM_Uniform KL_Optimal Align_Your_Steps Simple Normal DDIM Beta"
    )
    recorded = [label for label, row in SCHEDULES.items() if row.recorded]
    assert recorded == [label.replace("_", " ") for label in listed.split()]


@pytest.mark.goldens
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['key']}-{case['sampler']}-{case['scheduler']}")
def test_sigmas_are_those_of_the_recordings(case, recorded):
    options = case.get("opts")
    arguments = {"sampler": case["sampler"], "options": options, "is_sdxl": case.get("sdxl", False)}
    sigmas = make_sigmas(case["scheduler"], case["steps"], ALPHAS, **arguments)
    assert sigmas.dtype == torch.float32
    torch.testing.assert_close(sigmas, recorded[case["key"]], rtol=1e-6, atol=0)
    already = make_sigmas(case["scheduler"], case["steps"], scheduled_alphas_cumprod(ALPHAS, options), **arguments)
    assert torch.equal(already, sigmas)


@pytest.mark.goldens
@pytest.mark.parametrize(
    "options, name",
    [({}, ""), (ZERO_SNR, "_zsnr"), (DOWNCAST, "_downcast"), ({**ZERO_SNR, **DOWNCAST}, "_zsnr_downcast")],
)
def test_tables_are_those_of_the_recordings(options, name, recorded):
    alphas = scheduled_alphas_cumprod(ALPHAS, options)
    assert torch.equal(alphas.float(), recorded["alphas_cumprod" + name])
    assert torch.equal(scheduled_alphas_cumprod(alphas, options), alphas)
    assert torch.equal(scheduled_alphas_cumprod(recorded["alphas_cumprod" + name], options), alphas)


@pytest.mark.goldens
def test_levels_are_those_of_the_recordings(recorded):
    assert torch.equal(NoiseTable(ALPHAS).sigmas, recorded["model_sigmas"])
    assert torch.equal(LcmTable(ALPHAS).sigmas, recorded["lcm_sigmas"])


@pytest.mark.goldens
def test_maps_between_sigma_and_timestep_are_those_of_the_recordings(mappings):
    sigma, t = mappings["sigma"], mappings["t"]
    for table, name, quantize in [
        (NoiseTable(ALPHAS), "eps.q0", False),
        (NoiseTable(ALPHAS), "eps.q1", True),
        (LcmTable(ALPHAS), "lcm", False),
    ]:
        torch.testing.assert_close(table.sigma_to_t(sigma, quantize).float(), mappings[name + ".sigma_to_t"])
        torch.testing.assert_close(table.t_to_sigma(t), mappings[name + ".t_to_sigma"], rtol=1e-6, atol=0)
        assert float(table.sigma_to_t(sigma[3], quantize)) == pytest.approx(float(mappings[name + ".sigma_to_t"][3]))


@pytest.mark.goldens
def test_consistency_models_read_x0_between_skip_and_output(mappings):
    """The recorded toy model: out(x, t) = 0.3 x + sin(t / 100) + 0.1."""
    x, sigma = mappings["x"], mappings["sigma"].view(-1, 1, 1, 1)
    t = LcmTable(ALPHAS).sigma_to_t(sigma)
    c_skip, c_out = LcmTable(ALPHAS).boundary_scalings(t)
    out = 0.3 * x / (sigma**2 + 1) ** 0.5 + torch.sin(t / 100) + 0.1
    torch.testing.assert_close(c_skip * x + c_out * (x - sigma * out), mappings["lcm.denoised"], rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(label=st.sampled_from(sorted(SCHEDULES)), steps=st.integers(2, 60), is_sdxl=st.booleans())
def test_sigmas_fall(label, steps, is_sdxl):
    sigmas = make_sigmas(label, steps, ALPHAS, is_sdxl=is_sdxl)
    assert (sigmas[:-1] > sigmas[1:]).all() and sigmas.isfinite().all()
    assert len(sigmas) == steps + 1 or label == "DDIM"
    assert sigmas[-1] == (pytest.approx(0.0291675, rel=1e-5) if label == "KL Optimal" else 0)


@settings(deadline=None, max_examples=40)
@given(t=st.floats(0, 999))
def test_timestep_and_sigma_undo_each_other(t):
    table = NoiseTable(ALPHAS)
    assert float(table.sigma_to_t(table.t_to_sigma(torch.tensor(t)))) == pytest.approx(t, abs=2e-2)


@pytest.mark.parametrize("label", [label for label in SCHEDULES if label not in ("KL Optimal", "DDIM")])
def test_discarding_drops_the_last_sigma_above_zero_of_one_step_more(label):
    discarded = make_sigmas(label, 9, ALPHAS, options={"always_discard_next_to_last_sigma": True})
    longer = make_sigmas(label, 10, ALPHAS)
    assert torch.equal(discarded, torch.cat([longer[:9], longer[10:]]))


def test_a_sampler_without_a_schedule_has_no_use_for_the_range():
    narrow = {"sigma_min": 0.1, "sigma_max": 10.0}
    assert torch.equal(make_sigmas(None, 8, ALPHAS, sampler="Euler", options=narrow), make_sigmas(None, 8, ALPHAS))
    assert make_sigmas(None, 8, ALPHAS, sampler="DPM++ 2M", options=narrow)[0] == pytest.approx(10.0)
    old = {"use_old_karras_scheduler_sigmas": True}
    assert make_sigmas("Exponential", 8, ALPHAS, options=old)[[0, -2]].tolist() == pytest.approx([10.0, 0.1])


def test_zero_terminal_snr_keeps_the_first_level():
    alphas = scheduled_alphas_cumprod(ALPHAS, ZERO_SNR)
    assert alphas[0] == pytest.approx(ALPHAS[0].item(), rel=1e-6)
    assert NoiseTable(alphas).sigma_max == pytest.approx(4518, rel=1e-3)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: make_sigmas("Karas", 8, ALPHAS), "'Karras'"),
        (lambda: make_sigmas("Karras", 8, ALPHAS, sampler="Eulr"), "'Euler'"),
        (lambda: make_sigmas("xyzzy", 8, ALPHAS), "Known: .*'Align Your Steps'"),
        (lambda: make_sigmas("Karras", 0, ALPHAS), "at least 1"),
        (lambda: make_sigmas("Karras", 8, ALPHAS, options={"sd_noise_schedule": "zsnr"}), "Zero Terminal SNR"),
        (lambda: NoiseTable(torch.tensor([0.9, 0.5, 0.0])), "zero terminal"),
    ],
)
def test_what_has_no_sigmas_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
