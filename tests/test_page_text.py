"""What the page says about a text: facts, files that are missing, what will differ. Nothing is loaded for it."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from recordings import GOLDEN


pytest.importorskip("fastapi", reason="needs the extra [serve]")

from webui_diffusers.loaders import WebUIFolder
from webui_diffusers.pipelines import WebUITxt2ImgPipeline
from webui_diffusers.pipelines.infotext.files import save_picture
from webui_diffusers.pipelines.serve.page_draw import PageChanges, final_size, page_generation
from webui_diffusers.pipelines.serve.page_html import facts, reading_html
from webui_diffusers.pipelines.serve.page_text import read_page_text, text_of_picture
from webui_diffusers.pipelines.serve.settings import BadRequestField
from webui_diffusers.pipelines.serve.shelf import ModelShelf


NETWORK = GOLDEN / "lora" / "alpha_ne_rank.safetensors"
TEXT = (
    "a (red:1.2) circle <lora:ink:0.7>\nNegative prompt: blurry\nSteps: 4, Sampler: DPM++ 2M Karras, CFG scale: 5, "
    "Seed: 7, Size: 64x96, Clip skip: 2, Denoising strength: 0.4, Hires upscale: 2, Hires upscaler: Lanczos"
)


@pytest.fixture(scope="module")
def pipe(tiny_sd: Path) -> WebUITxt2ImgPipeline:
    pipe = WebUITxt2ImgPipeline.from_pretrained(tiny_sd, dtype=torch.float32)
    pipe.add_lora(NETWORK, "ink")
    return pipe


@pytest.fixture(scope="module")
def shelf(pipe: WebUITxt2ImgPipeline) -> ModelShelf:
    return ModelShelf(pipe, {}, None)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelShelf:
    """A webui's folder whose files are never read but for their hashes."""
    monkeypatch.setenv("WEBUI_DIFFUSERS_CACHE", str(tmp_path / "cache"))
    for place in ("models/Stable-diffusion", "models/Lora", "models/VAE"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "models/Stable-diffusion/shapes.safetensors").write_bytes(b"shapes")
    (tmp_path / "models/Stable-diffusion/other.safetensors").write_bytes(b"other")
    (tmp_path / "models/VAE/soft.safetensors").write_bytes(b"soft")
    shutil.copy(NETWORK, tmp_path / "models/Lora/on_disk.safetensors")
    return ModelShelf(WebUIFolder(tmp_path), {}, None)


def test_the_settings_of_a_text_are_shown_in_words(shelf):
    shown = dict(facts(read_page_text(TEXT, (), shelf)))
    assert shown == {
        "Sampler": "DPM++ 2M Karras",
        "Steps": "4",
        "CFG scale": "5",
        "Seed": "7",
        "Size": "64 × 96",
        "Hires fix": "2 times to 128 × 192, Lanczos, denoising 0.4",
        "Clip skip": "2",
        "Drawn by": "tiny-sd",
    }


def test_a_prompt_alone_is_drawn_with_what_the_webui_starts_with(shelf):
    reading = read_page_text("a blue square", (), shelf)
    shown = dict(facts(reading))
    assert (shown["Steps"], shown["CFG scale"], shown["Seed"]) == ("20", "7", "a new one each time")
    assert "All that the text names is here." in reading_html(reading)
    drawn = page_generation(reading, PageChanges(), shelf.settings).arguments
    assert drawn["num_inference_steps"] == 20 and drawn["seed"] >= 0


def test_what_a_text_says_is_shown_as_text_and_never_as_html(shelf):
    text = (
        "<img src=x onerror=alert(1)> <b>bold</b> <lora:<i>:1>\nNegative prompt: <script>alert(2)</script>\nSteps: 4, "
        'Sampler: Euler, Seed: 1, Model: <a href="x">m</a>, Hires upscale: 2, Denoising strength: 0.5, '
        'Hires upscaler: "<u>up</u>", Odd <b>field</b>: <em>value</em>'
    )
    html = reading_html(read_page_text(text, ("a <s>note</s>",), shelf))
    for tag in ("<img", "<b>", "<i>", "<script", "<a ", "<u>", "<em>", "<s>"):
        assert tag not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in html and "&lt;script&gt;" in html


def test_what_is_missing_is_listed_and_drawn_without(shelf):
    text = TEXT.replace("<lora:ink:0.7>", "<lora:ink:0.7> <lora:nowhere:1>").replace("Lanczos", "4x-UltraSharp")
    text += ", Face restoration: CodeFormer, ADetailer model: hand_yolov8n.pt, Model: dreamshaper_8"
    reading = read_page_text(text, (), shelf)
    assert [line.split(".")[0] for line in reading.missing] == [
        "Checkpoint `dreamshaper_8`",
        "LoRA `nowhere`",
        "Upscaler `4x-UltraSharp`",
        "Face restorer `CodeFormer`",
        "Detector `hand_yolov8n",
    ]
    assert reading.call["prompt"] == "a (red:1.2) circle <lora:ink:0.7> "
    assert {"hires_upscaler", "restore_faces", "detailers"}.isdisjoint(reading.call)
    assert reading.said["prompt"].endswith("<lora:nowhere:1>") and "nowhere" in reading_html(reading)


def test_a_servers_folders_are_not_told_to_visitors(library, tmp_path):
    reading = read_page_text("a cat <lora:on_disc:1>\nSteps: 3, Sampler: Euler, Seed: 1, Model: shape", (), library)
    assert "Near: `on_disk`" in reading_html(reading).replace("<code>", "`").replace("</code>", "`")
    assert str(tmp_path) not in reading_html(reading)


def test_files_are_found_by_hash_and_called_by_the_librarys_names(library):
    digest = hashlib.sha256(NETWORK.read_bytes()).hexdigest()[:12]
    shapes = hashlib.sha256(b"shapes").hexdigest()[:10]
    text = (
        f"a cat <lora:renamed:0.5>\nSteps: 3, Sampler: Euler, Seed: 1, Model: gone, Model hash: {shapes}, "
        f'VAE: soft.safetensors, Lora hashes: "renamed: {digest}"'
    )
    reading = read_page_text(text, (), library)
    assert reading.missing == ()
    assert reading.call["prompt"] == "a cat <lora:on_disk:0.5>"
    assert "LoRA `renamed` is called `on_disk` here." in reading.notes
    generation = page_generation(reading, PageChanges(), library.settings)
    assert generation.settings["sd_model_checkpoint"].startswith("shapes.safetensors")
    assert generation.settings["sd_vae"] == "soft" and generation.restore_afterwards
    assert library.in_hand is None, "reading loads nothing"


def test_a_model_that_is_not_there_gives_way_to_the_servers(library):
    reading = read_page_text("a cat\nSteps: 3, Sampler: Euler, Seed: 1, Model: dreamshaper_8", (), library)
    assert reading.missing == ("Checkpoint `dreamshaper_8`. `other` draws in its place.",)
    assert "sd_model_checkpoint" not in reading.settings


def test_a_picture_of_another_family_is_refused_with_the_reason(shelf):
    reading = read_page_text(
        "a cat\nSteps: 20, Sampler: Euler, Seed: 1, Model: flux1-dev-fp8, Version: f2.0", (), shelf
    )
    assert "Flux" in reading.refusal and "This cannot be drawn here" in reading_html(reading)
    with pytest.raises(BadRequestField, match="Flux"):
        page_generation(reading, PageChanges(), shelf.settings)


@pytest.mark.parametrize(
    "changes, expected",
    [
        (PageChanges(seed=9), {"seed": 9, "num_inference_steps": 4, "hires_scale": 2.0}),
        (PageChanges(seed=0), {"seed": 0}),
        (PageChanges(steps=6), {"seed": 7, "num_inference_steps": 6}),
        (PageChanges(hires="1.5×"), {"hires_scale": 1.5, "hires_upscaler": "Lanczos", "hires_strength": 0.4}),
        (PageChanges(hires="off"), {"hires_scale": None, "hires_upscaler": None, "hires_strength": None}),
    ],
)
def test_one_thing_is_changed_and_all_else_stays(shelf, changes, expected):
    reading = read_page_text(TEXT, (), shelf)
    as_written = page_generation(reading, PageChanges(), shelf.settings).arguments
    changed = page_generation(reading, changes, shelf.settings).arguments
    assert {name: changed.get(name) for name in expected} == expected
    others = {name for name in as_written if name not in expected}
    assert {name: changed[name] for name in others} == {name: as_written[name] for name in others}


def test_a_hires_pass_is_added_where_the_text_has_none(shelf):
    reading = read_page_text("a cat\nSteps: 4, Sampler: Euler, Seed: 7, Size: 64x64", (), shelf)
    call = page_generation(reading, PageChanges(hires="2×"), shelf.settings).arguments
    assert (call["hires_scale"], call["hires_upscaler"], call["hires_strength"]) == (2.0, "Lanczos", 0.4)
    assert final_size(call) == (128, 128)


@pytest.mark.parametrize(
    "field, changes",
    [
        ("Size: 8000x8000", PageChanges()),
        ("Size: 4096x4096", PageChanges(hires="2×")),
        ("Size: 64x64, Denoising strength: 0.5, Hires upscale: 400", PageChanges()),
        ("Size: 64x64, Denoising strength: 0.5, Hires resize: 9000x64", PageChanges()),
        ("Size: 64x64, Denoising strength: 0.5, Hires upscale: 2, Hires steps: 5000", PageChanges()),
        ("Size: 64x64", PageChanges(steps=100_000)),
        ("Size: 64x64", PageChanges(steps=-1)),
        ("Size: 64x64", PageChanges(seed=2.0**70)),
    ],
)
def test_what_is_larger_than_the_api_draws_is_refused(shelf, field, changes):
    reading = read_page_text(f"a cat\nSteps: 4, Sampler: Euler, Seed: 7, {field}", (), shelf)
    with pytest.raises(BadRequestField):
        page_generation(reading, changes, shelf.settings)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_a_pictures_text_is_read_in_every_format(tmp_path, ending):
    text = "ein Bär, 熊, 🐻\nNegative prompt: unscharf\nSteps: 4, Sampler: Euler a, CFG scale: 5, Seed: 7, Size: 8x8"
    path = save_picture(Image.new("RGB", (8, 8), "red"), tmp_path / f"x.{ending}", text)
    assert text_of_picture(path) == text


def test_a_text_hidden_in_pixels_is_read(tmp_path):
    from test_picture_info import TEXT as HIDDEN
    from test_picture_info import hidden

    hidden(HIDDEN, "A", True).save(tmp_path / "x.png")
    assert text_of_picture(tmp_path / "x.png") == HIDDEN


def test_a_file_of_text_is_read(tmp_path):
    (tmp_path / "x.txt").write_text(TEXT, encoding="utf-8")
    assert text_of_picture(tmp_path / "x.txt") == TEXT


def test_a_file_without_a_text_says_so_and_not_where_it_lies(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    (tmp_path / "no.png").write_bytes(b"no picture")
    for name, said in (("plain.png", "holds no parameters"), ("no.png", "no picture that can be read")):
        with pytest.raises(ValueError, match=said) as caught:
            text_of_picture(tmp_path / name)
        assert str(tmp_path) not in str(caught.value)
