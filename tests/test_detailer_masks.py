"""From boxes to masks and jobs of a detailing pass, compared with what ADetailer made of the same boxes."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from recordings import GOLDEN, recorded_json
from safetensors.numpy import load_file
from webui_diffusers.pipelines.detailer_settings import read_detailer
from webui_diffusers.pipelines.images.detail.boxes import (
    Detection,
    boxes_by_ratio,
    confident_boxes,
    read_detection,
    sorted_boxes,
    top_boxes,
)
from webui_diffusers.pipelines.images.detail.jobs import DetailTexts, detail_jobs, job_size
from webui_diffusers.pipelines.images.detail.regions import DetailRegions, box_mask, detail_regions, grown_mask
from webui_diffusers.pipelines.options import WEBUI_OPTIONS


CASES = recorded_json("detailer/mask_cases.json", "cases", 50)
TENSORS = load_file(GOLDEN / "detailer" / "mask_cases.safetensors")
RED = DetailTexts("red", "bad", 100, 7)


def recorded_mask(name: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(TENSORS[f"{name}.png"].tobytes())))


def case_detection(case: dict) -> Detection:
    masks = None if case["masks"] is None else TENSORS[case["masks"]]
    return read_detection({"bboxes": case["bboxes"], "confidences": case["confidences"], "masks": masks}, "case")


def case_pass(case: dict):
    s = case["settings"]
    renamed = {"filter_method": "mask_filter_method", "k": "mask_k", "merge_invert": "mask_merge_invert"}
    renamed |= {"min_ratio": "mask_min_ratio", "max_ratio": "mask_max_ratio"}
    return read_detailer({"ad_model": "x", **{renamed.get(k, k): v for k, v in s.items() if k != "sortby"}})


@pytest.mark.goldens
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_boxes_are_filtered_and_sorted_as_recorded(case: dict):
    found, one, size = case_detection(case), case_pass(case), tuple(case["size"])
    kept = confident_boxes(found, one["ad_confidence"])
    assert kept == case["kept_by_confidence"]
    ratio = boxes_by_ratio(found.take(kept), size, one["ad_mask_min_ratio"], one["ad_mask_max_ratio"])
    assert ratio == case["after_ratio"]
    left = found.take(kept).take(ratio)
    top = top_boxes(left, one["ad_mask_k"], one["ad_mask_filter_method"])
    assert [ratio[i] for i in top] == case["after_k"]
    order = sorted_boxes(left.take(top), size, case["settings"]["sortby"])
    assert [ratio[top[i]] for i in order] == case["after_sort"]


@pytest.mark.goldens
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_masks_are_the_recorded_ones_to_the_last_level(case: dict):
    size = tuple(case["size"])
    regions = detail_regions(case_detection(case), size, case_pass(case), order=case["settings"]["sortby"])
    assert len(regions.masks) == case["n_masks"]
    for n, mask in enumerate(regions.masks):
        np.testing.assert_array_equal(np.asarray(mask), recorded_mask(f"{case['name']}.out.{n}"))


def test_both_ends_of_a_box_belong_to_it_and_coordinates_are_cut():
    mask = box_mask((1.9, -0.9, 3.9, 2.2), (6, 5))
    rows, columns = np.nonzero(mask)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (1, 3, 0, 2)


def test_growth_of_an_even_square_reaches_further_right_and_down():
    mask = np.zeros((9, 9), np.uint8)
    mask[4, 4] = 255
    rows, columns = np.nonzero(grown_mask(mask, 4))
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (3, 6, 3, 6)
    np.testing.assert_array_equal(grown_mask(grown_mask(mask, 3), -3), mask)


def test_masks_that_miss_the_outer_mask_are_dropped():
    outer = Image.fromarray(box_mask((0, 0, 4, 4), (20, 20)))
    found = Detection(((1, 1, 3, 3), (10, 10, 12, 12)), (0.9, 0.8))
    one = read_detailer({"ad_model": "x", "ad_dilate_erode": 0})
    assert len(detail_regions(found, (20, 20), one, within=outer).masks) == 1


@pytest.mark.parametrize(
    "found, said",
    [
        ({"boxes": []}, "keys"),
        ({"bboxes": [[1, 2, 3]]}, "rows x1, y1, x2, y2"),
        ({"bboxes": [[1, 2, 3, 4]], "confidences": []}, "each with a score"),
        ({"bboxes": [[1, 2, 3, float("nan")]]}, "finite"),
        ({"bboxes": [[1, 2, 3, 4]], "masks": np.zeros((2, 4, 4))}, "one a box"),
        (3, "is a dict"),
    ],
)
def test_what_is_no_detection_is_refused(found: object, said: str):
    with pytest.raises(ValueError, match=said):
        read_detection(found, "`detections`")


def jobs_of(settings: dict, boxes: int = 3, size=(96, 64), options: dict | None = None, sdxl: bool = False):
    masks = [Image.new("L", (96, 64), 255)] * boxes
    regions = DetailRegions(((10.0, 8.0, 40.0, 28.0),) * boxes, masks)
    one = read_detailer({"ad_model": "x", **settings})
    return detail_jobs(regions, one, RED, size, {**WEBUI_OPTIONS, **(options or {})}, is_sdxl=sdxl)


def test_seeds_count_on_from_mask_to_mask_and_may_stay():
    assert [(job.seed, job.subseed) for job in jobs_of({})] == [(100, 7), (101, 8), (102, 9)]
    same = jobs_of({}, options={"ad_same_seed_for_each_tab": True})
    assert [(job.seed, job.subseed) for job in same] == [(100, 7)] * 3


@pytest.mark.parametrize(
    "prompt, drawn",
    [
        ("", ["red", "red", "red"]),
        ("cat", ["cat", "cat", "cat"]),
        ("cat [SEP] dog", ["cat", "dog", "dog"]),
        ("cat[SEP]", ["cat", "red", "red"]),
        ("[PROMPT], big[SEP] [PROMPT] [PROMPT]", ["red, big", "red red", "red red"]),
        ("  ", ["  ", "  ", "  "]),
    ],
)
def test_each_mask_has_its_part_of_the_prompt(prompt: str, drawn: list[str]):
    assert [job.prompt for job in jobs_of({"ad_prompt": prompt})] == drawn
    assert [job.negative for job in jobs_of({"ad_negative_prompt": prompt})] == [
        d.replace("red", "bad") for d in drawn
    ]


def test_a_skipped_mask_counts_in_seeds_and_prompts():
    jobs = jobs_of({"ad_prompt": "cat[SEP] [SKIP] [SEP]dog"})
    assert [(job.prompt, job.seed) for job in jobs] == [("cat", 100), ("dog", 102)]


def test_strength_falls_with_the_share_of_the_box():
    (job,) = jobs_of({"ad_denoising_strength": 0.8}, 1, options={"ad_dynamic_denoise_power": 2})
    assert job.strength == pytest.approx(0.8 * (1 - 600 / 6144) ** 2)


@pytest.mark.parametrize(
    "box, size, match, sdxl, wanted",
    [
        ((0, 0, 40, 20), (96, 64), "Off", False, (96, 64)),
        ((0, 0, 40, 20), (96, 64), "Free", False, (96, 48)),
        ((0, 0, 20, 40), (96, 64), "Free", False, (48, 96)),
        ((0, 0, 30, 20), (96, 64), "Free", False, (96, 64)),
        ((0, 0, 300, 100), (1024, 1024), "Strict (SDXL only)", True, (1536, 640)),
        ((0, 0, 300, 100), (1024, 1024), "Strict (SDXL only)", False, (1024, 1024)),
        ((0, 0, 300, 310), (1024, 1024), "Strict (SDXL only)", True, (1024, 1024)),
    ],
)
def test_sizes_follow_the_box_where_asked(box, size, match, sdxl, wanted):
    assert job_size(read_detailer({"ad_model": "x"}), box, size, match, is_sdxl=sdxl) == wanted
    own = read_detailer({"use_inpaint_width_height": True, "inpaint_width": 76, "inpaint_height": 68})
    assert job_size(own, box, size, match, is_sdxl=sdxl) == (76, 68)
