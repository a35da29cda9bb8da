"""What units do in each pass, by numbers worked out by hand: hires options, which rows, the size of the hint."""

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from recordings import GOLDEN, recorded_json
from tiny_union import union_network
from webui_diffusers.pipelines.control.units import read_units, unit_texts
from webui_diffusers.pipelines.controlled import UnitControls
from webui_diffusers.pipelines.images.hints.prepare import ControlImage
from webui_diffusers.pipelines.infotext import control_units_of_fields


OLD_FORMATS = recorded_json("controlnet/infotext.json", "old_formats", 11)
FIRST, SECOND, BOTH = (
    {"second": False, "hires": True, "marked": True},
    {"second": True, "hires": True, "marked": False},
    {"second": True, "hires": True, "marked": True},  # scale 1, or the first pass's texts used again
)
ALONE = {"second": False, "hires": False, "marked": True}


@pytest.fixture(scope="module")
def network():
    return ControlNetModel.from_pretrained(GOLDEN / "controlnet" / "models" / "tiny-controlnet")


def controls(network, *units, each=False):
    read = read_units(units)
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    images = [[ControlImage(image, unit.resize_mode)] for unit in read]
    return UnitControls(read, images, [network] * len(read), cell=32, each=each)


def in_pass(controls, size=(64, 64), **which):
    return controls.in_pass(size, [0], **which)


@pytest.mark.parametrize(
    ("hr_option", "active"),  # alone, first, second, and both where the heights are equal
    [("Both", [1, 1, 1, 1]), ("Low res only", [1, 1, 0, 0]), ("High res only", [1, 0, 1, 1])],
)
def test_a_unit_acts_in_the_passes_that_it_names(network, hr_option, active):
    unit = controls(network, {"hr_option": hr_option})
    assert [len(in_pass(unit, **which).active) for which in (ALONE, FIRST, SECOND, BOTH)] == active


def test_inpaint_only_keeps_its_image_in_passes_that_it_does_not_act_in(network):
    unit = controls(network, {"hr_option": "Low res only", "module": "inpaint_only", "weight": 1.5})
    unit.images[0][0] = ControlImage(np.zeros((64, 64, 4), np.float32), "Just Resize")
    passed = in_pass(unit, size=(128, 128), **SECOND)
    (kept,) = passed.kept
    assert not passed.active and kept.strength == 1.0 and kept.image.shape == (128, 128, 4)


@pytest.mark.parametrize(
    ("mode", "uncond"),  # of rows of the negative prompt: alone, first, second, both
    [(0, [1, 1, 1, 1]), (1, [1, 1, 1, 1]), (2, [0, 0, 1, 0])],
)
def test_the_negative_prompt_is_free_only_where_its_rows_are_marked(network, mode, uncond):
    unit = controls(network, {"control_mode": mode})
    assert [in_pass(unit, **which).active[0].uncond for which in (ALONE, FIRST, SECOND, BOTH)] == uncond


def test_a_network_that_shuffles_leaves_the_negative_prompt_free_in_every_mode(network):
    unit = controls(network, {"model": "control_v11e_sd15_shuffle [526bfdae]"})
    found = [in_pass(unit, **which).active[0] for which in (ALONE, FIRST, SECOND)]
    assert [one.uncond for one in found] == [0, 0, 1] and all(one.pooled for one in found)


@pytest.mark.parametrize(
    ("unit", "scales"),  # the first and the last of seven: alone, and in the second pass
    [
        ({"weight": 2}, [(2, 2), (2, 2)]),
        ({"weight": 2, "control_mode": 1}, [(2 * 0.825**12, 2 * 0.825**6)] * 2),
        ({"module": "canny"}, [(1, 1), (0.825**12, 0.825**6)]),
        ({"module": "mlsd", "control_mode": 2}, [(0.825**12, 0.825**6)] * 2),
        ({"module": "canny", "advanced_weighting": [9, 0, 0, 0, 0, 0, 5], "weight": 0}, [(9, 5)] * 2),
    ],
)
def test_scales_are_the_modes_and_soft_behind_edges_in_the_second_pass(network, unit, scales):
    for which, (first, last) in zip((ALONE, SECOND), scales, strict=True):
        found = in_pass(controls(network, unit), **which).active[0].scales(7)
        assert (found[0], found[-1]) == pytest.approx((first, last), rel=1e-12)


def test_the_middle_of_sdxl_is_weighed_like_any_other(network):
    scales = in_pass(controls(network, {"control_mode": 1}), **ALONE).active[0].scales(10)
    assert scales[-1] == pytest.approx(0.5615, abs=1e-4) and scales[-2] == pytest.approx(0.4633, abs=1e-4)


def test_the_hint_of_the_second_pass_is_made_from_the_image_and_not_from_the_first_hint(network):
    unit = controls(network, {"resize_mode": "Just Resize"})
    large = in_pass(unit, size=(128, 96), **SECOND).active[0].hints[0]
    assert large.shape == (1, 3, 96, 128) and 0 <= float(large.min()) and float(large.max()) <= 1
    own = in_pass(unit, size=(64, 48), **FIRST).active[0].hints[0]
    assert torch.equal(own[0].permute(1, 2, 0) * 255, torch.from_numpy(unit.images[0][0].image).float())


def test_each_unit_takes_its_image_and_in_the_second_pass_all_rows_count(network):
    units = controls(network, {}, {}, each=True)
    rows = [False, False, True, True, True]
    marked = [one.rows(rows) for one in in_pass(units, **FIRST).active]
    unmarked = [one.rows(rows) for one in in_pass(units, **SECOND).active]
    assert marked == [[1, 0, 1, 0, 1], [0, 1, 0, 1, 0]] and unmarked == [[1, 0, 1, 0, 1], [0, 1, 0, 1, 0]]
    odd = [False, True]
    assert [one.rows(odd) for one in in_pass(units, **FIRST).active] == [[1, 1], [0, 0]]
    assert [one.rows(odd) for one in in_pass(units, **SECOND).active] == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("size", "hooked"), [((64, 64), False), ((64, 96), False), ((64, 72), True), ((40, 64), True)]
)
def test_sides_that_do_not_halve_are_told(network, size, hooked):
    assert in_pass(controls(network, {}), size=size, **ALONE).hooked is hooked


def test_a_network_of_many_tasks_does_that_of_the_module_or_the_named_one(network):
    union = union_network()
    for unit, tasks in (({"module": "canny"}, (3,)), ({"union_control_type": "depth"}, (1,))):
        assert in_pass(controls(union, unit), **ALONE).active[0].tasks == tasks
    assert in_pass(controls(network, {"module": "canny"}), **ALONE).active[0].tasks == ()


# --- texts


@pytest.mark.parametrize("row", OLD_FORMATS, ids=lambda row: f"{row['era']}-{row['dates']}")
def test_units_of_every_era_are_written_as_the_newest_and_read_back_the_same(row):
    told = ("module", "model", "weight", "guidance_start", "guidance_end", "control_mode", "resize_mode")
    told += ("processor_res", "threshold_a", "threshold_b", "pixel_perfect")
    before = read_units(list(control_units_of_fields(row["keys"]).values()))
    after = read_units(list(control_units_of_fields(unit_texts(before)).values()))
    assert len(before) == len(after) == len(row["fields"])
    for one, other in zip(before, after, strict=True):
        assert [getattr(one, name) for name in told] == [getattr(other, name) for name in told]
