"""Control images resized, and edges found, as in the webui's extension: every pixel."""

import sys
from types import ModuleType

import numpy as np
import pytest
from recordings import GOLDEN, recorded_json
from safetensors.numpy import load_file
from webui_diffusers.pipelines.images.hints.edges import canny_edges, canny_image
from webui_diffusers.pipelines.images.hints.fit import (
    HINT_RESIZE_MODES,
    fit_hint,
    otsu_threshold,
    perfect_resolution,
    resize_hint,
    thin_lines,
)
from webui_diffusers.pipelines.images.hints.modules import find_module


ROWS = recorded_json("controlnet/resize.json", "rows", 30)
IMAGES = load_file(GOLDEN / "controlnet" / "resize.safetensors")


def recorded(name: str) -> np.ndarray:
    image = IMAGES[name]
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image


def row_name(row: dict) -> str:
    return f"{row['image']} {row.get('resize_mode', row.get('preprocessor'))} {row['out']}"


@pytest.mark.parametrize("row", [row for row in ROWS if "resize_mode" in row], ids=row_name)
def test_every_recorded_image_is_resized_as_in_the_extension(row):
    image, wanted = recorded(row["image"]), recorded(row["out"])
    fitted = fit_hint(image.astype(wanted.dtype), tuple(row["target_h_w"][::-1]), row["resize_mode"])
    if wanted.dtype == np.uint8:
        assert np.array_equal(fitted, wanted)
    else:  # image and mask of inpainting stay floats
        np.testing.assert_allclose(fitted, wanted, atol=1e-3)


@pytest.mark.parametrize("row", [row for row in ROWS if "preprocessor" in row], ids=row_name)
def test_every_recorded_edge_is_found(row):
    edges = canny_image(recorded(row["image"]), row["processor_res"], row["threshold_a"], row["threshold_b"])
    assert np.array_equal(edges, recorded(row["out"]))


@pytest.mark.parametrize("row", recorded_json("controlnet/resize.json", "pixel_perfect", 30), ids=str)
def test_pixel_perfect_takes_the_resolution_of_the_pass(row):
    image = np.zeros((*row["raw_h_w"], 3), np.uint8)
    assert perfect_resolution(image, tuple(row["target_h_w"][::-1]), row["resize_mode"]) == row["resolution"]


@pytest.mark.parametrize("mode", HINT_RESIZE_MODES)
def test_every_mode_gives_the_size_that_is_asked_for(mode):
    image = np.random.default_rng(0).integers(0, 256, (31, 50, 3), np.uint8)
    for size in ((64, 64), (8, 40), (50, 31)):
        assert fit_hint(image, size, mode).shape == (size[1], size[0], 3)


def test_an_image_of_the_size_of_the_pass_is_left_alone():
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    for mode in HINT_RESIZE_MODES:
        assert np.array_equal(fit_hint(image, (24, 16), mode), image)


def test_filling_takes_the_median_of_the_border():
    image = np.full((10, 10, 3), 100, np.uint8)
    image[0] = 7  # 12 of the 40 border pixels
    filled = fit_hint(image, (20, 10), "Resize and Fill")
    assert (filled[:, :5] == 100).all() and (filled[:, 15:] == 100).all() and (filled[0, 5:15] == 7).all()


def test_maps_of_few_colors_keep_their_colors():
    colors = np.array([[10, 0, 0], [0, 200, 0], [0, 0, 90]], np.uint8)
    image = colors[np.random.default_rng(0).integers(0, 3, (40, 40))]
    for size in ((17, 23), (90, 77)):
        assert {tuple(pixel) for pixel in resize_hint(image, size).reshape(-1, 3)} <= {tuple(c) for c in colors}


def test_lines_stay_two_toned_and_one_pixel_wide():
    image = np.zeros((40, 40, 3), np.uint8)
    image[20] = 255
    larger = resize_hint(image, (120, 120))
    assert set(np.unique(larger)) == {0, 255}
    assert (larger[..., 0] > 0).sum(axis=0).max() == 1


def test_thinning_leaves_a_line_and_takes_a_bar_to_one():
    bar = np.zeros((20, 30), np.uint8)
    bar[8:11, 3:27] = 255
    thin = thin_lines(bar)
    assert ((thin[:, 5:25] > 0).sum(axis=0) == 1).all()
    assert np.array_equal(thin_lines(thin), thin)


def test_otsu_splits_two_groups_between_them():
    gray = np.array([[10] * 8 + [12] * 8, [200] * 8 + [203] * 8], np.uint8)
    assert 12 <= otsu_threshold(gray) < 200


def test_edges_follow_the_border_of_a_square():
    image = np.zeros((32, 32, 3), np.uint8)
    image[8:24, 8:24, 1] = 255
    edges = canny_edges(image, 100, 200) > 0
    assert edges[8:24, 7:9].any(axis=1).all() and edges[7:9, 8:24].any(axis=0).all()
    assert not edges[12:20, 12:20].any() and not edges[:6].any()
    assert np.array_equal(edges, canny_edges(image, 200, 100) > 0)


def test_other_modules_are_those_of_controlnet_aux(monkeypatch):
    class Detector:
        @classmethod
        def from_pretrained(cls, name, local_files_only=False):
            assert name == "lllyasviel/Annotators" and local_files_only
            return cls()

        def __call__(self, input_image, scribble=False, detect_resolution=512, output_type="pil"):
            assert output_type == "np"
            return np.full((detect_resolution, detect_resolution), 255 if scribble else 7, np.uint8)

    package = ModuleType("controlnet_aux")
    package.HEDdetector = Detector
    monkeypatch.setitem(sys.modules, "controlnet_aux", package)
    image = np.zeros((20, 20, 3), np.uint8)
    assert find_module("softedge_hed")(image, 40, 0.5, 0.5).shape == (40, 40, 3)
    assert find_module("scribble_hed")(image, 40, 0.5, 0.5).max() == 255


def test_a_detector_without_its_weights_says_how_to_get_them(monkeypatch):
    class Detector:
        @classmethod
        def from_pretrained(cls, name, local_files_only=False):
            raise FileNotFoundError(name)

    package = ModuleType("controlnet_aux")
    package.OpenposeDetector = Detector
    monkeypatch.setitem(sys.modules, "controlnet_aux", package)
    with pytest.raises(OSError, match="hf download lllyasviel/Annotators"):
        find_module("openpose")
    with pytest.raises(ValueError, match="Did you mean 'openpose_full'"):
        find_module("openpose_fully")
