"""Warp, resize, blur and erosion by OpenCV 4's rules: by hand, against OpenCV where installed, by properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webui_diffusers.pipelines.images.opencv import (
    erode_box,
    gaussian_blur,
    gaussian_kernel,
    invert_affine,
    resize_picture,
    warp_affine,
)


def noise(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def similarity(angle: float, scale: float, x: float, y: float) -> np.ndarray:
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[c, -s, x], [s, c, y]])


# --- by hand


def test_a_shift_by_a_fraction_is_quantised_to_a_32nd():
    row = np.array([[0, 320, 640, 960]], np.float32)
    shifted = warp_affine(row, np.array([[1, 0, -0.51], [0, 1, 0]]), (3, 1))
    assert shifted.tolist() == [[160.0, 480.0, 800.0]]  # 0.51 is 16/32


def test_8_bit_warps_round_half_up():
    row = np.array([[10, 11]], np.uint8)
    assert warp_affine(row, np.array([[1, 0, -0.5], [0, 1, 0]]), (1, 1)).tolist() == [[11]]


@pytest.mark.parametrize(
    "border, expected",
    [("constant", [7, 7, 1, 2, 3, 7]), ("reflect", [2, 1, 1, 2, 3, 3]), ("reflect101", [3, 2, 1, 2, 3, 2])],
)
def test_borders(border, expected):
    row = np.array([[1, 2, 3]], np.uint8)
    assert warp_affine(row, np.array([[1.0, 0, 2], [0, 1, 0]]), (6, 1), border=border, value=7)[0].tolist() == expected


def test_half_of_a_tap_outside_takes_the_border_value():
    row = np.array([[100.0]], np.float32)
    assert warp_affine(row, np.array([[1, 0, 0.5], [0, 1, 0]]), (2, 1), value=0.0).tolist() == [[50.0, 50.0]]


def test_even_erosion_looks_further_to_the_left():
    row = np.ones((1, 7), np.float32)
    row[0, 3] = 0
    assert erode_box(row, 2)[0].tolist() == [1, 1, 1, 0, 0, 1, 1]
    assert erode_box(row, 0)[0].tolist() == erode_box(row, 3)[0].tolist() == [1, 1, 0, 0, 0, 1, 1]


def test_outside_the_picture_does_not_erode():
    assert erode_box(np.ones((4, 5), np.float32), 4).min() == 1


def test_small_gaussians_are_fixed_tables():
    assert gaussian_kernel(5).tolist() == [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16]
    assert gaussian_kernel(11)[5] == pytest.approx(1 / np.sum(np.exp(-(np.arange(-5, 6) ** 2) / (2 * 2.0**2))))


# --- parity


@pytest.fixture(scope="module")
def cv2():
    module = pytest.importorskip("cv2", reason="OpenCV is not installed: parity is held by the recordings")
    if int(module.__version__.split(".")[0]) > 4:
        pytest.skip("OpenCV 5 warps differently; the reference is OpenCV 4")
    return module


@pytest.mark.parametrize("border", ["constant", "reflect", "reflect101"])
def test_warps_are_opencv_4s_bit_for_bit(cv2, border):
    flag = {"constant": cv2.BORDER_CONSTANT, "reflect": cv2.BORDER_REFLECT, "reflect101": cv2.BORDER_REFLECT101}[
        border
    ]
    picture, matrix = noise(120, 90), similarity(0.7, 1.3, -20, 33)
    for source in (picture, picture.astype(np.float32)):
        expected = cv2.warpAffine(source, matrix, (133, 141), borderMode=flag, borderValue=(1, 2, 3))
        assert np.array_equal(warp_affine(source, matrix, (133, 141), border=border, value=(1, 2, 3)), expected)


@pytest.mark.parametrize("size", [(200, 171), (45, 60), (30, 40), (37, 91)])
def test_resizing_is_opencv_4s(cv2, size):
    picture = noise(120, 90)
    exact = cv2.resize(picture, size, interpolation=cv2.INTER_LANCZOS4)
    assert np.array_equal(resize_picture(picture, size, "lanczos4"), exact)
    linear = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR).astype(int)
    difference = np.abs(resize_picture(picture, size, "linear") - linear)
    assert difference.max() <= 1 and (difference > 0).mean() < 2e-3
    if size[0] < 90 and size[1] < 120:
        area = cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(int)
        assert np.abs(resize_picture(picture, size, "area") - area).max() <= 1


@pytest.mark.parametrize("taps", [3, 9, 11, 33])
def test_float32_blurs_are_opencv_4s_bit_for_bit(cv2, taps):
    mask = np.random.default_rng(0).random((70, 80)).astype(np.float32)
    assert np.array_equal(gaussian_blur(mask, taps), cv2.GaussianBlur(mask, (taps, taps), 0)) or taps <= 9
    assert np.abs(gaussian_blur(mask, taps) - cv2.GaussianBlur(mask, (taps, taps), 0)).max() < 3e-7


# --- properties


@settings(max_examples=25, deadline=None)
@given(st.floats(-3.1, 3.1), st.floats(0.3, 3), st.floats(-40, 40), st.floats(-40, 40))
def test_a_window_of_a_warp_is_that_part_of_the_whole(angle, scale, x, y):
    picture, matrix = noise(30, 41), similarity(angle, scale, x, y)
    whole = warp_affine(picture, matrix, (50, 44), value=9)
    assert np.array_equal(warp_affine(picture, matrix, (50, 44), value=9, window=(7, 5, 31, 40)), whole[5:40, 7:31])


@settings(max_examples=25, deadline=None)
@given(st.floats(-3.1, 3.1), st.floats(0.3, 3), st.floats(-40, 40), st.floats(-40, 40))
def test_inverting_twice_gives_the_matrix_back(angle, scale, x, y):
    matrix = similarity(angle, scale, x, y)
    assert np.allclose(invert_affine(invert_affine(matrix)), matrix, atol=1e-9)


@pytest.mark.parametrize("method", ["lanczos4", "linear", "area"])
@pytest.mark.parametrize("size", [(13, 9), (77, 50), (40, 30)])
def test_a_flat_picture_stays_flat_when_resized(method, size):
    flat = np.full((30, 40, 3), 137, np.uint8)
    assert (resize_picture(flat, size, method) == 137).all()


def test_nothing_moves_under_the_identity():
    picture = noise(20, 33)
    assert np.array_equal(warp_affine(picture, np.eye(2, 3), (33, 20)), picture)
    assert np.array_equal(resize_picture(picture, (33, 20), "lanczos4"), picture)


def test_both_precisions_blur_alike():
    mask = np.random.default_rng(1).random((40, 60))
    assert np.abs(gaussian_blur(mask.astype(np.float32), 21) - gaussian_blur(mask, 21)).max() < 1e-6


# --- errors


def test_a_flat_matrix_has_no_inverse():
    with pytest.raises(ValueError, match="no inverse"):
        invert_affine(np.zeros((2, 3)))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p: warp_affine(p, np.eye(2, 3), (4, 4), border="wrap"), "`border` must be"),
        (lambda p: resize_picture(p, (4, 4), "bicubic"), "`method` must be"),
        (lambda p: resize_picture(p, (0, 4), "linear"), "at least 1x1"),
        (lambda p: gaussian_blur(p[..., 0].astype(float), 4), "odd and positive"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(noise(8, 8))
