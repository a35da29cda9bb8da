"""Face restoration against recordings of the webui, facexlib and the CodeFormer repository's script.

Their networks were replaced by stand-ins, which are written out here. Tolerances are the strict ones: matrices 1e-6
relative, crops 1 level, masks 1e-4, outputs 2 levels and 0.25 in the mean.
"""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from recordings import GOLDEN
from safetensors.numpy import load_file
from webui_diffusers.pipelines.images.faces.align import choose_faces, face_inliers, face_landmarks, fit_face
from webui_diffusers.pipelines.images.faces.color import gray_of, is_gray, match_statistics
from webui_diffusers.pipelines.images.faces.flows import FACE_FLOWS, FaceNets, FaceOptions
from webui_diffusers.pipelines.images.faces.restore import detection_picture, restore_faces
from webui_diffusers.pipelines.images.opencv import invert_affine


FACES = GOLDEN / "faces"
CASES = [case for case in json.loads((FACES / "cases.json").read_text())["cases"] if (FACES / case["input"]).exists()]
NUMERIC = json.loads((FACES / "numeric.json").read_text())

pytestmark = pytest.mark.goldens


# --- stand-ins: RGB in [-1, 1]


def blur5(x):
    k = torch.tensor([1.0, 4, 6, 4, 1])
    kernel = (torch.outer(k, k) / 256).expand(3, 1, 5, 5)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), kernel, groups=3)


def tinyconv(x):
    def weights(shape, a):
        return (a * torch.sin(0.7 * (torch.arange(np.prod(shape), dtype=torch.float64) + 1))).float().reshape(shape)

    h = F.conv2d(x, weights((4, 3, 3, 3), 0.25), torch.tensor([0.1, -0.1, 0.05, 0]), padding=1)
    y = F.conv2d(F.leaky_relu(h, 0.1), weights((3, 4, 3, 3), 0.3), torch.tensor([0, 0.1, -0.2]), padding=1)
    return x + 0.5 * torch.tanh(y)


def fail(x):
    raise RuntimeError("this net fails")


RESTORERS = {
    "identity": lambda x, w: x,
    "invert": lambda x, w: -x,
    "const": lambda x, w: torch.tensor([0.2, -0.4, 0.6]).view(1, 3, 1, 1).expand_as(x),
    "swap": lambda x, w: x[:, [1, 2, 0]],
    "overshoot": lambda x, w: 1.7 * x + 0.1,
    "blur5": lambda x, w: blur5(x),
    "wmix": lambda x, w: (1 - w) * blur5(-x) + w * x,
    "tinyconv": lambda x, w: tinyconv(x),
    "fail": lambda x, w: fail(x),
}


def ellipse(face):
    y, x = np.mgrid[:512, :512]
    classes = np.zeros((512, 512), int)
    classes[((x - 256) / 200) ** 2 + ((y - 200) / 190) ** 2 <= 1] = 13
    classes[(y >= 430) & (abs(x - 256) < 90)] = 17
    classes[((x - 256) / 150) ** 2 + ((y - 270) / 180) ** 2 <= 1] = 1
    for centre, part in ((193, 4), (319, 5)):
        classes[((x - centre) / 30) ** 2 + ((y - 240) / 15) ** 2 <= 1] = part
    return classes


PARSERS = {
    "full": lambda face: np.ones((512, 512), int),
    "bands": lambda face: np.minimum(np.mgrid[:512, :512][1] // 27, 18),
    "redder": lambda face: (face[0] - face[2] > 0.1).astype(int),
    "ellipse": ellipse,
}


def enlarge2(picture):
    values = picture.repeat(2, axis=0).repeat(2, axis=1) / 255
    return np.rint(np.clip(0.9 * values + 0.05, 0, 1) * 255).astype(np.uint8)


def read(name):
    picture = Image.open(FACES / name)
    return np.array(picture) / 65535 if ".mask" in name else np.array(picture.convert("RGB"))


# --- one recorded case


class Detector:
    """Gives the recorded rows, call by call, and keeps what it was shown."""

    def __init__(self, calls):
        self.calls, self.seen = calls, []

    def __call__(self, picture, threshold):
        self.seen.append((picture, threshold))
        return np.array(self.calls[len(self.seen) - 1]["detections"], np.float32).reshape(-1, 15)


def options_of(case):
    p, engine = case["params"], case["engine"]
    if engine == "webui":
        return {}
    shared = {key: p[key] for key in ("use_parse", "upscale", "face_upsample", "has_aligned", "draw_box") if key in p}
    shared["only_center"] = p.get("only_center_face", False)
    if engine == "codeformer":
        return {"upscale": 2, "background_upsample": p.get("bg_upsampler", False), **shared}
    return {
        **shared,
        "only_largest": p.get("only_keep_largest", False),
        "resize": p.get("resize"),
        "eye_distance": p.get("eye_dist_threshold"),
        "face_size": p.get("face_size", 512),
        "three_points": p.get("template_3points", False),
        "border": p.get("border_mode", "constant"),
    }


def passes(case):
    """(restorer, fidelity, options) of each pass over the picture."""
    p = case["params"]
    if p.get("face_restoration_model") == "None":
        return []
    if p.get("entry") != "extras":
        return [(p["restorer"], p.get("w", p.get("code_former_weight", 0.5)), options_of(case))]
    both = [
        (p["restorers"]["GFPGAN"], 0.5, {"visibility": p.get("gfpgan_visibility", 0)}),
        (
            p["restorers"]["CodeFormer"],
            p.get("codeformer_weight", 0),
            {"visibility": p.get("codeformer_visibility", 0)},
        ),
    ]
    return [one for one in both if one[2]["visibility"]]


def run(case):
    picture, p = read(case["input"]), case["params"]
    detector, result = Detector(case["detector_calls"]), None
    parse = PARSERS[p.get("parse", "ellipse")]
    enlarge = enlarge2 if p.get("bg_upsampler") or p.get("face_upsample") else None
    background = None
    if p.get("background") == "nearest2x_dim":
        background = np.trunc(0.9 * picture.repeat(2, axis=0).repeat(2, axis=1)).astype(np.uint8)
    for name, w, chosen in passes(case):

        def restore(face, name=name, w=w):
            return RESTORERS[name](torch.from_numpy(face)[None], w)[0].numpy()

        nets = FaceNets(detector, restore, parse, enlarge)
        result = restore_faces(picture, nets, FaceOptions(flow=case["engine"], **chosen), background=background)
        picture = result.image
    return picture, result, detector


def difference(ours, name, stride=1):
    expected = read(name)
    assert ours[::stride, ::stride].shape == expected.shape
    return np.abs(ours[::stride, ::stride].astype(np.float64) - expected)


def present(entry):
    return bool(entry) and "file" in entry and (FACES / entry["file"]).exists()


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_a_recorded_picture_comes_out_equal(case):
    picture, result, detector = run(case)
    assert list(picture.shape) == case["output"]["shape"]
    for part in filter(present, case["output"]["files"]):
        x, y, w, h = part["window"] or (0, 0, picture.shape[1], picture.shape[0])
        error = difference(picture[y : y + h, x : x + w], part["file"], part["stride"])
        assert error.max() <= 2 and error.mean() <= 0.25
    assert picture.mean((0, 1)) == pytest.approx(case["output"]["mean"], abs=0.1)
    for (seen, threshold), call in zip(detector.seen, case["detector_calls"], strict=True):
        assert seen.shape[:2] == (call["height"], call["width"])
        assert ([] if threshold is None else [threshold]) == call["args"]
    if "detector_image_stride4" in case and (FACES / case["detector_image_stride4"]).exists():
        assert difference(detector.seen[0][0], case["detector_image_stride4"], 4).max() <= 2
    faces = result.faces if result else []
    assert len(faces) == len(case["faces"])
    for ours, theirs in zip(faces, case["faces"]):
        check_face(ours, theirs, picture, case)


def check_face(ours, theirs, picture, case):
    if "affine" in theirs and not case["params"].get("has_aligned"):
        assert ours.matrix == pytest.approx(np.array(theirs["affine"]), rel=1e-6, abs=1e-6)
    for key, levels in (("crop", ours.crop), ("restored", np.clip(ours.restored, 0, 255).astype(np.uint8))):
        if present(theirs.get(key)):
            assert difference(levels, theirs[key]["file"], theirs[key]["stride"]).max() <= (1 if key == "crop" else 2)
    if present(theirs.get("mask")):
        mask = np.zeros(picture.shape[:2])
        x0, y0, x1, y1 = ours.window
        mask[y0:y1, x0:x1] = ours.mask
        assert difference(mask, theirs["mask"]["file"], theirs["mask"]["stride"]).max() <= 1e-4


@pytest.mark.parametrize("row", NUMERIC["affine"], ids=range(len(NUMERIC["affine"])))
def test_a_recorded_fit_is_found(row):
    landmarks = np.array(row["landmarks"])
    matrix = fit_face(landmarks, size=row["face_size"])
    assert matrix == pytest.approx(np.array(row["affine"]), rel=1e-6, abs=1e-6)
    assert face_inliers(landmarks).astype(int).tolist() == row["inliers"]
    assert invert_affine(matrix) == pytest.approx(np.array(row["inverse"]), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("row", NUMERIC["selection"], ids=range(len(NUMERIC["selection"])))
def test_a_recorded_choice_of_faces_is_made(row):
    rules, options, (w, h) = FACE_FLOWS[row["engine"]], row["options"], row["image_size"]
    seen, times, over = detection_picture(
        np.zeros((h, w, 3), np.uint8), options.get("resize"), "fit" if row["engine"] == "codeformer" else "lanczos4"
    )
    assert seen.shape[1::-1] == tuple(row["detector_image_size"])
    rows = np.array(row["detections_in_detector_image"], np.float32).reshape(-1, 15)
    rows = rows * np.float32(times) / np.float32(over)
    kept = choose_faces(
        rows,
        (w, h),
        eye_distance=options.get("eye_dist_threshold"),
        eye_rule=rules.eye_rule,
        only_largest=options.get("only_keep_largest", False),
        only_center=options.get("only_center_face", False),
    )
    assert kept == row["kept_indices"]
    for i, landmarks in zip(kept, row["landmarks"]):
        assert face_landmarks(rows[i]) == pytest.approx(np.array(landmarks), abs=1e-3)


def test_gray_pictures_are_told_and_treated_as_recorded():
    tensors = load_file(FACES / "gray.safetensors")
    for row in NUMERIC["gray"]:
        assert is_gray(tensors[row["image"]]) == row["is_gray"], row["image"]
    gray = gray_of(tensors["restored_bgr"][..., ::-1].astype(np.float64))
    assert gray == pytest.approx(tensors["gray_of_restored"], abs=1e-4)
    transferred = match_statistics(tensors["gray_of_restored"], tensors["input_face_bgr"])
    assert transferred == pytest.approx(tensors["transferred"], abs=1e-3)


def test_the_tail_of_txt2img_decodes_truncates_and_restores():
    tail = NUMERIC["txt2img_tail"]
    before, after = read(tail["before"]), read(tail["after"])
    values = load_file(FACES / "txt2img_tail.safetensors")["decoded"].astype(np.float32)
    # Recorded as (3, h, w), but the numbers lie in memory as (h, w, 3).
    pixels = values.reshape(before.shape)
    picture = (np.clip((pixels + 1) / 2, 0, 1) * 255).astype(np.uint8)
    assert np.array_equal(picture, before)

    def restore(face):
        return RESTORERS[tail["params"]["restorer"]](torch.from_numpy(face)[None], 0.5)[0].numpy()

    nets = FaceNets(Detector(tail["detector_calls"]), restore, PARSERS[tail["params"]["parse"]])
    error = np.abs(restore_faces(picture, nets, FaceOptions(flow="webui")).image.astype(int) - after)
    assert error.max() <= 2 and error.mean() <= 0.25
