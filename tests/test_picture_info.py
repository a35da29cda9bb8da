"""Texts in pictures: written, read back, and recognised when another program wrote them."""

import gzip
import json
import os
import struct
import subprocess
import sys
import zlib
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from webui_diffusers.loaders.utils import atomic_write
from webui_diffusers.pipelines.infotext import call_arguments, call_report, parse_infotext
from webui_diffusers.pipelines.infotext.filenames import picture_name
from webui_diffusers.pipelines.infotext.files import (
    PICTURE_FORMATS,
    read_infotext,
    save_picture,
    save_pictures,
)
from webui_diffusers.pipelines.infotext.from_call import call_infotexts, network_tags_text
from webui_diffusers.pipelines.registry import model_facts


TEXT = "a café, 猫 in <lora:moxin:0.8>\nNegative prompt: bad\nSteps: 20, Sampler: Euler a, Seed: 7, Size: 64x48"


def picture(width: int = 24, height: int = 16) -> Image.Image:
    return Image.fromarray(np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3))


def png(path: Path, **texts: str) -> Path:
    chunks = PngImagePlugin.PngInfo()
    for name, value in texts.items():
        chunks.add_text(name.replace("_dash_", "-"), value)
    picture().save(path, pnginfo=chunks)
    return path


# 1. Table: what stands where


@pytest.mark.parametrize("ending", PICTURE_FORMATS)
def test_a_picture_saved_here_is_read_back_here(tmp_path: Path, ending: str):
    path = save_picture(picture(), tmp_path / f"x{ending}", TEXT)
    found = read_infotext(path)
    assert (found, found.tool) == (TEXT, "webui")
    assert call_arguments(parse_infotext(found))["seed"] == 7


@pytest.mark.parametrize("ending", [".png", ".webp"])
def test_lossless_formats_keep_every_pixel(tmp_path: Path, ending: str):
    path = save_picture(picture(), tmp_path / f"x{ending}", TEXT, lossless=True)
    assert np.array_equal(np.array(Image.open(path).convert("RGB")), np.array(picture()))


def test_a_png_has_the_text_in_a_chunk_called_parameters(tmp_path: Path):
    path = save_picture(picture(), tmp_path / "x.png", TEXT, texts={"postprocessing": "Postprocess upscale by: 2"})
    assert Image.open(path).text == {"parameters": TEXT, "postprocessing": "Postprocess upscale by: 2"}


@pytest.mark.parametrize("ending", [".jpg", ".webp", ".avif"])
def test_other_formats_have_it_in_the_user_comment_with_the_high_byte_first(tmp_path: Path, ending: str):
    path = save_picture(picture(), tmp_path / f"x{ending}", "é")
    assert Image.open(path).getexif().get_ifd(0x8769)[0x9286] == b"UNICODE\0\x00\xe9"


def test_a_user_comment_of_other_programs_is_read_too(tmp_path: Path):
    for number, comment in enumerate(
        [b"UNICODE\0" + TEXT.encode("utf-16-le"), b"ASCII\0\0\0" + TEXT.encode(), b"\0" * 8 + TEXT.encode()]
    ):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = comment
        picture().save(tmp_path / f"{number}.jpg", exif=exif.tobytes())
        assert read_infotext(tmp_path / f"{number}.jpg") == TEXT


def test_a_png_whose_latin_chunk_holds_utf8_is_read_as_that(tmp_path: Path):
    content = save_picture(picture(), tmp_path / "plain.png").read_bytes()
    chunk = b"tEXtparameters\0" + TEXT.encode()
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "x.png").write_bytes(content[:33] + chunk + content[33:])
    assert read_infotext(tmp_path / "x.png") == TEXT


def hidden(text: str, channels: str, compressed: bool) -> Image.Image:
    """A picture with a text in its lowest bits, column by column."""
    content = gzip.compress(text.encode()) if compressed else text.encode()
    kind = {"A": "png", "RGB": "rgb"}[channels]
    signature = f"stealth_{kind}{'comp' if compressed else 'info'}".encode()
    data = np.frombuffer(signature + struct.pack(">I", len(content) * 8) + content, np.uint8)
    pixels = np.full((24, 96, 4), 254, np.uint8)
    columns = pixels.transpose(1, 0, 2)[:, :, 3:] if channels == "A" else pixels.transpose(1, 0, 2)[:, :, :3]
    values = columns.reshape(-1).copy()
    values[: data.size * 8] |= np.unpackbits(data)
    columns[:] = values.reshape(columns.shape)
    return Image.fromarray(pixels if channels == "A" else pixels[:, :, :3])


@pytest.mark.parametrize("channels, compressed", [("A", False), ("A", True), ("RGB", False), ("RGB", True)])
def test_a_text_hidden_in_the_pixels_is_read(tmp_path: Path, channels: str, compressed: bool):
    hidden(TEXT, channels, compressed).save(tmp_path / "x.png")
    assert (read_infotext(tmp_path / "x.png"), read_infotext(tmp_path / "x.png").tool) == (TEXT, "webui")


def test_novelais_hidden_texts_are_read_as_its_chunks(tmp_path: Path):
    comment = json.dumps({"steps": 28, "seed": 9, "scale": 5.0, "sampler": "k_euler_ancestral", "uc": "bad"})
    chunks = {"Description": "a girl", "Software": "NovelAI", "Comment": comment}
    hidden(json.dumps(chunks), "A", True).save(tmp_path / "x.png")
    found = read_infotext(tmp_path / "x.png")
    assert found.tool == "NovelAI" and call_arguments(parse_infotext(found))["seed"] == 9


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**32 - 1])
def test_a_hidden_text_whose_length_is_wrong_is_none(tmp_path: Path, length: int):
    broken = np.array(hidden(TEXT, "A", True))
    column = broken[:, :, 3].T.reshape(-1).copy()
    column[120:152] = 254 | np.unpackbits(np.frombuffer(struct.pack(">I", length), np.uint8))
    broken[:, :, 3] = column.reshape(broken.shape[1], broken.shape[0]).T
    Image.fromarray(broken).save(tmp_path / "x.png")
    assert read_infotext(tmp_path / "x.png") == ""


def test_comfys_graph_in_a_webps_exif_is_read(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0110] = "prompt:" + json.dumps(COMFY)
    picture().save(tmp_path / "x.webp", exif=exif.tobytes())
    found = read_infotext(tmp_path / "x.webp")
    assert found.tool == "ComfyUI" and call_arguments(parse_infotext(found))["seed"] == 11


def test_postprocessing_is_noted_beside_the_text(tmp_path: Path):
    found = read_infotext(png(tmp_path / "x.png", parameters=TEXT, postprocessing="Postprocess upscale by: 2"))
    assert found == TEXT and found.notes == (
        "the finished picture was changed (Postprocess upscale by: 2); here it is as drawn",
    )


def test_a_header_of_too_many_pixels_is_refused(tmp_path: Path):
    content = save_picture(picture(), tmp_path / "plain.png").read_bytes()
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + content[24:29]
    (tmp_path / "x.png").write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        read_infotext(tmp_path / "x.png")


def test_a_text_file_of_windows_is_read(tmp_path: Path):
    (tmp_path / "x.txt").write_bytes(TEXT.encode("utf-16"))
    (tmp_path / "y.txt").write_bytes("a café\nSteps: 20, Sampler: Euler a, Seed: 7".encode("cp1252"))
    assert read_infotext(tmp_path / "x.txt") == TEXT
    assert read_infotext(tmp_path / "y.txt").startswith("a café\n")


def test_a_text_file_is_read_as_it_is(tmp_path: Path):
    (tmp_path / "x.txt").write_text(TEXT, encoding="utf-8-sig")
    assert read_infotext(tmp_path / "x.txt") == TEXT


def test_a_picture_without_text_has_none(tmp_path: Path):
    found = read_infotext(save_picture(picture(), tmp_path / "x.png"))
    assert (found, found.tool) == ("", "")


COMFY = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": ["9", 0],
            "steps": 20,
            "cfg": 8.0,
            "sampler_name": "dpmpp_2m",
            "scheduler": "karras",
            "denoise": 1.0,
            "model": ["10", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd/dream.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a bottle", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "text, watermark", "clip": ["4", 1]}},
    "9": {"class_type": "PrimitiveInt", "inputs": {"value": 11}},
    "10": {"class_type": "LoraLoader", "inputs": {"lora_name": "x", "model": ["4", 0]}},
}
READ_ARGUMENTS = {
    "ComfyUI": ("a bottle", "text, watermark", 11, 20, "DPM++ 2M", 8.0, (512, 768)),
    "InvokeAI": ("a fox", "ugly", 5, 30, "Euler a", 7.5, (640, 512)),
    "NovelAI": ("a girl", "lowres", 99, 28, "Euler a", 11.0, (832, 1216)),
}


def other_pictures(folder: Path) -> list[tuple[str, Path]]:
    common = {"seed": 5, "width": 640, "height": 512, "steps": 30, "cfg_scale": 7.5}
    new = {"positive_prompt": "a fox", "negative_prompt": "ugly", "scheduler": "euler_a", **common}
    old = {"prompt": [{"prompt": "a fox", "weight": 1.0}], "negative_prompt": "ugly", "sampler": "k_euler_a", **common}
    novel = {"steps": 28, "seed": 99, "scale": 11.0, "sampler": "k_euler_ancestral", "uc": "lowres"}
    novel |= {"width": 832, "height": 1216}
    return [
        ("ComfyUI", png(folder / "comfy.png", prompt=json.dumps(COMFY), workflow="{}")),
        ("InvokeAI", png(folder / "invoke.png", invokeai_metadata=json.dumps(new))),
        ("InvokeAI", png(folder / "invoke2.png", sd_dash_metadata=json.dumps({"image": old}))),
        (
            "NovelAI",
            png(folder / "novel.png", Software="NovelAI", Description="a girl", Comment=json.dumps(novel)),
        ),
    ]


def test_other_programs_are_named_and_read(tmp_path: Path):
    for tool, path in other_pictures(tmp_path):
        found = read_infotext(path)
        call = call_arguments(parse_infotext(found))
        assert found.tool == tool and found.raw
        assert any("another picture" in note for note in found.notes)
        size = call["width"], call["height"]
        names = "prompt", "negative_prompt", "seed", "num_inference_steps", "sampler", "guidance_scale"
        assert (*(call[name] for name in names), size) == READ_ARGUMENTS[tool]


@pytest.mark.parametrize(
    "tool, texts",
    [
        ("ComfyUI", {"prompt": "no json"}),
        ("ComfyUI", {"prompt": "[1, 2]"}),
        ("ComfyUI", {"workflow": "{}"}),
        ("InvokeAI", {"invokeai_metadata": "null"}),
        ("InvokeAI", {"Dream": '"a cat" -s 50 -S 1234 -W 512 -H 448 -C 7.5 -A k_lms'}),
        ("NovelAI", {"Software": "NovelAI"}),
    ],
)
def test_damaged_texts_of_other_programs_are_still_named(tmp_path: Path, tool: str, texts: dict):
    found = read_infotext(png(tmp_path / "x.png", **texts))
    assert found.tool == tool and found.notes


def test_a_graph_that_leads_back_to_itself_ends(tmp_path: Path):
    graph = {"1": {"inputs": {"steps": 1, "sampler_name": "euler", "positive": ["2", 0]}}, "2": {"inputs": {}}}
    graph["2"]["inputs"]["conditioning"] = ["2", 0]
    assert read_infotext(png(tmp_path / "x.png", prompt=json.dumps(graph))).tool == "ComfyUI"


@pytest.mark.parametrize(
    "pattern, name",
    [
        ("[number]-[seed]", "00012-7"),
        ("[date]/[sampler]", "2024-05-01/Euler a"),
        ("[datetime<%H%M>]-[width]x[height]", "1345-24x16"),
        ("[prompt_words<2>]", "a café"),
        ("[steps][batch_number]", "203"),
        ("[model_name]x", "x"),
        ("[datetime<%Y/%m>]/[seed]", "2024_05/7"),
        ("con/nul.[seed]/lpt1-[seed]", "_con/_nul.7/lpt1-7"),
    ],
)
def test_names_are_made_from_the_text(pattern: str, name: str):
    now = datetime(2024, 5, 1, 13, 45)
    assert picture_name(pattern, TEXT, number=12, batch_index=3, picture=picture(), now=now) == name


CALL = {
    "prompt": ["a (cat:1.1)", "a dog"],
    "negative_prompt": "bad",
    "sampler": "k_dpmpp_2m",
    "num_inference_steps": 20,
    "guidance_scale": 7.5,
    "eta": 0.3,
    "subseed": 3,
    "subseed_strength": 0.0,
    "seed": -1,
    "loras": [("styles/ink.safetensors", 0.5)],
    "webui_options": {"s_churn": 2.0, "eta_ddim": 0.4, "emphasis": "No norm"},
}


def test_a_calls_texts_name_what_was_used():
    first, second = call_infotexts(CALL, [7, 8], [3, 4], {"model_name": "tiny", "width": 64, "height": 48})
    assert first == (
        "a (cat:1.1)<lora:ink:0.5>\nNegative prompt: bad\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, "
        "CFG scale: 7.5, Seed: 7, Size: 64x48, Model: tiny, Emphasis: No norm, Version: v1.10.1"
    )
    assert second.startswith("a dog<lora") and "Seed: 8" in second


def test_hashes_stand_between_the_hires_pass_and_the_rest():
    call = {**CALL, "prompt": "(a)", "hires_scale": 2.0, "hires_upscaler": "/home/me/4x.pth", "hires_sampler": "Euler"}
    text = call_infotexts(call, [7], None, {"TI hashes": ["a: 1"], "Refiner": "r [0123456789]", "Lora hashes": "x: 2"})
    labels = [part.partition(":")[0] for part in text[0].splitlines()[-1].split(", ")]
    assert labels[5:] == [
        "Denoising strength",
        "Hires sampler",
        "Hires schedule type",
        "Hires upscale",
        "Hires upscaler",
        "Lora hashes",
        "TI hashes",
        "Emphasis",
        "Refiner",
        "Sigma churn",
        "Version",
    ]
    assert "/home" not in text[0]


def test_the_models_name_and_hash_come_from_where_it_was_loaded(tmp_path: Path):
    class Pipe:
        class config:
            _name_or_path = str(tmp_path / "dream v8.safetensors")

    Path(Pipe.config._name_or_path).write_bytes(b"abc")
    assert model_facts(Pipe) == {"model_name": "dream v8", "model_hash": "ba7816bf8f"}
    Pipe.config._name_or_path = "org/name"
    assert model_facts(Pipe) == {"model_name": "name"}


def test_networks_given_as_an_argument_are_written_as_tags():
    assert network_tags_text([("a", 1), ("b", 0.5, 0.25), ("c", 1, 1, None, {"IN01": 0})]) == (
        "<lora:a:1><lora:b:0.5:0.25><lora:c:1>"
    )


# 2. Properties

texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip)


@settings(max_examples=30, deadline=None)
@given(texts, st.sampled_from([".png", ".jpg", ".webp", ".avif"]))
@example("*", ".png")  # no bullet of the line below
def test_any_text_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, text: str, ending: str):
    """With a line of fields, as every infotext has: a few signs alone do not tell the byte order of UTF-16."""
    text, folder = f"{text}\nSteps: 20, Sampler: Euler a, Seed: 1, Size: 8x8", tmp_path_factory.mktemp("any")
    assert read_infotext(save_picture(picture(2, 2), folder / f"x{ending}", text)) == text


@settings(max_examples=50, deadline=None)
@given(texts)
def test_no_text_makes_a_name_that_leaves_the_folder(text: str):
    name = picture_name("x[prompt]", f"{text}\nSteps: 1, Seed: 1, Size: 8x8")
    assert "/" not in name and "\\" not in name and len(name) < 200 and not name.endswith((".", " "))


@pytest.mark.parametrize(
    "prompt, pattern",
    [
        ("美少女" * 60, "[number]-[prompt_spaces]"),
        ("😀" * 200, "[prompt]-[seed]"),
        ("a" * 200, "[prompt]-[model_name]-[prompt_spaces]"),
        ("é" * 100 + "\udcff", "[prompt]/[prompt]"),
        ("x", "y" * 400),
    ],
)
def test_a_name_that_is_too_long_is_cut_and_the_picture_kept(tmp_path: Path, prompt: str, pattern: str):
    text = f"{prompt}\nSteps: 20, Sampler: Euler a, Seed: 7, Model: {'m' * 200}"
    first, second = save_pictures([picture()] * 2, [text] * 2, tmp_path, pattern)
    assert len(first.name.encode()) <= 250 and first != second and second.exists()
    assert "[seed]" not in pattern or first.stem.endswith("-7")


def test_a_calls_text_read_back_is_the_call():
    text = call_infotexts({**CALL, "prompt": "a (cat:1.1)", "loras": None}, [7], [3])[0]
    assert call_arguments(parse_infotext(text)) == {
        "prompt": "a (cat:1.1)",
        "negative_prompt": "bad",
        "num_inference_steps": 20,
        "guidance_scale": 7.5,
        "seed": 7,
        "sampler": "DPM++ 2M",
        "schedule": "Automatic",
        "webui_options": {"emphasis": "No norm"},
    }
    assert call_report(parse_infotext(text)) == []


# 3. Files are whole, and nobody's is overwritten


def test_numbers_go_on_and_taken_names_get_a_number(tmp_path: Path):
    images = [picture(), picture()]
    first = save_pictures(images, [TEXT, TEXT], tmp_path, "[number]-[seed]")
    again = save_pictures(images[:1], [TEXT], tmp_path, "[number]-[seed]", extension="webp")
    same = save_pictures(images, [TEXT, TEXT], tmp_path / "s", "[seed]")
    assert [path.name for path in first + again] == ["00000-7.png", "00001-7.png", "00002-7.webp"]
    assert [path.name for path in same] == ["7.png", "7-2.png"]
    assert not list(tmp_path.rglob("*.part"))


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path):
    path = save_picture(picture(), tmp_path / "x.png", "before")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as aside:
        aside.write_bytes(b"half")
        raise KeyboardInterrupt
    assert read_infotext(path) == "before" and os.listdir(tmp_path) == ["x.png"]


def test_reading_and_writing_texts_needs_no_torch():
    code = (
        "import sys\n"
        "from webui_diffusers.pipelines.infotext.files import read_infotext, save_picture\n"
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


# 4. Errors


@pytest.mark.parametrize(
    "action, told",
    [
        (lambda folder: save_picture(picture(), folder / "x.bmp2"), r"\.png"),
        (lambda folder: save_picture(np.zeros((2, 2, 3)), folder / "x.png"), 'output_type="pil"'),
        (lambda folder: save_picture(picture(), folder / "x.jpg", "a" * 40_000), "PNG holds any"),
        (lambda folder: save_pictures([picture()], [], folder), "one text an image"),
        (lambda folder: save_pictures([picture()], [TEXT], folder, "[sed]"), "'seed'"),
        (lambda folder: save_pictures([picture()], [TEXT], folder, "../[seed]"), "inside the folder"),
        (lambda folder: read_infotext(folder / "none.png"), "does not exist"),
        (lambda folder: read_infotext(Path(__file__)), "cannot be read as a picture"),
    ],
)
def test_what_cannot_be_done_is_told(tmp_path: Path, action, told: str):
    with pytest.raises(ValueError, match=told):
        action(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of what is broken
@pytest.mark.parametrize("ending", PICTURE_FORMATS)
def test_a_damaged_picture_is_read_or_refused_in_words(tmp_path: Path, ending: str):
    whole = save_picture(picture(), tmp_path / f"x{ending}", TEXT).read_bytes()
    dice = np.random.default_rng(7)
    for number in range(40):
        damaged = bytearray(whole)
        for place in dice.integers(0, len(whole), 1 + number % 9):
            damaged[place] = dice.integers(0, 256)
        path = tmp_path / f"damaged{ending}"
        path.write_bytes(bytes(damaged[: len(whole) - (number % 5) * 7]))
        try:
            read_infotext(path)
        except ValueError as error:
            assert "cannot be read as a picture" in str(error)
