"""The settings of a detailing pass: read, checked, written to a text and read from it."""

import pytest
from recordings import recorded_json
from webui_diffusers.pipelines.detailer_settings import (
    DETAILER_SETTINGS,
    detailer_fields,
    detailers_of_fields,
    pass_suffix,
    read_detailer,
    read_detailers,
)
from webui_diffusers.pipelines.infotext import parse_infotext


LABELS = {row.label: name for name, row in DETAILER_SETTINGS.items()}


def is_valid(tab: dict) -> bool:
    try:
        return read_detailer(tab) is not None
    except ValueError:
        return False


@pytest.mark.goldens
@pytest.mark.parametrize("case", recorded_json("detailer/text_cases.json", "adetailer_to_text", 20))
def test_fields_are_those_of_the_recordings(case: dict):
    """A tab that does not validate is dropped by the webui, and later ones move up; here it is refused."""
    fields = detailer_fields(read_detailers([tab for tab in case["tabs"] if is_valid(tab)]).passes)
    assert list(fields.items()) == list(case["fields"].items())


@pytest.mark.goldens
@pytest.mark.parametrize("case", recorded_json("detailer/text_cases.json", "adetailer_from_text", 10))
def test_texts_are_read_as_the_webui_reads_them(case: dict):
    """Where a label is one that the webui still knows, and the pass has a model."""
    read = detailers_of_fields(parse_infotext(case["text"]))
    wanted: dict[int, dict] = {}
    for label, value in case["changes"].items():
        label, number = (label[:-4], int(label[-3])) if label.endswith(("2nd", "3rd", "4th")) else (label, 1)
        name = LABELS.get(label.removeprefix("ADetailer "))
        if name is not None:
            value = int(value) if DETAILER_SETTINGS[name].kind is int else value
            wanted.setdefault(number, {})[name] = value
    old = "inpaint width/height" in case["text"]  # of a version whose labels the webui no longer reads
    for number, settings in wanted.items():
        own = read[number - 1]
        assert ({k: own[k] for k in settings} if old else own) == settings
    assert len(read) == max(wanted, default=0)


def test_a_text_gives_the_settings_it_was_written_from():
    given = [
        {"ad_model": "a.pt", "ad_mask_k": 2, "ad_prompt": "x", "ad_use_sampler": True, "ad_sampler": "Euler"},
        {"ad_model": "None"},
        {"ad_model": "b.pt", "ad_inpaint_only_masked": False, "ad_denoising_strength": 0.25, "ad_restore_face": True},
    ]
    fields = detailer_fields(read_detailers(given).passes)
    back = read_detailers(detailers_of_fields({label: str(value) for label, value in fields.items()}))
    assert [dict(one.settings) for one in back.passes] == [dict(one.settings) for one in read_detailers(given).passes]


def test_texts_of_early_versions_are_read():
    fields = {
        "ADetailer model": "face_yolov8n.pt",
        "ADetailer conf": "30",
        "ADetailer dilate/erode": "32",
        "ADetailer inpaint full": "True",
        "ADetailer version": "23.5.6",
    }
    assert detailers_of_fields(fields) == [
        {"ad_model": "face_yolov8n.pt", "ad_confidence": 0.3, "ad_dilate_erode": 32, "ad_inpaint_only_masked": True}
    ]


def test_names_come_with_or_without_their_prefix_and_numbers_as_texts():
    one = read_detailer({"model": "face", "confidence": "0.45", "mask_blur": 4.7, "restore_face": "true"})
    assert (one["ad_model"], one["ad_confidence"], one["ad_mask_blur"], one["ad_restore_face"]) == (
        "face",
        0.45,
        4,
        True,
    )


@pytest.mark.parametrize(
    "given, said",
    [
        ({"ad_model": "face", "ad_confidense": 1}, "'ad_confidence'"),
        ({"ad_model": "face", "denoise_strength": 1}, "ad_denoising_strength"),
        ({"ad_confidence": 1.5}, "`ad_confidence` must be from 0 to 1; got 1.5"),
        ({"ad_mask_k": -1}, "`ad_mask_k` must be 0 or more; got -1"),
        ({"ad_mask_blur": "soft"}, "`ad_mask_blur` must be a whole number; got 'soft'"),
        ({"ad_restore_face": "perhaps"}, "`ad_restore_face` must be True or False"),
        ({"ad_confidence": float("nan")}, "`ad_confidence` must be a number"),
        ({"ad_mask_merge_invert": "merge"}, "Did you mean 'Merge'"),
        ("face", "a pass is a dict"),
    ],
)
def test_what_is_no_setting_is_refused(given: object, said: str):
    with pytest.raises(ValueError, match="pass 2") as refusal:
        read_detailers([{"ad_model": "face"}, given])
    assert said in str(refusal.value)


def test_the_api_form_has_two_switches_before_the_passes():
    assert read_detailers([True, True, {"ad_model": "face"}]).skip_img2img
    assert not read_detailers([True, False, {"ad_model": "face"}]).skip_img2img
    assert read_detailers([False, False, {"ad_model": "face"}]).active == []


def test_inactive_passes_keep_their_number():
    plan = read_detailers([{"ad_model": "None"}, {"ad_model": "x", "ad_tab_enable": False}, {"detections": [None]}])
    assert [one.number for one in plan.active] == [3]
    assert "ADetailer model 3rd" in detailer_fields(plan.passes)


def test_ordinals():
    assert [pass_suffix(n) for n in (1, 2, 3, 4, 11, 21)] == ["", " 2nd", " 3rd", " 4th", " 11th", " 21st"]
