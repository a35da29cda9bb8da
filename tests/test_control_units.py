"""`control_units` read as the webui's extension reads its API, and told as it tells them."""

import pytest
from recordings import recorded_json
from webui_diffusers.pipelines.cli.axes import read_axis
from webui_diffusers.pipelines.control.units import UNIT_RESIZE_MODES, read_units, unit_text, unit_texts
from webui_diffusers.pipelines.control.weights import guess_mode_scales, residual_scales, unit_rows
from webui_diffusers.pipelines.images.hints.fit import HINT_RESIZE_MODES


TOLD = recorded_json("controlnet/infotext.json", "fields_to_text", 20)
RUNS = recorded_json("controlnet/runs.json", "runs", 90)


@pytest.mark.parametrize("row", [row for row in TOLD if "fields" in row], ids=lambda row: str(row["given"])[50:])
def test_a_unit_is_told_as_recorded(row):
    (unit,) = read_units([row["given"]])
    fields = {name: getattr(unit, name) for name in row["fields"]}
    assert fields == row["fields"]
    assert {name: type(value) for name, value in fields.items()} == {k: type(v) for k, v in row["fields"].items()}
    assert unit_text(unit) == row["text"]


@pytest.mark.parametrize("row", [row for row in TOLD if "error" in row], ids=lambda row: str(row["given"])[50:])
def test_a_unit_that_the_extension_refuses_is_refused(row):
    if "unknown module" in row["note"]:
        pytest.skip("modules are looked up when the control image is made")
    with pytest.raises(ValueError, match=r"control_units\[0\]"):
        read_units([row["given"]])


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run["name"])
def test_units_of_a_run_stand_in_its_text(run):
    units = read_units(run["units"])
    assert len(units) == len(run["enabled_fields"])
    for name, text in unit_texts(units).items():
        assert f'{name}: "{text}"' in run["infotext"]


@pytest.mark.parametrize("run", [run for run in RUNS if run["scales"]], ids=lambda run: run["name"])
def test_residuals_are_weighted_as_recorded(run):
    units = read_units(run["units"])
    second = [call["total"] != run["calls"][0]["total"] or not call["rows_marked"] for call in run["calls"]]
    for call in run["calls"]:
        for used in call["units"]:
            recorded = run["scales"][used["scales"]]
            scales = residual_scales(units[used["unit"]], len(recorded), second_pass=used["hires_hint"])
            assert scales == pytest.approx(recorded, rel=1e-6)
    assert any(second) == bool(run["params"].get("enable_hr"))


def test_soft_weights_fall_from_the_twelfth_residual_whatever_their_number():
    (unit,) = read_units([{"control_mode": 1}])
    assert residual_scales(unit, 13)[-1] == 1.0
    assert residual_scales(unit, 10)[-1] == pytest.approx(0.5615, abs=1e-4)
    assert residual_scales(unit, 13)[0] == residual_scales(unit, 7)[0] == pytest.approx(0.0994, abs=1e-4)


def test_diffusers_guess_mode_rises_from_a_tenth_to_the_whole():
    assert guess_mode_scales(2.0, 3) == pytest.approx([0.2, 2 * 10**-0.5, 2.0])


def test_each_unit_may_act_on_one_image_of_the_batch():
    uncond = [False, False, False, True, True, True]
    assert unit_rows(0, 2, uncond) == [1, 0, 1, 1, 0, 1]
    assert unit_rows(1, 2, uncond) == [0, 1, 0, 0, 1, 0]


def test_rows_that_are_not_told_apart_are_counted_as_one_kind():
    assert unit_rows(0, 2, [False, True], marked=False) == [1, 0]
    assert unit_rows(1, 3, [False, False, True, True], marked=False) == [0, 1, 0, 0]


def test_units_that_are_not_enabled_do_not_exist():
    units = read_units([{"enabled": False, "weight": 0.1}, {"weight": 0.2}])
    assert [unit.weight for unit in units] == [0.2] and units[0].place == 1
    assert list(unit_texts(units)) == ["ControlNet 0"]


def test_names_of_other_versions_and_numbers_mean_the_same():
    (unit,) = read_units({"control_mode": "ControlMode.CONTROL", "resize_mode": 2, "hr_option": "High res only"})
    assert (unit.control_mode, unit.resize_mode) == ("ControlNet is more important", "Resize and Fill")


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        ({"wieght": 1}, "Did you mean 'weight'"),
        ({"weight": 2.5}, "`weight` is 2.5"),
        ({"weight": "strong"}, "no number"),
        ({"control_mode": "balanced?"}, "Did you mean 'Balanced'"),
        ({"resize_mode": 7}, "'Just Resize'"),
        ({"hr_option": "high"}, "High res only"),
        ({"guidance_end": 1.1}, "shares of the steps"),
        ({"guidance_start": float("nan")}, "no number"),
        ({"advanced_weighting": "soft"}, "list of numbers"),
        ("photo.png", "pass a dict"),
    ],
)
def test_bad_units_are_refused_by_place_and_key(unit, message):
    with pytest.raises(ValueError, match=message) as error:
        read_units([{}, unit])
    assert "control_units[1]" in str(error.value)


def test_images_are_fitted_by_the_modes_that_units_have():
    assert UNIT_RESIZE_MODES == HINT_RESIZE_MODES


def test_weighting_of_another_length_is_refused():
    (unit,) = read_units([{"advanced_weighting": [1, 2, 3]}])
    with pytest.raises(ValueError, match="3 factors.*13 residuals"):
        residual_scales(unit, 13)


def test_a_network_is_told_by_its_files_name():
    (unit,) = read_units([{"model": "nets/canny.safetensors"}])
    assert "Model: canny, " in unit_text(unit)


def test_an_axis_of_a_grid_changes_the_first_unit():
    axis = read_axis("ControlNet weight=0.5,1")
    changed = [change({"control_units": [{"weight": 0.1, "model": "a"}, {}]}) for change in axis.changes]
    assert [call["control_units"][0]["weight"] for call in changed] == [0.5, 1] and len(axis.labels) == 2
    assert read_axis('[ControlNet] Control Mode="My prompt is more important"').labels[0].startswith("My prompt")
    with pytest.raises(ValueError, match="--control"):
        axis.changes[0]({})
    with pytest.raises(ValueError, match="weight"):
        read_axis("ControlNet weight=5")
    with pytest.raises(ValueError, match="Did you mean 'guidance_end'"):
        read_axis("ControlNet guidance ends=0.5")
