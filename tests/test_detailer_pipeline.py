"""DetailerPipeline, and what the passes say and keep when nothing is found, something fails or the user stops."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from detailer_runs import tiny_pipeline
from PIL import Image
from webui_diffusers.pipelines import DetailerPipeline, WebUIImg2ImgPipeline, WebUITxt2ImgPipeline, call_arguments
from webui_diffusers.pipelines.infotext import parse_infotext


SHORT = {"num_inference_steps": 2, "guidance_scale": 5.0, "seed": 3, "sampler": "Euler a", "noise_source": "cpu"}
BOX = {"bboxes": [[10, 8, 40, 30]], "confidences": [0.9]}
TWO = {"bboxes": [[10, 8, 30, 28], [34, 30, 60, 60]], "confidences": [0.9, 0.8]}
NOTHING = {"bboxes": []}


def noise_picture(width: int = 96, height: int = 64, seed: int = 0, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


@pytest.fixture
def pipe() -> Any:
    return tiny_pipeline(DetailerPipeline)


def test_only_what_was_found_is_drawn_anew(pipe: Any):
    picture = Image.fromarray(noise_picture())
    detail = {"ad_model": "face", "ad_mask_blur": 0, "ad_dilate_erode": 0, "ad_inpaint_only_masked_padding": 4}
    out = pipe(picture, "a red circle", detailers=[{**detail, "detections": [BOX]}], **SHORT)
    changed = np.any(np.asarray(out.images[0]) != np.asarray(picture), axis=2)
    rows, columns = np.nonzero(changed)
    assert columns.min() >= 10 and columns.max() <= 40 and rows.min() >= 8 and rows.max() <= 30
    assert changed.sum() > 300
    assert out.reports == ["image 0, pass 1 (face): 1 mask redrawn"]


@pytest.mark.parametrize("kind", ["pil", "rgba", "array", "tensor", "float"])
def test_a_picture_in_which_nothing_is_found_comes_back_value_for_value(pipe: Any, kind: str):
    pixels = noise_picture(channels=4 if kind == "rgba" else 3)
    forms = {
        "pil": (Image.fromarray(pixels), "pil"),
        "rgba": (Image.fromarray(pixels), "pil"),
        "array": (pixels, "np"),
        "tensor": (torch.from_numpy(pixels).permute(2, 0, 1), "pt"),
        "float": (pixels.astype(np.float32) / np.float32(255) * np.float32(0.999), "np"),
    }
    given, output_type = forms[kind]
    out = pipe(given, "a red circle", detailers=[{"detections": [NOTHING]}], output_type=output_type, **SHORT)
    if kind in ("pil", "rgba"):
        assert out.images[0].mode == given.mode and out.images[0].tobytes() == given.tobytes()
    elif kind == "float":
        np.testing.assert_array_equal(out.images[0], given)
    else:
        levels = np.asarray(out.images[0]) * 255
        np.testing.assert_array_equal(np.rint(levels), np.moveaxis(pixels, -1, 0) if kind == "tensor" else pixels)
    assert out.reports == ["image 0, pass 1 (detections): nothing found, nothing changed"]
    assert "ADetailer model: detections" in out.infotexts[0]


def test_transparency_stays(pipe: Any):
    picture = Image.fromarray(noise_picture(channels=4))
    out = pipe(picture, "a red circle", detailers=[{"detections": [BOX]}], **SHORT)
    assert out.images[0].mode == "RGBA"
    np.testing.assert_array_equal(np.asarray(out.images[0])[..., 3], np.asarray(picture)[..., 3])


def test_pictures_of_several_sizes_each_have_their_boxes(pipe: Any):
    pictures = [Image.fromarray(noise_picture(96, 64)), Image.fromarray(noise_picture(64, 80, 1))]
    out = pipe(pictures, "a red circle", detailers=[{"detections": [BOX, NOTHING]}], **SHORT)
    assert [image.size for image in out.images] == [(96, 64), (64, 80)]
    assert out.images[1].tobytes() == pictures[1].tobytes() and out.images[0].tobytes() != pictures[0].tobytes()
    assert out.seeds == [3, 4] and len(out.infotexts) == 2


def test_any_function_of_a_picture_is_a_detector(pipe: Any):
    seen = []

    def bright(picture: np.ndarray) -> tuple:
        seen.append(picture.shape)
        return [[10, 8, 40, 30], [50, 8, 60, 30]], [0.9, 0.2]

    out = pipe(Image.fromarray(noise_picture()), "a red circle", detailers=[{"ad_model": bright}], **SHORT)
    assert seen == [(64, 96, 3)] and out.reports == ["image 0, pass 1 (bright): 1 mask redrawn"]
    assert "ADetailer model: bright" in out.infotexts[0]


def test_the_face_detector_that_ships_finds_no_face_in_noise(pipe: Any):
    picture = Image.fromarray(noise_picture())
    out = pipe(picture, "a red circle", **SHORT)
    assert out.images[0].tobytes() == picture.tobytes()
    assert out.reports == ["image 0, pass 1 (face): nothing found, nothing changed"]


def test_it_does_what_img2img_does_with_its_own_drawing_skipped(pipe: Any):
    picture = Image.fromarray(noise_picture())
    detail, other = {"ad_model": "face", "detections": [TWO]}, tiny_pipeline(WebUIImg2ImgPipeline)
    ours = pipe(picture, "a red circle", detailers=[detail], width=96, height=64, **SHORT)
    theirs = other("a red circle", picture, detailers=[True, True, detail], width=96, height=64, **SHORT)
    assert ours.images[0].tobytes() == theirs.images[0].tobytes()
    assert "Steps: 1, Sampler: Euler," in theirs.infotexts[0] and "Steps: 2, Sampler: Euler a," in ours.infotexts[0]


# --- in the drawing pipelines


def test_a_text_draws_its_picture_again_given_the_same_boxes():
    pipe = tiny_pipeline(WebUITxt2ImgPipeline)
    detail = {"ad_model": "face", "ad_prompt": "a green cross", "ad_denoising_strength": 0.6}
    size = {"width": 96, "height": 64}
    first = pipe("a red circle", detailers=[{**detail, "detections": [TWO]}], **size, **SHORT)
    again = call_arguments(parse_infotext(first.infotexts[0]), extensions=True)
    assert again["detailers"] == [read_back(detail)]
    again["detailers"][0]["detections"] = [TWO]
    assert pipe(**again).images[0].tobytes() == first.images[0].tobytes()


def read_back(detail: dict) -> dict:
    """A pass as a text has it: what is always written is there too."""
    return {
        "ad_model": detail["ad_model"],
        "ad_prompt": detail["ad_prompt"],
        "ad_confidence": 0.3,
        "ad_dilate_erode": 4,
        "ad_mask_blur": 4,
        "ad_denoising_strength": detail["ad_denoising_strength"],
        "ad_inpaint_only_masked": True,
        "ad_inpaint_only_masked_padding": 32,
    }


def test_a_pass_of_a_text_whose_detector_is_not_here_does_not_run_and_that_is_said(caplog: pytest.LogCaptureFixture):
    pipe = tiny_pipeline(WebUITxt2ImgPipeline)
    fields = "Sampler: Euler a, Seed: 3, ADetailer model: /tmp/hand_yolov8n.pt, ADetailer conf: 30"
    given = call_arguments(parse_infotext(f"a\nSteps: 2, {fields}"), extensions=True)
    assert given["detailers"] == [{"ad_model": "hand_yolov8n.pt", "ad_confidence": 0.3}]
    with caplog.at_level(logging.WARNING, "diffusers.webui"):
        out = pipe(**given, width=64, height=64)
    del given["detailers"]
    assert out.images[0].tobytes() == pipe(**given, width=64, height=64).images[0].tobytes()
    assert "it does not run" in caplog.text and "never opened" in caplog.text
    assert "ADetailer" not in out.infotexts[0]


@pytest.mark.parametrize("jobs_before, drawn, told", [(0, False, False), (1, True, True)])
def test_a_stop_keeps_the_picture_so_far_and_its_text_says_what_it_had(jobs_before: int, drawn: bool, told: bool):
    pipe = tiny_pipeline(WebUITxt2ImgPipeline)
    plain = pipe("a red circle", width=96, height=64, **SHORT).images[0]
    steps: list[int] = []

    def stop(pipe: Any, i: int, t: Any, tensors: dict) -> dict:
        steps.append(i)
        pipe._interrupt = len(steps) > 2 + jobs_before  # two steps of the drawing, one of each job
        return {}

    detail = {"ad_model": "face", "detections": [TWO]}
    out = pipe("a red circle", width=96, height=64, detailers=[detail], callback_on_step_end=stop, **SHORT)
    assert (out.images[0].tobytes() != plain.tobytes()) is drawn
    assert ("ADetailer" in out.infotexts[0]) is told
    assert f"stopped after {jobs_before} of 2 masks" in pipe.detail_report()
    whole = pipe("a red circle", width=96, height=64, detailers=[detail], **SHORT).images[0]
    assert whole.tobytes() != out.images[0].tobytes()


def test_a_job_that_fails_leaves_the_picture_of_its_pass(caplog: pytest.LogCaptureFixture):
    """UniPC needs three steps; a strength of 0.4 leaves one. The webui swallows that, and so does this, aloud."""
    pipe = tiny_pipeline(WebUITxt2ImgPipeline)
    call = {**SHORT, "num_inference_steps": 4, "sampler": "UniPC", "width": 96, "height": 64}
    plain = pipe("a red circle", **call).images[0]
    with caplog.at_level(logging.WARNING, "diffusers.webui"):
        out = pipe("a red circle", detailers=[{"ad_model": "face", "detections": [BOX]}], **call)
    assert out.images[0].tobytes() == plain.tobytes() and "ADetailer model: face" in out.infotexts[0]
    assert "failed" in pipe.detail_report() and "failed" in caplog.text


@pytest.mark.parametrize(
    "detailers, said",
    [
        ([{"ad_model": "face", "ad_denoise": 1}], "ad_denoising_strength"),
        ([{"ad_model": "hand_yolov8n.pt"}], "never opened"),
        ([{"ad_model": "face", "detections": [BOX, BOX]}], "2 entries for 1 images"),
        ([{"detections": [{"bboxes": [[1, 2]]}]}], "rows x1, y1, x2, y2"),
        ([{"detections": [BOX], "ad_use_sampler": True, "ad_sampler": "Eulr"}], "Euler"),
        ([{"detections": [BOX], "ad_use_checkpoint": True, "ad_checkpoint": "other"}], "add_checkpoint"),
        ([{"detections": [BOX], "ad_use_vae": True, "ad_vae": "other.safetensors"}], "add_vae"),
        ([{"detections": [BOX], "ad_prompt": "x <lora:nothing:1>"}], "nothing"),
        ([{"detections": [BOX], "ad_controlnet_model": "control_v11p_sd15_inpaint"}], "draw without ControlNets"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_any_work(detailers: list, said: str):
    pipe = tiny_pipeline(WebUITxt2ImgPipeline)
    calls: list[int] = []
    hook = pipe.unet.register_forward_hook(lambda *args: calls.append(1))
    try:
        with pytest.raises(ValueError, match=said):
            pipe("a red circle", detailers=detailers, **SHORT)
    finally:
        hook.remove()
    assert not calls


def test_options_of_the_passes_are_checked():
    with pytest.raises(ValueError, match="Area"):
        tiny_pipeline(WebUITxt2ImgPipeline)(
            "x", detailers=[{"detections": [BOX]}], webui_options={"ad_bbox_sortby": "Area"}, **SHORT
        )


def test_diffusers_noise_draws_the_passes_too():
    """No seed and no sampler: noise comes from the generator, steps from the pipeline's scheduler."""
    pipe = tiny_pipeline(WebUITxt2ImgPipeline)
    draw = {"width": 96, "height": 64, "num_inference_steps": 3, "guidance_scale": 5.0}

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(1)

    plain = pipe("a red circle", generator=generator(), **draw).images[0]
    detailed = [
        pipe("a red circle", generator=generator(), detailers=[{"detections": [BOX]}], **draw).images[0]
        for _ in range(2)
    ]
    assert detailed[0].tobytes() == detailed[1].tobytes() != plain.tobytes()
