"""Detailing passes: every recorded run of ADetailer drawn again from the boxes that its detector gave."""

import re
from typing import Any

import PIL
import pytest
import torch
from detailer_runs import (
    add_other_models,
    check_pictures,
    hires_arguments,
    init_arguments,
    job_arguments,
    recorded_texts,
    tiny_pipeline,
)
from packaging.version import Version
from recordings import GOLDEN, recorded_json
from safetensors.torch import load_file
from webui_diffusers.pipelines import WebUIImg2ImgPipeline, WebUITxt2ImgPipeline, arguments
from webui_diffusers.pipelines.detailer_settings import read_detailer


FOLDER = GOLDEN / "detailer" / "adetailer"
RUNS = [
    run
    for run in recorded_json("detailer/adetailer.json", "runs", 15)
    if (FOLDER / f"{run['name']}.safetensors").exists()
]
assert len(RUNS) >= 15
# Since 13, Pillow resizes a picture that grows wider and less high by its columns first; what it was before differs.
VERTICAL_FIRST = Version(PIL.__version__) >= Version("13")
HORIZONTAL_FIRST = {"ad_i2i_inpaint_whole": 5, "ad_i2i_soft": 2, "ad_seed_batch_i2i_nv": 2}


def is_valid(tab: dict) -> bool:
    try:
        return read_detailer(tab) is not None
    except ValueError:
        return False


def passes_of(run: dict, tensors: dict, images: range) -> list[Any]:
    """`detailers` of a recorded run, with what the detector gave for these images at each of its calls."""
    found = {}
    for c, call in enumerate(run["calls"]):
        given = dict(run["detections"][min(c, len(run["detections"]) - 1)])
        given["masks"] = None if given["masks"] is None else tensors[given["masks"]]
        found[call["image_index"], call["tab"]] = given
    tabs = [tab for tab in run["ad"]["tabs"] if is_valid(tab)]  # the webui drops those that are not
    return [
        run["ad"]["enable"],
        run["ad"]["skip_img2img"],
        *({**tab, "detections": [found.get((k, t)) for k in images]} for t, tab in enumerate(tabs)),
    ]


def call_of(run: dict, tensors: dict, first: int) -> dict:
    """The keyword arguments of one batch of a recorded job, whose images are counted from `first`."""
    p = run["params"]
    batch = p["batch_size"]
    styles = [style for style in run["styles"] if style[0] in p.get("styles", [])]
    prompts = p["prompt"] if isinstance(p["prompt"], list) else [p["prompt"]] * batch
    detailers = passes_of(run, tensors, range(first, first + batch))
    for tab in detailers[2:]:  # the job's styles are applied again to what the pass draws
        for name, column in (("ad_prompt", 1), ("ad_negative_prompt", 2)):
            if styles:
                tab[name] = styled(tab.get(name) or "[PROMPT]", [style[column] for style in styles])
    given = {
        **job_arguments(run, first),
        "prompt": [re.sub("<lora:nothing:[^>]*>", "", styled(t, [style[1] for style in styles])) for t in prompts],
        "negative_prompt": styled(p["negative_prompt"], [style[2] for style in styles]),
        "detailers": detailers,
    }
    if run["kind"] == "txt2img":
        return given | hires_arguments(p)
    given |= init_arguments(run, tensors)
    soft = run["soft_inpainting"]
    if soft is not None and soft[0]:
        names = ("schedule_bias", "preservation_strength", "transition_contrast_boost")
        names += ("mask_influence", "difference_threshold", "difference_contrast")
        given["soft_inpainting"] = dict(zip(names, soft[1:], strict=True))
    return given


def styled(prompt: str, styles: list[str]) -> str:
    for style in styles:
        if "{prompt}" in style:
            prompt = style.replace("{prompt}", prompt)
        else:
            prompt = ", ".join(part for part in (prompt, style) if part)
    return prompt


@pytest.mark.goldens
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run["name"])
def test_a_recorded_run_is_drawn_again(run: dict, monkeypatch: pytest.MonkeyPatch):
    tensors = load_file(FOLDER / f"{run['name']}.safetensors")
    pipe = tiny_pipeline(WebUITxt2ImgPipeline if run["kind"] == "txt2img" else WebUIImg2ImgPipeline)
    add_other_models(pipe)
    if run["options_changed"].get("face_restoration_model") == "Invert":
        monkeypatch.setattr(arguments, "load_face_restorer", lambda name: torch.nn.Identity())
        monkeypatch.setattr(arguments, "picture_restorer", lambda *args, **kwargs: lambda picture: 255 - picture)
    torch.manual_seed(run["global_seed_before_run"])
    images, texts = [], []
    for n in range(run["params"]["n_iter"]):
        out = pipe(**call_of(run, tensors, n * run["params"]["batch_size"]))
        images, texts = images + out.images, texts + out.infotexts
    assert len(images) == run["n_images"]
    levels = 4 if run["options_changed"].get("img2img_color_correction") else 1
    check_pictures(images, tensors, levels if VERTICAL_FIRST else max(levels, HORIZONTAL_FIRST.get(run["name"], 0)))
    if not run["styles"]:
        assert texts == recorded_texts(run)
