"""Faces cut out and pasted back: geometry, masks, colours, and what the flow "own" is for."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from webui_diffusers.pipelines.images.faces.align import (
    FACE_TEMPLATE,
    align_face,
    choose_faces,
    face_inliers,
    face_landmarks,
    face_roll,
    fit_face,
)
from webui_diffusers.pipelines.images.faces.color import from_net_range, to_net_range
from webui_diffusers.pipelines.images.faces.flows import FACE_FLOWS, FaceNets, FaceOptions
from webui_diffusers.pipelines.images.faces.masks import face_window, square_mask
from webui_diffusers.pipelines.images.faces.paste import paste_matrix, upsampled_paste_matrix
from webui_diffusers.pipelines.images.faces.restore import fine_crop, restore_faces
from webui_diffusers.pipelines.images.faces.rolled import turn_matrix
from webui_diffusers.pipelines.images.opencv import warp_affine


FACES = Path(__file__).parent / "golden" / "faces"
MTCNN = json.loads((FACES / "mtcnn.json").read_text())["pictures"]
NAMED = ("webui", "facexlib", "codeformer")


def photo(name):
    return np.array(Image.open(FACES / "in" / name).convert("RGB")), np.array(MTCNN[name], np.float32)


def identity(face):
    return face


def paint(face):
    return np.broadcast_to(np.array([1.0, -1, -1], np.float32)[:, None, None], face.shape)


def restored(picture, rows, net=identity, flow="own", parse=None, enlarge=None, **options):
    return restore_faces(picture, FaceNets(rows, net, parse, enlarge), FaceOptions(flow=flow, **options))


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


def box_of(picture, row):
    x0, y0, x1, y1 = np.clip(row[:4].astype(int), 0, None)
    return picture[y0:y1, x0:x1]


def turned(picture, rows, angle):
    """The picture and its detections, turned."""
    matrix, size = turn_matrix((picture.shape[1], picture.shape[0]), angle)
    points = np.stack([face_landmarks(row) @ matrix[:, :2].T + matrix[:, 2] for row in rows])
    boxes = np.concatenate([points.min(1) - 20, points.max(1) + 20, rows[:, 4:5], points.reshape(-1, 10)], axis=1)
    return warp_affine(picture, matrix, size, value=128), boxes.astype(np.float32)


# --- by hand


def test_a_face_on_the_template_needs_no_turning():
    matrix = fit_face(np.array(FACE_TEMPLATE) / 4 + (10, 20))
    assert matrix == pytest.approx(np.array([[4, 0, -40], [0, 4, -80]]), abs=1e-3)


def test_one_wrong_landmark_is_left_out():
    landmarks = np.array(FACE_TEMPLATE)
    landmarks[2] += (60, 40)
    assert face_inliers(landmarks).tolist() == [True, True, False, True, True]
    assert fit_face(landmarks) == pytest.approx(np.eye(2, 3), abs=1e-4)


def test_an_identity_net_darkens_dark_levels_where_the_webui_truncates():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    there = to_net_range(levels)
    expected = levels.astype(int) - ((levels >= 1) & (levels <= 63))
    assert np.array_equal(from_net_range(there, "trunc"), expected)
    assert np.array_equal(from_net_range(there, "rint"), levels)


def test_faces_sit_half_an_output_pixel_off_only_where_the_original_has_them_so():
    assert paste_matrix(np.eye(2, 3), 2, "half scale").tolist() == [[2, 0, 1], [0, 2, 1]]
    assert paste_matrix(np.eye(2, 3), 2, "centres").tolist() == [[2, 0, 0.5], [0, 2, 0.5]]
    assert paste_matrix(np.eye(2, 3), 1, "half scale").tolist() == [[1, 0, 0], [0, 1, 0]]
    assert upsampled_paste_matrix(np.eye(2, 3), 2, "half scale").tolist() == [[1, 0, 0], [0, 1, 0]]
    assert upsampled_paste_matrix(np.eye(2, 3), 2, "centres").tolist() == [[1, 0, 0], [0, 1, 0]]


def test_the_codeformer_script_measures_eyes_to_the_nose():
    row = np.array([0, 0, 30, 30, 1, 10, 10, 18, 10, 14, 14, 11, 18, 17, 18], np.float32)
    assert choose_faces([row], (50, 50), eye_distance=5) == [0]
    assert choose_faces([row], (50, 50), eye_distance=5, eye_rule="codeformer") == []


def test_a_tiny_face_gets_a_mask_without_blur():
    inverse = np.array([[0.03, 0, 20], [0, 0.03, 20]])
    window = face_window(inverse, 512, (64, 64), 1)
    mask = square_mask(inverse, 512, (64, 64), 1, window)
    assert (mask.second_erosion, mask.blur) == (0, 1) and 0 < mask.area < 400


# --- geometry: what comes back, and what else changes


@pytest.mark.parametrize("flow", NAMED)
@pytest.mark.parametrize("name, least", [("astro_320.png", 42.9), ("grace_small.png", 39.0), ("two.png", 38.0)])
def test_named_flows_lose_to_an_identity_net_what_two_warps_cost(flow, name, least):
    picture, rows = photo(name)
    result = restored(picture, rows, flow=flow, use_parse=False)
    plain = restored(picture, rows[:0], flow=flow)  # the same enlargement, no face
    assert psnr(box_of(result.image, rows[0] * result.factor), box_of(plain.image, rows[0] * result.factor)) > least


@pytest.mark.parametrize("angle", [0, 15, -30, 45, 60])
@pytest.mark.parametrize("name", ["astro_320.png", "grace_small.png", "two.png", "astro_left_edge.png"])
def test_the_own_flow_gives_an_identity_nets_picture_back_exactly(name, angle):
    picture, rows = turned(*photo(name), angle)
    result = restored(picture, rows)
    assert len(result.faces) == len(rows)
    assert np.array_equal(result.image, picture)


@pytest.mark.parametrize("flow", FACE_FLOWS)
@pytest.mark.parametrize("name", ["two.png", "astro_left_edge.png", "grace_rotm50.png"])
def test_a_painted_face_changes_that_face_and_nothing_else(flow, name):
    picture, rows = photo(name)
    result = restored(picture, rows, paint, flow=flow, use_parse=False)
    plain = restored(picture, rows[:0], flow=flow).image
    covered = np.zeros(plain.shape[:2], bool)
    for face in result.faces:
        x0, y0, x1, y1 = face.window
        covered[y0:y1, x0:x1] |= face.mask > 0
        for x, y in face_landmarks(face.row).round().astype(int):
            if 8 <= x < plain.shape[1] - 8 and 8 <= y < plain.shape[0] - 8:
                assert np.abs(result.image[y, x].astype(int) - (255, 0, 0)).max() <= 2
    assert np.array_equal(result.image[~covered], plain[~covered])
    assert 0.01 < covered.mean() < 0.9


@pytest.mark.parametrize("scale", [2, 3])
def test_the_own_flow_does_not_alias_the_detail_that_a_net_finds(scale):
    """The net knows the sharp original of a small, spoilt face; the truth is that original, made small."""
    picture, rows = photo("two.png")
    sharp = picture[: 256 // scale * scale, : 448 // scale * scale]
    size = (sharp.shape[1] // scale, sharp.shape[0] // scale)
    small = np.array(Image.fromarray(sharp).resize(size, Image.Resampling.LANCZOS))
    row = rows[:1].copy()
    row[:, np.arange(15) != 4] = (row[:, np.arange(15) != 4] + 0.5) / scale - 0.5
    noise = np.random.default_rng(0).normal(0, 8, small.shape)
    spoilt = np.clip(small + noise, 0, 255).astype(np.uint8)
    matrix = fit_face(face_landmarks(row[0]))
    matrix[:, 2] += matrix[:, :2] @ np.full(2, (1 / scale - 1) / 2)
    matrix[:, :2] /= scale
    known = to_net_range(align_face(sharp, matrix))
    own, facexlib = (
        psnr(box_of(restored(spoilt, row, lambda x: known, flow).image, row[0]), box_of(small, row[0]))
        for flow in ("own", "facexlib")
    )
    assert own > facexlib + 4 and own > 38


@pytest.mark.parametrize("name", ["two.png", "astro_left_edge.png"])
@pytest.mark.parametrize("border", ["constant", "reflect", "reflect101"])
def test_a_fine_crop_is_the_usual_one_unrounded_where_the_face_grows(name, border):
    picture, rows = photo(name)
    matrix = fit_face(face_landmarks(rows[-1]))
    fine = fine_crop(picture, matrix, 512, border)
    assert np.abs(fine - align_face(picture, matrix, border=border)).max() <= 0.51


def test_several_faces_are_pasted_in_their_order():
    picture, rows = photo("two.png")
    twice = np.concatenate([rows, rows[:1]])
    colours = iter([(1, -1, -1), (-1, 1, -1), (-1, -1, 1)])
    nets = FaceNets(twice, lambda x: np.broadcast_to(np.float32(next(colours))[:, None, None], x.shape))
    image = restore_faces(picture, nets, FaceOptions(flow="facexlib")).image
    nose_0, nose_1 = (tuple(face_landmarks(row)[2].round().astype(int)[::-1]) for row in rows)
    assert image[nose_0].argmax() == 2 and image[nose_1].argmax() == 1


def test_tiny_faces_are_left_alone():
    picture, rows = photo("astro_320.png")
    rows[:, 5:] = rows[:, 5:] / 20 + 50
    for flow in ("webui", "own"):
        assert not restored(picture, rows, paint, flow).faces
    assert len(restored(picture, rows, paint, "own", eye_distance=0).faces) == 1


def test_one_face_by_size_or_by_place():
    picture, rows = photo("two.png")
    (largest,) = restored(picture, rows, only_largest=True).faces
    (center,) = restored(picture, rows, only_center=True).faces
    areas = (rows[:, 2] - rows[:, 0]) * (rows[:, 3] - rows[:, 1])
    assert np.array_equal(largest.row, rows[areas.argmax()])
    assert len(restored(picture, rows).faces) == 2 and center.row.shape == (15,)


def test_visibility_lies_between_before_and_after():
    picture, rows = photo("astro_320.png")
    before, half, after = (restored(picture, rows, paint, visibility=v).image.astype(int) for v in (0, 0.5, 1))
    assert np.array_equal(before, picture)
    assert np.abs(half - (before + after) / 2).max() <= 1


@pytest.mark.parametrize("flow", FACE_FLOWS)
def test_a_net_that_fails_leaves_the_face_and_says_so(flow):
    def broken(face):
        raise RuntimeError("no memory")

    picture, rows = photo("grace_small.png")
    result = restored(picture, rows, broken, flow, use_parse=False)
    assert result.faces[0].error == "RuntimeError: no memory"
    whole = restored(picture, rows, identity, flow, use_parse=False)
    assert np.abs(result.image.astype(int) - whole.image).max() <= 1


def test_numbers_that_are_not_finite_count_as_failure():
    picture, rows = photo("grace_small.png")
    result = restored(picture, rows, lambda x: x * np.nan)
    assert "not finite" in result.faces[0].error and np.array_equal(result.image, picture)


def test_a_face_whose_landmarks_coincide_is_skipped():
    picture, rows = photo("two.png")
    rows[0, 5:] = 100
    assert len(restored(picture, rows, paint, eye_distance=0).faces) == 1


@pytest.mark.parametrize("flow", ["codeformer", "own"])
def test_a_colourless_picture_stays_colourless(flow):
    picture, rows = photo("astro_gray.png")
    assert restored(picture, rows, paint, flow, use_parse=False).gray
    image = restored(picture, rows, paint, flow, use_parse=False).image.astype(int)
    assert np.ptp(image, axis=2).max() <= 2


def test_a_parse_mask_keeps_to_its_parts():
    def left_half(face):
        return np.where(np.arange(512)[None, :] < 256, 1, 0).repeat(512, 0).reshape(512, 512)

    picture, rows = photo("astro_320.png")
    for flow in FACE_FLOWS:
        image = restored(picture, rows, paint, flow, left_half, use_parse=True).image.astype(int)
        factor = image.shape[0] / picture.shape[0]
        eye_l, eye_r = (face_landmarks(rows[0])[:2] * factor).round().astype(int)
        red = image[..., 0] - image[..., 2]
        assert red[eye_l[1], eye_l[0]] > 240 > red[eye_r[1], eye_r[0]] + 100


def test_without_a_parser_the_log_says_which_mask_is_used(caplog):
    picture, rows = photo("grace_small.png")
    with caplog.at_level("WARNING", logger="diffusers.webui"):
        assert restored(picture, rows, flow="webui").faces[0].mask_kind == "square"
    assert "soft square mask" in caplog.text and "face_parser" in caplog.text


def test_enlarged_faces_stay_where_they_were():
    picture, rows = photo("astro_320.png")

    def double(image):
        return image.repeat(2, axis=0).repeat(2, axis=1)

    for options in ({}, {"face_upsample": True}):
        image = restored(picture, rows, paint, "own", enlarge=double, upscale=2, **options).image
        assert image.shape == (640, 640, 3)
        for x, y in (face_landmarks(rows[0]) * 2 + 0.5).round().astype(int):
            assert np.abs(image[y, x].astype(int) - (255, 0, 0)).max() <= 2


# --- properties


@settings(max_examples=40, deadline=None)
@given(st.floats(-180, 180), st.floats(0.05, 4), st.floats(-300, 300), st.floats(-300, 300))
def test_a_fit_undoes_any_similarity(angle, scale, x, y):
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    turn = scale * np.array([[c, -s], [s, c]])
    landmarks = np.array(FACE_TEMPLATE) @ turn.T + (x, y)
    matrix = fit_face(landmarks)
    assert landmarks @ matrix[:, :2].T + matrix[:, 2] == pytest.approx(np.array(FACE_TEMPLATE), abs=0.05)
    row = np.concatenate([np.zeros(5), landmarks.ravel()])
    assert abs((face_roll(row) - angle - 0.112 + 180) % 360 - 180) < 0.1


@settings(max_examples=15, deadline=None)
@given(st.floats(-180, 180), st.floats(0.03, 0.6), st.floats(-40, 90), st.floats(-40, 90))
def test_outside_its_window_a_mask_is_zero(angle, scale, x, y):
    c, s = scale * np.cos(np.radians(angle)), scale * np.sin(np.radians(angle))
    inverse, size = np.array([[c, -s, x], [s, c, y]]), (120, 100)
    window = face_window(inverse, 256, size, 1)
    x0, y0, x1, y1 = window
    whole = square_mask(inverse, 256, size, 1, (0, 0, *size)).mask
    if x1 > x0 and y1 > y0:
        part = square_mask(inverse, 256, size, 1, window).mask
        assert part == pytest.approx(whole[y0:y1, x0:x1], abs=1e-12)
        whole[y0:y1, x0:x1] = 0
    assert whole.max() == 0


# --- no face, and errors


@pytest.mark.parametrize("flow", ["webui", "facexlib", "own"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (170, 212)])
def test_without_a_face_the_picture_comes_back_bit_for_bit(flow, shape):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert np.array_equal(restored(picture, np.zeros((0, 15)), paint, flow).image, picture)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"flow": "gfpgan"}, "`flow` must be one of 'webui', 'facexlib', 'codeformer', 'own'"),
        ({"upscale": 0}, "`upscale` must be a positive number"),
        ({"flow": "codeformer", "upscale": 1.5}, "whole numbers only"),
        ({"visibility": 2}, "`visibility` must lie between"),
        ({"face_upsample": True}, "there is none"),
        ({"border": "wrap"}, "`border` must be"),
    ],
)
def test_wrong_options_are_named_before_any_work(options, message):
    def untouched(picture, threshold):
        raise AssertionError("the detector ran")

    with pytest.raises(ValueError, match=message):
        restored(np.zeros((8, 8, 3), np.uint8), untouched, **options)


@pytest.mark.parametrize("landmarks", [np.zeros((5, 2)), np.full((5, 2), np.nan), np.zeros((4, 2))])
def test_landmarks_that_fit_nothing_are_refused(landmarks):
    with pytest.raises(ValueError, match="landmarks"):
        fit_face(landmarks)
