"""ControlNet units out of texts of every version of the extension."""

import pytest
from recordings import recorded_json
from webui_diffusers.loaders.utils import NameFromText
from webui_diffusers.pipelines.control.units import read_units
from webui_diffusers.pipelines.infotext import control_units_of_fields, parse_infotext


READ_BACK = recorded_json("controlnet/infotext.json", "text_to_fields", 14)
OLD_FORMATS = recorded_json("controlnet/infotext.json", "old_formats", 11)
WHOLE_LINES = recorded_json("controlnet/infotext.json", "whole_lines", 6)


@pytest.mark.parametrize("row", OLD_FORMATS, ids=lambda row: f"{row['era']}-{row['dates']}")
def test_units_of_every_era_are_read(row: dict):
    assert control_units_of_fields(row["keys"]) == {int(number): unit for number, unit in row["fields"].items()}


@pytest.mark.parametrize("row", WHOLE_LINES, ids=lambda row: row["name"])
def test_units_of_a_recorded_text_are_read_and_understood(row: dict):
    units = list(control_units_of_fields(parse_infotext(row["infotext"])).values())
    assert units == row["units"]
    assert len(read_units(units)) == len(units)


@pytest.mark.parametrize("row", READ_BACK, ids=lambda row: row["note"] or str(row["keys"])[:40])
def test_what_the_extension_reads_is_read_and_nothing_is_filled_in(row: dict):
    (label,) = row["keys"]
    unit = control_units_of_fields(row["keys"]).get(0, {})
    for name, value in row["result"].items():
        key = name.removeprefix(f"{label} ")
        if key in unit and "out of range" not in row["note"] and not key.startswith("threshold"):
            assert unit[key] == value, key
    if row["note"] == "start > end":
        assert unit == {}


@pytest.mark.parametrize(
    "fields",
    [
        {"ControlNet 0": ""},
        {"ControlNet 0": "Weight: 1"},
        {"ControlNet 0": "Module: canny, Model: x, Weight: many"},
        {"ControlNet 0": "Module: canny, Model: x, Weight: 3"},
        {"ControlNet 0": "Module: canny, Model: x, Control Mode: balanced"},
        {"ControlNet 0": "Module: none, Model: None"},
        {"ControlNet 0 Enabled": "False", "ControlNet 0 Module": "canny", "ControlNet 0 Model": "x"},
        {"ControlNet 0": "(" * 5000, "ControlNet 9999": "Model: x", "ControlNets": "Model: x"},
    ],
)
def test_what_is_no_unit_is_left_out(fields: dict):
    assert control_units_of_fields(fields) == {}


def test_a_model_out_of_a_text_is_a_name():
    unit = control_units_of_fields({"ControlNet 1": "Module: None, Model: ../../x/y.pth [aaaaaaaa]"})[1]
    assert unit == {"module": "none", "model": "y.pth [aaaaaaaa]"} and isinstance(unit["model"], NameFromText)
