"""Parameters texts as arguments of a call, and back."""

import inspect

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from webui_diffusers.loaders.utils import NameFromText
from webui_diffusers.pipelines.infotext import (
    call_arguments,
    call_report,
    call_settings,
    format_infotext,
    parse_infotext,
)
from webui_diffusers.pipelines.infotext.fields import CALL_FIELDS, HIRES_FIELDS, IMG2IMG_FIELDS
from webui_diffusers.pipelines.infotext.sampler_names import INFOTEXT_SAMPLERS, INFOTEXT_SCHEDULES, infotext_sampler
from webui_diffusers.pipelines.infotext.styles import PromptStyle
from webui_diffusers.pipelines.infotext.write import ENSD_SAMPLERS
from webui_diffusers.pipelines.options import WEBUI_OPTIONS


# 1. Table

PICTURE = """masterpiece, (best quality:1.2), 1girl <lora:add_detail:0.8>
Negative prompt: (worst quality:1.4), lowres
Steps: 25, Sampler: DPM++ 2M SDE Karras, CFG scale: 6.5, Seed: 965400086, Face restoration: GFPGAN, Size: 640x960, \
Model hash: 879db523c3, Model: dreamshaper_8, Variation seed: 7, Variation seed strength: 0.25, \
Seed resize from: 448x512, Denoising strength: 0.45, Clip skip: 2, ENSD: 31337, RNG: NV, Tiling: True, \
Hires prompt: "more, detail", Hires upscale: 1.5, Hires steps: 15, Hires upscaler: 4x-UltraSharp, \
Lora hashes: "add_detail: 7c6bad76eb54", Emphasis: No norm, Eta: 0.5, Sigma noise: 1.02, Pad conds: True, \
ADetailer model: face_yolov8n.pt, Token merging ratio: 0.5, Version: v1.10.1"""


def test_a_whole_text_becomes_a_call():
    assert call_arguments(parse_infotext(PICTURE)) == {
        "prompt": "masterpiece, (best quality:1.2), 1girl <lora:add_detail:0.8>",
        "negative_prompt": "(worst quality:1.4), lowres",
        "num_inference_steps": 25,
        "sampler": "DPM++ 2M SDE",
        "schedule": "Karras",
        "guidance_scale": 6.5,
        "seed": 965400086,
        "restore_faces": "GFPGAN",
        "width": 640,
        "height": 960,
        "subseed": 7,
        "subseed_strength": 0.25,
        "seed_resize": (448, 512),
        "clip_skip": 1,
        "noise_source": "nv",
        "tiling": True,
        "hires_strength": 0.45,
        "hires_prompt": "more, detail",
        "hires_scale": 1.5,
        "hires_steps": 15,
        "hires_upscaler": "4x-UltraSharp",
        "webui_options": {
            "eta_noise_seed_delta": 31337,
            "emphasis": "No norm",
            "eta_ancestral": 0.5,
            "s_noise": 1.02,
            "pad_cond_uncond": True,
        },
    }


def test_what_the_call_cannot_give_is_told_line_by_line():
    report = call_report(parse_infotext(PICTURE))
    assert [line.partition(":")[0] for line in report] == [
        "ADetailer redrew 1 area of the finished picture (face_yolov8n.pt at 0.4), faces or the like; here "
        "`detailers` does, with what a detector finds.",
        "Model",
        "Lora hashes",
        "Token merging ratio",
    ]
    assert "`dreamshaper_8 [879db523c3]`" in report[1] and "7c6bad76eb54" in report[2]


@pytest.mark.parametrize(
    "fields, arguments",
    [
        ("Clip skip: 1", {}),
        ("Clip skip: 12", {"clip_skip": 11}),
        ("Steps: 20.0", {"num_inference_steps": 20}),
        ("Tiling: False", {}),
        ("Seed resize from: -1x-1", {}),
        ("Eta DDIM: 0.3", {"webui_options": {"eta_ddim": 0.3}}),
        ("Schedule max sigma: 14.5", {"webui_options": {"sigma_max": 14.5}}),
        ("Refiner switch at: 0.8", {"refiner_switch_at": 0.8}),
        ("Denoising strength: 0.5", {}),
        (
            "Denoising strength: 0.5, Hires upscaler: Latent",
            {"hires_strength": 0.5, "hires_scale": 2.0, "hires_upscaler": "Latent"},
        ),
        (
            "Denoising strength: 0.5, Hires resize: 1024x0",
            {"hires_strength": 0.5, "hires_size": (1024, 0)},
        ),
        (
            "Denoising strength: 0.5, Hires upscale: 2, Hires sampler: Euler, Hires schedule type: Karras",
            {"hires_strength": 0.5, "hires_scale": 2.0, "hires_sampler": "Euler", "hires_schedule": "Karras"},
        ),
        ("Hires upscale: 2", {}),
    ],
)
def test_fields_become_arguments_as_the_table_says(fields, arguments):
    line = {"sampler": "Euler a", "schedule": "Automatic", "prompt": "", "negative_prompt": ""}
    read = parse_infotext(f"Sampler: Euler a, {fields}, Version: v1.10.1, User: me")
    assert call_arguments(read) == {**line, **arguments}


def test_a_hires_pass_by_another_sampler_keeps_the_written_schedule():
    text = (
        "Sampler: DPM++ 2M, Schedule type: Karras, Denoising strength: 0.5, Hires upscale: 2, Hires sampler: Euler, "
        "Version: v1.10.1"
    )
    read = call_arguments(parse_infotext(text))
    assert (read["sampler"], read["schedule"]) == ("DPM++ 2M", "Automatic")
    assert (read["hires_sampler"], read["hires_schedule"]) == ("Euler", "Karras")


def test_a_picture_drawn_over_another_becomes_a_call_of_the_other_pipeline():
    text = (
        "a\nSteps: 20, Sampler: Euler a, Seed: 1, Denoising strength: 0.75, Mask mode: Inpaint not masked, "
        "Mask blur: 4, Inpaint area: Only masked, Masked area padding: 64, Masked content: fill, "
        "Noise multiplier: 1.05"
    )
    read = parse_infotext(text)
    arguments = call_arguments(read, img2img=True)
    assert "hires_scale" not in arguments and call_report(read, img2img=True) == []
    assert {name: arguments[name] for name in ("strength", "mask_blur", "inpaint_area", "masked_padding")} == {
        "strength": 0.75,
        "mask_blur": 4,
        "inpaint_area": "masked",
        "masked_padding": 64,
    }
    assert (arguments["invert_mask"], arguments["masked_content"]) == (True, "fill")
    assert arguments["webui_options"] == {"initial_noise_multiplier": 1.05}
    assert "hires_scale" not in call_arguments(read)
    (told,) = call_report(read)
    assert "over another picture at a strength of 0.75, with a mask (img2img)" in told


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"Steps": "many"}, "Steps: many: it is not readable, so `num_inference_steps` stays as it is."),
        ({"Sampler": "res_2s"}, "Sampler: res_2s: there is no such sampler here; it is drawn with DPM++ 2M instead."),
        ({"Schedule type": "bong_tangent"}, "Schedule type: bong_tangent: there is no such schedule here"),
        ({"Model hash": "879db523c3"}, "Model hash: 879db523c3: it was drawn with the checkpoint of this hash"),
        ({"Refiner": "x [0123456789]"}, "give its UNet as the component `refiner`"),
        ({"Hires upscale": "2"}, "Hires upscale: 2: it is for a hires pass, and here is none."),
        ({"Seed resize from-1": "wide", "Seed resize from-2": "512"}, "no whole number of pixels"),
        ({"Moon phase": "full"}, "nothing here is called so"),
        ({"Moon phase": "full", "Tide": "low"}, "nothing here is called `Moon phase`, `Tide` (extensions wrote them"),
        ({"FP8 weight": "Enable"}, "held in FP8"),
        ({"Styles array": ["film"]}, "pass the same `styles`"),
        ({"Denoising strength": "0.5", "Hires steps": "5"}, "the webui enlarges 2 times then"),
    ],
)
def test_a_field_that_cannot_be_given_is_told(fields, words):
    assert any(words in line for line in call_report(fields)), call_report(fields)


def test_a_checkpoint_that_is_in_use_is_not_told():
    fields = {"Model": "dreamshaper_8", "Model hash": "879db523c3"}
    assert call_report(fields, model_hash="879DB523C3" + "0" * 54) == []
    assert "879db523c3" in call_report(fields, model_hash="0123456789")[0]


def test_styles_are_merged_again():
    styles = {"film": PromptStyle("film", "film grain", "digital")}
    text = "a, film grain\nNegative prompt: b, digital\nSteps: 20, Seed: 1, Hires prompt: " + '"c, film grain"'
    arguments = call_arguments(parse_infotext(text, styles=styles) | {"Denoising strength": "0.5"}, styles=styles)
    assert (arguments["prompt"], arguments["negative_prompt"]) == ("a, film grain", "b, digital")
    assert arguments["hires_prompt"] == "c, film grain" and "hires_negative_prompt" not in arguments


def test_loras_of_a_call_are_written_as_tags():
    settings = call_settings({"prompt": "a cat", "loras": {"x": 0.8}})
    assert settings["prompt"] == "a cat<lora:x:0.8>"
    assert call_settings({"prompt": "a", "loras": [("x", 1.0, 0.5)]})["prompt"] == "a<lora:x:1.0:0.5>"


# 2. One vocabulary


def test_every_setting_of_the_table_is_one_of_webui_options():
    for label, field in (CALL_FIELDS | HIRES_FIELDS | IMG2IMG_FIELDS).items():
        group, _, name = field.argument.rpartition(".")
        if group:
            assert name in WEBUI_OPTIONS, label
            assert field.absent == WEBUI_OPTIONS[name], label


def test_every_argument_of_the_table_is_one_of_the_call():
    pipelines = pytest.importorskip("webui_diffusers.pipelines.txt2img")
    known = inspect.signature(pipelines.WebUITxt2ImgPipeline.__call__).parameters
    for field in (CALL_FIELDS | HIRES_FIELDS).values():
        assert field.argument.startswith("webui_options.") or field.argument in known, field.argument
    for name in ("sampler", "schedule", "seed_resize", "hires_size", "hires_sampler", "hires_schedule"):
        assert name in known


# 3. Round trip

words = st.lists(st.sampled_from(["a cat", "(b:1.2)", "[c]", "d, e", "<lora:x:0.5>", "16:9"]), min_size=1, max_size=4)
prompts = words.map(", ".join)
positive = st.floats(0.01, 30).map(lambda x: round(x, 4))
sizes = st.integers(8, 4096)
names = st.tuples(st.sampled_from(list(INFOTEXT_SAMPLERS)), st.sampled_from(list(INFOTEXT_SCHEDULES))).map(
    lambda pair: infotext_sampler(*pair)
)
options = st.fixed_dictionaries(
    {},
    optional={
        field.argument.removeprefix("webui_options."): st.just(True)
        if field.absent is False
        else st.just("Ignore")
        if label == "Emphasis"
        else st.just("both passes")
        if label == "Hires refiner"
        else st.just("Zero Terminal SNR")
        if label == "Noise Schedule"
        else positive.filter(lambda x, absent=field.absent: x != absent)
        for label, field in CALL_FIELDS.items()
        if field.argument.startswith("webui_options.") and label != "ENSD"
    },
)
hires = st.fixed_dictionaries(
    {"hires_strength": positive},
    optional={
        "hires_prompt": prompts.map(lambda text: f"{text}, hires"),
        "hires_negative_prompt": prompts.map(lambda text: f"{text}, hires"),
        "hires_steps": st.integers(1, 150),
        "hires_upscaler": st.sampled_from(["Latent", "R-ESRGAN 4x+", "None"]),
        "second": names,
    },
)
calls = st.fixed_dictionaries(
    {"prompt": prompts, "negative_prompt": prompts, "names": names, "num_inference_steps": st.integers(1, 150)},
    optional={
        "guidance_scale": positive,
        "seed": st.integers(-1, 2**32),
        "width": sizes,
        "restore_faces": st.sampled_from(["CodeFormer", "GFPGAN"]),
        "variation": st.tuples(st.integers(0, 2**32), positive),
        "seed_resize": st.tuples(sizes, sizes),
        "clip_skip": st.integers(1, 11),
        "noise_source": st.sampled_from(["cpu", "nv"]),
        "tiling": st.just(True),
        "refiner_switch_at": positive,
        "webui_options": options,
        "ensd": st.integers(1, 99999),
        "hires": st.one_of(
            st.tuples(hires, st.fixed_dictionaries({"hires_scale": positive})),
            st.tuples(hires, st.fixed_dictionaries({"hires_size": st.tuples(sizes, sizes | st.just(0))})),
        ),
    },
)


def _arguments(drawn: dict) -> dict:
    """A call as `call_arguments` would give it, from the parts that were drawn."""
    drawn = dict(drawn)
    arguments = {"sampler": drawn["names"][0], "schedule": drawn.pop("names")[1]}
    if "width" in drawn:
        arguments["height"] = drawn["width"] // 2 + 8
    if "variation" in drawn:
        arguments["subseed"], arguments["subseed_strength"] = drawn.pop("variation")
    for part in drawn.pop("hires", ()):
        second = dict(part).pop("second", None)
        arguments |= {name: value for name, value in part.items() if name != "second"}
        if second and second != (arguments["sampler"], arguments["schedule"]):
            arguments["hires_sampler"], arguments["hires_schedule"] = second
    settings = dict(drawn.pop("webui_options", {}))
    if not set(drawn["prompt"] + drawn["negative_prompt"]) & set("(["):
        settings.pop("emphasis", None)
    ensd = drawn.pop("ensd", None)
    if ensd and arguments["sampler"] in ENSD_SAMPLERS:
        settings["eta_noise_seed_delta"] = ensd
    return arguments | drawn | ({"webui_options": settings} if settings else {})


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(calls)
def test_a_written_call_is_read_back(drawn):
    arguments = _arguments(drawn)
    text = format_infotext(call_settings(arguments))
    assert call_arguments(parse_infotext(text)) == arguments
    assert call_report(parse_infotext(text)) == []


@given(
    st.fixed_dictionaries(
        {"strength": positive},
        optional={
            "mask_blur": st.integers(0, 64),
            "invert_mask": st.just(True),
            "masked_padding": st.integers(33, 256),
            "inpaint_area": st.just("masked"),
            "masked_content": st.sampled_from(["fill", "latent noise", "latent nothing"]),
        },
    )
)
def test_a_written_call_over_a_picture_is_read_back(drawn):
    arguments = {"prompt": "a", "negative_prompt": "", "sampler": "Euler", "schedule": "Automatic", "seed": 1, **drawn}
    text = format_infotext(call_settings(arguments))
    assert call_arguments(parse_infotext(text), img2img=True) == arguments
    assert call_report(parse_infotext(text), img2img=True) == []


def test_extensions_become_arguments_where_they_are_asked_for():
    fields = parse_infotext(
        'a\nSteps: 4, Sampler: Euler a, Seed: 1, ControlNet 0: "Module: canny, Model: a/b [d14c016b], Weight: 0.8", '
        "ADetailer model: ../face_yolov8n.pt, ADetailer confidence: 0.5, ADetailer model 2nd: hand_yolov8n.pt, "
        "Soft inpainting enabled: True, Soft inpainting schedule bias: 2"
    )
    assert not {"control_units", "detailers"} & set(call_arguments(fields))
    found = call_arguments(fields, extensions=True)
    assert found["control_units"] == [{"module": "canny", "model": "b [d14c016b]", "weight": 0.8}]
    assert [one["ad_model"] for one in found["detailers"]] == ["face_yolov8n.pt", "hand_yolov8n.pt"]
    assert found["detailers"][0]["ad_confidence"] == 0.5 and "soft_inpainting" not in found
    assert all(isinstance(one["ad_model"], NameFromText) for one in found["detailers"])
    assert call_arguments(fields, img2img=True, extensions=True)["soft_inpainting"] == {"schedule_bias": 2.0}


@pytest.mark.parametrize(
    "name", ["attacker/payload", "/etc/passwd", "..\\..\\x.pth", "https://host/x.pth", "C:/x.pth"]
)
def test_no_name_of_a_text_is_a_path_or_an_address(name):
    fields = {"Denoising strength": "0.5", "Hires upscale": "2", "Hires upscaler": name, "Face restoration": name}
    found = call_arguments(fields)
    for argument in ("hires_upscaler", "restore_faces"):
        assert isinstance(found[argument], NameFromText) and not set("/\\:") & set(found[argument])
    assert sum("looked up by its name" in line for line in call_report(fields)) == 2
