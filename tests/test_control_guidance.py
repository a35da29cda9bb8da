"""When a unit acts, and what it adds: recorded numbers, and some worked out by hand."""

import json

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from recordings import GOLDEN
from safetensors.torch import load_file
from webui_diffusers.pipelines.control.guidance import (
    ActiveControl,
    ControlGuidance,
    ControlInput,
    KeptImage,
    control_residuals,
)
from webui_diffusers.pipelines.control.units import read_units
from webui_diffusers.pipelines.control.weights import residual_scales


FOLDER = GOLDEN / "controlnet"


class Doubling(torch.nn.Module):
    """A network of three residuals: 1, 2 and 3 times the input."""

    dtype = torch.float32

    def forward(self, sample, timestep, **kwargs):
        self.seen = kwargs
        self.rows = len(sample)
        return [sample, sample * 2], sample * 3


def given(uncond=(False, True), **changes):
    x = torch.ones(len(uncond), 1, 2, 2)
    values = {
        "x": x,
        "t": torch.tensor(5.0),
        "embeds": torch.zeros(len(uncond), 3, 4),
        "added": {},
        "images": [0] * len(uncond),
        "uncond": list(uncond),
    }
    return ControlInput(**{**values, **changes})


def control(**changes):
    values = {"model": Doubling(), "hints": [torch.zeros(1, 3, 16, 16)], "scales": lambda n: [1.0] * n}
    return ActiveControl(**{**values, **changes})


@pytest.fixture(scope="module")
def run():
    runs = json.loads((FOLDER / "runs.json").read_text(encoding="utf-8"))["runs"]
    return next(run for run in runs if run["name"] == "mode_c_w1.0")


@torch.no_grad()
def test_a_recorded_evaluation_comes_out(run):
    recorded = load_file(FOLDER / "runs" / "mode_c_w1.0.safetensors")
    image = load_file(FOLDER / "pictures.safetensors")[run["hints"]["0"]["hint"]]
    network = ControlNetModel.from_pretrained(FOLDER / "models" / "tiny-controlnet")
    unet = UNet2DConditionModel.from_pretrained(GOLDEN / "tiny-sd" / "unet")
    (unit,) = read_units(run["units"])
    unit_control = ActiveControl(
        network,
        [image.permute(2, 0, 1)[None] / 255],
        lambda count: residual_scales(unit, count),
        uncond=0.0,
    )
    x, t, context = (recorded[f"probe.{name}"] for name in ("x", "t", "context"))
    row = ControlInput(x, t[0], context, {}, [0, 0], [False, True])
    plain = control_residuals(ActiveControl(network, unit_control.hints, lambda count: [1.0] * count), row)
    for i, residual in enumerate([*plain.down, plain.mid]):
        assert torch.allclose(residual[:1], recorded[f"probe.residual.0.{i}"][:1], atol=1e-5)
    down, mid = ControlGuidance([unit_control], 8).residuals(row)
    eps = unet(x, t, context, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
    assert torch.allclose(eps, recorded["probe.eps"], atol=1e-5)


def test_residuals_are_factor_times_scale_times_network():
    added = control_residuals(control(scales=lambda n: [0.5, 1.0, 2.0], uncond=0.0), given())
    assert [float(r[0, 0, 0, 0]) for r in (*added.down, added.mid)] == [0.5, 2.0, 6.0]
    assert [float(r[1].abs().max()) for r in (*added.down, added.mid)] == [0, 0, 0]


def test_units_are_added_and_not_averaged():
    guidance = ControlGuidance([control(), control(scales=lambda n: [0.25] * n)], 4)
    down, mid = guidance.residuals(given())
    assert float(down[0].max()) == 1.25 and float(mid.max()) == 3.75


def test_guess_mode_leaves_rows_of_the_negative_prompt_out_of_the_network():
    one = control(conds_only=True)
    added = control_residuals(one, given((False, True, False)))
    assert one.model.rows == 2
    assert [float(value) for value in added.mid[:, 0, 0, 0]] == [3.0, 0.0, 3.0]
    assert control_residuals(one, given((True,))) is None


def test_each_image_of_a_batch_sees_its_own_control_image():
    one = control(hints=[torch.arange(2.0)[:, None, None, None].expand(2, 3, 16, 16)])
    control_residuals(one, given((False, False, True), images=[0, 1, 0]))
    assert [float(value) for value in one.model.seen["controlnet_cond"][:, 0, 0, 0]] == [0.0, 1.0, 0.0]


def test_a_region_limits_where_residuals_act_and_pooling_leaves_their_mean():
    region = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    added = control_residuals(control(region=region), given())
    assert added.down[0][0, 0].tolist() == [[0.0, 1.0], [0.0, 1.0]]
    pooled = control_residuals(control(pooled=True), given(x=torch.arange(8.0).reshape(2, 1, 2, 2)))
    assert pooled.down[0].shape == (2, 1, 1, 1) and float(pooled.down[0][0]) == 1.5


@pytest.mark.parametrize(
    ("evaluations", "tries", "counters"),
    [
        ([1] * 5, None, [0, 0, 1, 2, 3]),  # Euler
        ([2, 2, 2, 1], None, [0, 0, 0, 1, 1, 2, 2]),  # Heun
        ([2, 1, 1], None, [0, 0, 0, 1]),  # PLMS; UniPC begins so too
        ([3, 6, 3], 3, [0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2]),  # DPM adaptive, which rejected a try
    ],
)
def test_the_counter_lags_a_step_behind(evaluations, tries, counters):
    guidance, seen = ControlGuidance([], len(evaluations), tries=tries), []
    for count in evaluations:
        for _ in range(count):
            seen.append(guidance.counter)
            guidance.end_evaluation()
        guidance.end_step()
    assert seen == counters


@pytest.mark.parametrize(
    ("start", "end", "whole_steps", "active"),
    [
        (0.0, 1.0, False, [1, 1, 1, 1]),
        (0.25, 0.25, False, [0, 0, 1, 0]),
        (0.0, 0.0, False, [1, 1, 0, 0]),
        (0.75, 1.0, False, [0, 0, 0, 0]),  # the counter never comes there
        (0.25, 0.75, True, [0, 1, 1, 0]),
        (0.0, 0.6, True, [1, 1, 0, 0]),
    ],
)
def test_windows_of_the_extension_and_of_diffusers(start, end, whole_steps, active):
    guidance = ControlGuidance([control(start=start, end=end, whole_steps=whole_steps)], 4)
    seen = []
    for _ in range(4):
        seen.append(len(guidance.active()))
        guidance.end_evaluation()
        guidance.end_step()
    assert seen == active


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_inpaint_only_draws_what_is_kept_towards_the_image(prediction_type):
    ac = torch.linspace(0.99, 0.01, 10)
    signal, noise = ac[5].sqrt(), (1 - ac[5]).sqrt()
    x0, eps, init = torch.randn(1, 1, 2, 2), torch.randn(1, 1, 2, 2), torch.randn(1, 1, 2, 2)
    x = signal * x0 + noise * eps
    output = {"epsilon": eps, "v_prediction": signal * eps - noise * x0, "sample": x0}[prediction_type]
    mask = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    kept = KeptImage(lambda: init, mask, 1.0)
    new = ControlGuidance([], 4, kept=[kept]).keep(output, x, 5.0, ac, prediction_type)
    aim = {
        "epsilon": (x - noise * new) / signal,
        "v_prediction": signal * x - noise * new,
        "sample": new,
    }[prediction_type]
    torch.testing.assert_close(aim, x0 * mask + init * (1 - mask), atol=1e-4, rtol=1e-4)


def test_inpaint_only_encodes_once_and_mixes_by_its_weight():
    calls = []
    kept = KeptImage(lambda: calls.append(1) or torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), 0.25)
    guidance = ControlGuidance([], 4, kept=[kept])
    x0 = torch.full((1, 1, 2, 2), 4.0)
    for _ in range(2):
        new = guidance.keep(x0, torch.ones(1, 1, 2, 2), 5.0, torch.linspace(0.99, 0.01, 10), "sample")
    assert len(calls) == 1 and torch.equal(new, torch.full((1, 1, 2, 2), 3.0))
