"""The commands, each as a user runs it."""

import inspect
import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import ControlNetModel, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTokenizer
from webui_diffusers.loaders.checkpoint.configs import model_config_folder
from webui_diffusers.loaders.library.folder import WebUIFolder
from webui_diffusers.pipelines.cli.axes import read_axis, text_axes
from webui_diffusers.pipelines.cli.common import handle_errors
from webui_diffusers.pipelines.cli.dynamic import filled_calls
from webui_diffusers.pipelines.cli.job_file import read_jobs
from webui_diffusers.pipelines.cli.library import CallFiles
from webui_diffusers.pipelines.cli.main import app
from webui_diffusers.pipelines.cli.models import ModelSetup
from webui_diffusers.pipelines.cli.options import (
    CALL_OPTIONS,
    IMG2IMG_OPTIONS,
    NOT_ON_COMMAND_LINE,
    NOT_OVER_PICTURES,
    argument_name,
)
from webui_diffusers.pipelines.cli.sheet import labelled_sheet
from webui_diffusers.pipelines.cli.sources import SourceCall
from webui_diffusers.pipelines.cli.vocabulary import ClipVocabulary
from webui_diffusers.pipelines.infotext import call_arguments, parse_infotext
from webui_diffusers.pipelines.infotext.files import read_infotext, save_picture
from webui_diffusers.pipelines.options import WEBUI_OPTIONS
from webui_diffusers.pipelines.prompt.clip_tokenizer import FragmentTokenizer


TINY_GFPGAN = {"narrow": 0.0625, "num_style_feat": 32, "num_mlp": 2}
SMALL = ["--width", "64", "--height", "64", "--steps", "3", "--device", "cpu"]


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def result_of(*arguments: object, code: int = 0) -> dict:
    return json.loads(run(*arguments, "--json", code=code).stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A picture of the seed 5, drawn from the command line."""
    model = request.getfixturevalue("tiny_sd")
    out = tmp_path_factory.mktemp("drawn")
    found = result_of(
        "txt2img", "a (red:1.2) circle", "-m", model, "--seed", 5, "--sampler", "Euler a", "-o", out, *SMALL
    )
    return Path(found["pictures"][0]["path"])


# 1. txt2img


def test_every_argument_of_the_call_is_an_option():
    from webui_diffusers.pipelines import WebUITxt2ImgPipeline

    parameters = set(inspect.signature(WebUITxt2ImgPipeline.__call__).parameters) - {"self", "prompt", "kwargs"}
    assert parameters == {*CALL_OPTIONS, *NOT_ON_COMMAND_LINE}


def test_a_picture_tells_what_drew_it(drawn: Path):
    fields = parse_infotext(read_infotext(drawn))
    assert (fields["Prompt"], fields["Seed"], fields["Sampler"]) == ("a (red:1.2) circle", "5", "Euler a")
    assert (fields["Size-1"], fields["Steps"], fields["Model"]) == ("64", "3", "tiny-sd")


def test_a_picture_is_drawn_again_from_its_own_file(drawn: Path, tmp_path: Path, tiny_sd: Path):
    found = result_of("txt2img", "--from", drawn, "-m", tiny_sd, "-o", tmp_path / "again.webp", "--device", "cpu")
    assert found["report"] == []
    again = read_infotext(tmp_path / "again.webp")
    assert again == read_infotext(drawn)
    found = result_of("txt2img", "--from", drawn, "-m", tiny_sd, "-o", tmp_path, "--device", "cpu", "-n", 2)
    pictures = [np.array(Image.open(picture["path"])) for picture in found["pictures"]]
    assert np.array_equal(pictures[0], np.array(Image.open(drawn)))
    assert "Seed: 6" in found["pictures"][1]["infotext"] and not np.array_equal(*pictures)


def test_arguments_stand_over_those_of_the_picture(drawn: Path, tmp_path: Path):
    (tmp_path / "styles.csv").write_text("name,prompt,negative_prompt\nfilm,film grain,digital\n")
    found = result_of(
        "txt2img",
        "--from",
        drawn,
        "--dry-run",
        "--cfg",
        4.5,
        "--lora",
        "ink=0.5",
        "--lora",
        "oil",
        "--option",
        "eta_noise_seed_delta=31337",
        "--hires-size",
        "96x0",
        "--tiling",
        "--style",
        "film",
        "--styles",
        tmp_path / "styles.csv",
    )["arguments"]
    assert found["prompt"] == "a (red:1.2) circle, film grain" and found["negative_prompt"] == "digital"
    assert (found["guidance_scale"], found["seed"], found["tiling"]) == (4.5, 5, True)
    assert found["loras"] == {"ink": 0.5, "oil": 1.0} and found["hires_size"] == [96, 0]
    assert found["webui_options"] == {"eta_noise_seed_delta": 31337}


def test_what_another_picture_needs_is_reported(tmp_path: Path):
    (tmp_path / "p.txt").write_text("a cat\nSteps: 3, Seed: 1, Size: 64x64, Model hash: 879db523c3, Model: dream_8")
    report = result_of("txt2img", "--from", tmp_path / "p.txt", "--dry-run")["report"]
    assert len(report) == 1 and "dream_8 [879db523c3]" in report[0]


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["txt2img"], 2, "give a prompt"),
        (["txt2img", "x", "--steps", "many"], 1, "`num_inference_steps` must be a whole number from 1 on; got 'many'"),
        (["txt2img", "x", "--steps", "0"], 1, "`num_inference_steps` must be a whole number from 1 on"),
        (["txt2img", "x", "--hires-strength", "1.5"], 1, "from 0 to 1"),
        (["txt2img", "x", "-m", "/nope"], 1, "no such file or folder"),
        (["txt2img", "x", "-m", "nope.safetensors"], 1, "no such file or folder"),
        (["txt2img", "x", "--format", "bmpp"], 2, "no picture format"),
        (["txt2img", "x", "--pattern", "[sed]"], 2, "'seed'"),
        (["txt2img", "x", "-o", "here.txtt"], 2, "no picture format"),
        (["txt2imh", "x"], 2, "Did you mean 'txt2img'"),
        (["txt2img", "x", "--option", "s_chrn=1"], 1, "s_churn"),
        (["txt2img", "x", "--hires-size", "2"], 1, "640x960"),
        (["txt2img", "x", "--sampler", "Eulr", "-m", "."], 1, "Did you mean 'Euler"),
        (["txt2img", "x"], 1, "WEBUI_DIFFUSERS_MODEL"),
        (["txt2img", "x", "--from", "none.png"], 1, "does not exist"),
        (["txt2img", "--nope"], 2, "--nope"),
        (["explain", "(a:1.2.3)"], 1, "1.2.3"),
        (["grid", "x"], 2, "--x"),
        (["grid", "x", "--x", "nope=1"], 1, "nope"),
        (["batch", "none.jsonl"], 1, "none.jsonl"),
        (["lora", "none.safetensors"], 1, "none.safetensors"),
        (["restore", "none.png", "-r", "none.pth"], 1, "none.pth"),
        (["upscale", "none.png", "-u", "Lanczos"], 1, "none.png"),
        (["info", "none.png"], 1, "does not exist"),
    ],
)
def test_errors_are_one_message_and_an_exit_code(
    arguments: list, code: int, message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("WEBUI_DIFFUSERS_MODEL", raising=False)
    result = run(*arguments, code=code)
    assert message in result.output and "Traceback" not in result.output


def test_every_argument_of_img2img_is_an_option():
    from webui_diffusers.pipelines import WebUIImg2ImgPipeline

    parameters = set(inspect.signature(WebUIImg2ImgPipeline.__call__).parameters) - {"self", "prompt", "kwargs"}
    assert parameters == {*IMG2IMG_OPTIONS, *NOT_OVER_PICTURES}


def test_a_picture_is_drawn_over_where_the_mask_is_white(drawn: Path, tmp_path: Path, tiny_sd: Path):
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :32] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    arguments = ["img2img", drawn, "a blue square", "-m", tiny_sd, "--mask", tmp_path / "mask.png", "--mask-blur", 0]
    arguments += ["--strength", 0.9, "--seed", 3, "--steps", 3, "--masked-content", "latent noise", "--device", "cpu"]
    (found,) = result_of(*arguments, "-o", tmp_path / "over.png")["pictures"]
    before, after = np.array(Image.open(drawn)).astype(int), np.array(Image.open(found["path"])).astype(int)
    assert np.array_equal(before[:, 40:], after[:, 40:]) and np.abs(before - after)[:, :24].mean() > 5
    fields = parse_infotext(found["infotext"])
    assert (fields["Denoising strength"], fields["Masked content"]) == ("0.9", "latent noise")
    again = result_of("img2img", drawn, "--from", found["path"], "--dry-run", "--strength", 0.4)["arguments"]
    assert (again["strength"], again["masked_content"], again["prompt"]) == (0.4, "latent noise", "a blue square")
    said = run("img2img", "none.png", "x", "-m", tiny_sd, "--resize-mode", "squash", code=1).stderr
    assert "no such file" in said and "'squash'" in said


def test_everything_in_the_way_is_one_list_before_a_model_is_loaded(tmp_path: Path):
    call = ["txt2img", "a <lora:ink:1> b", "-m", "/nope.ckpt", "--sampler", "Eulr", "--hires-upscaler", "R-ESRGAN 4y+"]
    (tmp_path / "Ink2.safetensors").write_bytes(b"")
    result = run(*call, "--hires-scale", 2, "--lora-folder", tmp_path, "--embedding", "/none.pt", code=1)
    said = result.stderr.replace("\n", " ")
    assert "5 things are in the way" in said and "nothing was loaded" in said
    for part in ("/nope.ckpt", "Eulr", "R-ESRGAN 4x+", "LoRA `ink`", "Near: `Ink2`", "/none.pt"):
        assert part in said
    assert not result.stdout


FIVE = """a kite <lora:ink_a:0.8>, EasyNegative
Steps: 2, Sampler: Euler a, CFG scale: 5, Seed: 7, Size: 64x64, Model hash: 879db523c3, Model: dream_8, VAE: soft_vae,
Denoising strength: 0.5, Hires upscale: 1.5, Hires upscaler: 4x-Sharp, Version: v1.10.1
""".replace(",\nDenoising", ", Denoising")


def test_five_missing_things_are_five_lines_and_nothing_is_loaded(tmp_path: Path):
    (tmp_path / "five.txt").write_text(FIVE)
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from webui_diffusers.pipelines.cli.main import app\n"
        f"result = CliRunner().invoke(app, ['txt2img', '--from', {str(tmp_path / 'five.txt')!r}])\n"
        "print(result.stderr)\n"
        "assert result.exit_code == 1 and 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "5 things are in the way" in done.stdout and "--without-missing" in done.stdout
    for part in (
        "Checkpoint `dream_8` [879db523c3]",
        "VAE `soft_vae`",
        "LoRA `ink_a`",
        "`4x-Sharp`",
        "`EasyNegative`",
    ):
        assert done.stdout.count(part) == 1


@pytest.fixture
def webui(tmp_path: Path, golden: Path) -> Path:
    """A webui's folder with a network, an upscaler and an embedding, all under names that the text has."""
    places = {"models/Lora/sub": "ink_a", "models/ESRGAN": "4x-Sharp", "embeddings": "EasyNegative"}
    for folder in (*places, "models/Stable-diffusion", "models/VAE"):
        (tmp_path / "webui" / folder).mkdir(parents=True)
    lora = tmp_path / "webui" / "models" / "Lora" / "sub" / "ink_a.safetensors"
    shutil.copyfile(golden / "lora" / "kohya_lora.safetensors", lora)
    upscaler = tmp_path / "webui" / "models" / "ESRGAN" / "4x-Sharp.safetensors"
    shutil.copyfile(golden / "models" / "tiny-compact-x2.safetensors", upscaler)
    save_file({"emb_params": torch.ones(1, 32)}, tmp_path / "webui" / "embeddings" / "EasyNegative.safetensors")
    return tmp_path / "webui"


def test_a_text_is_drawn_with_the_files_of_a_webui(tmp_path: Path, tiny_sd: Path, webui: Path):
    (tmp_path / "five.txt").write_text(FIVE)
    arguments = ["txt2img", "--from", tmp_path / "five.txt", "-m", tiny_sd, "-o", tmp_path, "--device", "cpu"]
    said = run(*arguments, "--webui", webui, code=1).stderr
    assert "`soft_vae`" in said and "in the way" not in said  # the only one
    found = result_of(*arguments, "--webui", webui, "--without-missing")
    fields = parse_infotext(found["pictures"][0]["infotext"])
    assert fields["Prompt"].startswith("a kite <lora:ink_a:0.8>") and "ink_a: " in fields["Lora hashes"]
    assert fields["Hires upscaler"] == "4x-Sharp" and "EasyNegative: " in fields["TI hashes"]
    assert Image.open(found["pictures"][0]["path"]).size == (96, 96)
    result = run(*arguments, "--webui", tmp_path / "webui" / "models" / "VAE", code=1)
    assert "none of a webui's folders" in result.stderr


def test_what_is_missing_can_be_done_without_and_is_said(tmp_path: Path, tiny_sd: Path):
    (tmp_path / "five.txt").write_text(FIVE)
    arguments = ["txt2img", "--from", tmp_path / "five.txt", "-m", tiny_sd, "-o", tmp_path, "--device", "cpu"]
    result = run(*arguments, "--without-missing", "--json")
    for part in ("VAE `soft_vae`", "LoRA `ink_a`", "`4x-Sharp`", "`EasyNegative`"):
        assert f"Left out: {part.split('`')[0]}" in result.stderr and part in result.stderr
    fields = parse_infotext(json.loads(result.stdout)["pictures"][0]["infotext"])
    assert fields["Prompt"] == "a kite , EasyNegative" and fields["Hires upscaler"] == "Latent"


def test_files_of_the_library_go_to_the_setup(webui: Path, tmp_path: Path):
    for name in ("models/Stable-diffusion/dream_8.safetensors", "models/VAE/soft_vae.pt"):
        (webui / name).write_bytes(b"x")
    fields = parse_infotext(FIVE)
    files = CallFiles(WebUIFolder(webui), ())
    source = SourceCall("", call_arguments(fields), ["Model: dream_8: load that one."], fields)
    source, setup = files.find(source, ModelSetup())
    assert setup.model == str(webui / "models/Stable-diffusion/dream_8.safetensors") and not files.missing
    assert setup.vae == str(webui / "models/VAE/soft_vae.pt") and source.report == []
    _, setup = files.find(source, ModelSetup(model="mine.safetensors", vae="own.pt"))
    assert (setup.model, setup.vae) == ("mine.safetensors", "own.pt")
    _, setup = files.find(source, ModelSetup(model="usual.safetensors"), usual_model=True)
    assert setup.model.endswith("dream_8.safetensors")
    _, setup = files.find(SourceCall("", {"prompt": "x"}, []), ModelSetup(model="dream_8"))
    assert setup.model.endswith("dream_8.safetensors")


def test_a_texts_names_are_never_paths_or_ids(tmp_path: Path, golden: Path):
    """A picture decides about names only; the user may name a path."""
    path = str(golden / "models" / "tiny-compact-x2.safetensors")
    fields = parse_infotext(FIVE.replace("4x-Sharp", path))
    call = {"prompt": "x", "hires_scale": 2, "hires_upscaler": path}
    for own, missing in (((), True), (("hires_upscaler",), False)):
        files = CallFiles(None, own)
        files.find(SourceCall("", call, [], fields if own == () else {}), ModelSetup(model="m"))
        assert any(kind == "upscaler" for kind, _ in files.missing) == missing


def test_help_is_plain_text_and_shows_the_grammar():
    shown = " ".join(run("txt2img", "--help").stdout.split())
    assert "(a:1.2), [a:b:0.5], a AND b, <lora:name:0.8>" in shown
    assert "[number], [seed], [date], [model_name]" in shown and shown.isascii()
    for name in ("grid", "batch", "info", "explain", "lora", "restore", "upscale"):
        assert name in run("--help").stdout and run(name, "--help").stdout.isascii()


def test_the_version_is_the_packages():
    assert run("--version").stdout.strip() == f"webui-diffusers {version('webui-diffusers')}"


def test_several_sources_a_folder_and_standard_input_are_each_a_call(tmp_path: Path):
    for name, seed in (("a.txt", 1), ("b.txt", 2)):
        (tmp_path / name).write_text(f"a cat\nSteps: 3, Sampler: Euler, Seed: {seed}, Size: 64x64")
    (tmp_path / "c.txt").write_text("")
    result = run("txt2img", "--from", tmp_path, "--from", tmp_path / "a.txt", "--dry-run", "--json", code=1)
    assert [json.loads(line)["arguments"]["seed"] for line in result.stdout.splitlines()] == [1, 2, 1]
    assert "c.txt" in result.stderr
    piped = CliRunner().invoke(app, ["txt2img", "--from", "-", "--dry-run"], input=(tmp_path / "b.txt").read_bytes())
    assert "seed = 2" in piped.stdout


def test_a_pasted_text_is_read_as_one():
    text = "a cat\nNegative prompt: dog\nSteps: 3, Sampler: Euler, CFG scale: 4, Seed: 9, Size: 64x64"
    found = result_of("txt2img", text, "--dry-run", "--cfg", 5)["arguments"]
    assert (found["prompt"], found["negative_prompt"], found["seed"]) == ("a cat", "dog", 9)
    assert found["guidance_scale"] == 5.0


@pytest.fixture(scope="module")
def controlnets(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder with a control network for the tiny model, which changes what is drawn."""
    unet = UNet2DConditionModel.from_pretrained(request.getfixturevalue("tiny_sd") / "unet")
    network = ControlNetModel.from_unet(unet)
    for parameter in network.controlnet_mid_block.parameters():
        torch.nn.init.constant_(parameter, 0.05)
    folder = tmp_path_factory.mktemp("controlnets")
    save_file(network.state_dict(), folder / "tiny_canny.safetensors")
    return folder


def test_control_images_go_to_the_units_of_a_text_or_of_the_command(
    tmp_path: Path, tiny_sd: Path, drawn: Path, controlnets: Path
):
    unit = 'ControlNet 0: "Module: none, Model: tiny_canny, Weight: 1.5, Guidance Start: 0.0, Guidance End: 1.0"'
    (tmp_path / "text.txt").write_text(f"a\nSteps: 2, Sampler: Euler, Seed: 1, Size: 64x64, {unit}")
    arguments = ["txt2img", "--from", tmp_path / "text.txt", "-m", tiny_sd, "-o", tmp_path / "out", "--device", "cpu"]
    folder = ["--controlnet-folder", controlnets]
    without = result_of(*arguments)["pictures"][0]
    of_text = result_of(*arguments, *folder, "--control-image", f"0={drawn}")["pictures"][0]
    written = f"model=tiny_canny,image={drawn},weight=1.5"
    of_command = result_of(*arguments, *folder, "--control", written)["pictures"][0]
    pixels = [np.array(Image.open(found["path"])) for found in (without, of_text, of_command)]
    assert np.array_equal(pixels[1], pixels[2]) and not np.array_equal(pixels[0], pixels[1])
    assert "Weight: 1.5" in parse_infotext(of_text["infotext"])["ControlNet 0"]
    assert "no unit 3" in run(*arguments, "--control-image", "3=x.png", code=1).stderr
    said = run(*arguments, "--control-image", "0=x.png", "--control-image", f"0={drawn}", code=1).stderr
    assert "ControlNet `tiny_canny`" in said and "--controlnet-folder" not in said.splitlines()[0]
    said = run("txt2img", "x", "-m", tiny_sd, "--control", "model=a,image=none.png,weigt=1", code=1).stderr
    assert "`none.png`: no such file" in said and "Did you mean 'weight'" in said


def test_scripts_and_detail_passes_are_options(tmp_path: Path, tiny_sd: Path, drawn: Path):
    arguments = ["img2img", drawn, "a blue square", "-m", tiny_sd, "--strength", 0.5, "--seed", 3, "--steps", 2]
    arguments += ["--sampler", "Euler", "--device", "cpu", "-o", tmp_path]
    (found,) = result_of(*arguments, "--sd-upscale", "scale=2,overlap=16,upscaler=Lanczos")["pictures"]
    assert Image.open(found["path"]).size == (128, 128)
    found = result_of(*arguments, "--loopback", "loops=2,final_strength=0.3")["pictures"]
    assert "Final denoising strength: 0.3" in found[-1]["infotext"]
    detailer = json.dumps({"ad_model": "face", "ad_prompt": "eyes, mouth", "ad_confidence": 0.4})
    call = result_of("txt2img", "x", "--detailer", detailer, "--detailer", "ad_model=hand.pt", "--dry-run")[
        "arguments"
    ]
    assert call["detailers"] == [json.loads(detailer), {"ad_model": "hand.pt"}]
    said = run("txt2img", "x", "-m", tiny_sd, "--detailer", "ad_modle=face", "--detailer", "ad_model=hand.pt", code=1)
    assert "'ad_model'" in said.stderr and "Detector `hand.pt`" in said.stderr
    text = tmp_path / "text.txt"
    text.write_text("a\nSteps: 1, Seed: 1, Size: 64x64, ADetailer model: face_yolov8n.pt, ADetailer confidence: 0.3")
    assert "--face-detector mtcnn" in run("txt2img", "--from", text, "-m", tiny_sd, code=1).stderr
    more = ["-m", tiny_sd, "-o", tmp_path, "--device", "cpu"]
    run("txt2img", "--from", text, *more, "--face-detector", "mtcnn")
    assert "Left out: Detector" in run("txt2img", "--from", text, *more, "--without-missing").stderr


def test_the_server_takes_the_folders_and_the_model_of_the_other_commands(tiny_sd: Path, golden: Path):
    from webui_diffusers.pipelines.cli.serve import serve_command, served

    context = serve_command.make_context("serve", ["-m", str(tiny_sd), "--lora-folder", str(golden / "lora")])
    pipe, styles = served(context.params)
    assert pipe.lora_folder == golden / "lora" and styles is None
    context = serve_command.make_context("serve", ["--lora-folder", str(golden / "lora")])
    assert served(context.params)[0].find("lora", "kohya_lora") is not None


def test_choices_and_wildcards_are_filled_in_only_when_asked(tmp_path: Path):
    pytest.importorskip("dynamicprompts")
    (tmp_path / "wild").mkdir()
    (tmp_path / "wild" / "animal.txt").write_text("heron\notter\n")
    template, wild = "a {red|blue} __animal__ [a:b:0.5]", ["--wildcards", tmp_path / "wild"]

    def prompts(*more: object) -> list[tuple]:
        lines = run("txt2img", template, "--dry-run", "--json", "--seed", 5, *more).stdout.splitlines()
        return [(call["arguments"]["prompt"], call["arguments"]["seed"]) for call in map(json.loads, lines)]

    assert prompts("-n", 3) == [(template, 5)]
    filled = prompts("-n", 8, "--dynamic", *wild)
    assert filled == prompts("-n", 8, "--dynamic", *wild) and [seed for _, seed in filled] == list(range(5, 13))
    assert {prompt for prompt, _ in filled} <= {
        f"a {c} {a} [a:b:0.5]" for c in ("red", "blue") for a in ("heron", "otter")
    }
    assert len({prompt for prompt, _ in filled}) > 1
    assert len({prompt for prompt, _ in prompts("--dynamic-all", *wild)}) == 4
    said = run("txt2img", "a __animals__", "--dynamic", *wild, code=1).stderr
    assert "animals.txt" in said and "Did you mean 'animal'" in said
    assert "must be closed" in run("txt2img", "a {b|c", "--dynamic", code=1).stderr
    run("txt2img", "x", *wild, code=2)
    jobs = tmp_path / "jobs.txt"
    jobs.write_text("a {red|blue|green|grey} cat\n" * 3)
    listed = read_jobs(jobs, {}, None)
    values = {"dynamic": True, "dynamic_all": False, "wildcards": None, "count": 1}
    assert len({filled_calls(job.call, values)[0]["prompt"] for job in listed}) > 1


# 2. info, explain, lora, upscale


def test_info_shows_fields_and_the_call(drawn: Path, tmp_path: Path):
    found = result_of("info", drawn)
    assert found["tool"] == "webui" and found["arguments"]["seed"] == 5
    assert "guidance_scale" in run("info", drawn).stdout
    assert run("info", drawn, "--raw").stdout.strip() == read_infotext(drawn)
    plain = save_picture(Image.new("RGB", (8, 8)), tmp_path / "plain.png")
    assert "no parameters" in run("info", plain, code=1).stdout


def test_explain_shows_tokens_weights_steps_and_networks():
    prompt = "a (red:1.2) [cat:dog:0.5] AND fish:0.5 <lora:moxin:0.7:0.5>"
    found = result_of("explain", prompt, "--steps", 10)
    first, second = found["pieces"]
    assert [(v["first_step"], v["last_step"]) for v in first["variants"]] == [(1, 6), (7, 10)]
    assert first["variants"][1]["chunks"] == [
        [[320, "a</w>", 1.0], [736, "red</w>", 1.2], [1929, "dog</w>", 1.0]],
    ]
    assert second["weight"] == 0.5 and found["networks"][0]["unet"] == 0.5
    shown = run("explain", prompt, "--steps", 10).stdout
    assert "steps 7-10" in shown and "1.2:red" in shown and "moxin" in shown


def test_explain_cuts_long_prompts_into_chunks():
    (variant,) = result_of("explain", "cat " * 80)["pieces"][0]["variants"]
    assert [len(chunk) for chunk in variant["chunks"]] == [75, 5] and variant["tokens"] == 80


@pytest.mark.parametrize("base", ["sd1", "sdxl"])
def test_explain_cuts_as_the_model_does(base: str):
    """The folder's files read alone give the ids that transformers' tokenizer gives."""
    folder = model_config_folder(base) / "tokenizer"
    ours, theirs = (FragmentTokenizer(kind(folder)) for kind in (ClipVocabulary, CLIPTokenizer.from_pretrained))
    for text in ("a Cat, (masterpiece)", "naïve café 美少女 😀", "don't <|endoftext|> 12345", ""):
        assert ours(text) == theirs(text)
    assert (ours.start, ours.end, ours.comma) == (theirs.start, theirs.end, theirs.comma)


def test_explain_takes_a_models_own_tokenizer(tiny_sd: Path, tmp_path: Path):
    assert result_of("explain", "a cat", "--model", tiny_sd)["pieces"] == result_of("explain", "a cat")["pieces"]
    assert "no folder `tokenizer`" in run("explain", "a", "--model", tmp_path, code=1).stderr


def test_a_text_that_no_step_reads_is_marked():
    variants = result_of("explain", "[a|b]", "--steps", 2)["pieces"][0]["variants"]
    assert [v["first_step"] for v in variants] == [1, None]


def test_lora_shows_what_is_inside(golden: Path):
    file = golden / "lora" / "kohya_lora.safetensors"
    found = result_of("lora", file)
    assert found["base"] == "SD1" and found["layers"] == 108 and len(found["hash"]) == 12
    assert "text encoder" in run("lora", file).stdout


def test_lora_lists_files_without_torch_as_with_it(golden: Path):
    names = ["kohya_lora", "loha_tucker", "lokr_both", "boft", "ia3", "glora_new", "bundle_emb", "bad_nan", "bad_inf"]
    files = [str(golden / "lora" / f"{name}.safetensors") for name in names]
    code = (
        "import sys\n"
        "from webui_diffusers.pipelines.cli.main import app\n"
        f"code = app(['lora', '--json', *{files}], standalone_mode=False)\n"
        "print(code, sorted({'torch', 'diffusers', 'scipy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    *lines, last = done.stdout.splitlines()
    assert last == "1 []", done.stderr
    together = run("lora", "--json", *files, code=1)
    assert lines == together.stdout.splitlines() and len(lines) == len(names) - 2
    assert "NaN or infinite" in done.stderr and done.stderr == together.stderr


def test_lora_shows_what_would_apply(golden: Path, tiny_sd: Path):
    found = result_of("lora", golden / "lora" / "kohya_lora.safetensors", "-m", tiny_sd)
    assert len(found["applied"]) == 108 and not found["unknown"]


def test_upscale_keeps_the_pictures_text(drawn: Path, tmp_path: Path, golden: Path):
    model = golden / "models" / "tiny-compact-x2.safetensors"
    found = result_of("upscale", drawn, "-u", model, "-o", tmp_path, "--scale", 1.5, "--device", "cpu")
    path = Path(found["pictures"][0]["path"])
    assert Image.open(path).size == (96, 96) and read_infotext(path) == read_infotext(drawn)
    assert "Postprocess upscale by: 1.5" in Image.open(path).text["postprocessing"]
    run("upscale", drawn, "-u", "Nearest", "-o", drawn.parent, code=1)  # over itself


def test_restore_restores_aligned_faces_and_keeps_the_text(tmp_path: Path):
    from webui_diffusers.loaders.faces.restorer import FaceRestorer

    FaceRestorer("GFPGAN", TINY_GFPGAN).save_pretrained(tmp_path / "net")
    face = Image.fromarray(np.random.default_rng(0).integers(0, 255, (512, 512, 3), np.uint8))
    source = save_picture(face, tmp_path / "face.webp", "who\nSteps: 1, Seed: 2, Size: 8x8", lossless=True)
    arguments = ["restore", source, "-r", tmp_path / "net", "--aligned", "--device", "cpu"]
    found = result_of(*arguments, "-o", tmp_path / "out", "--format", "png")
    path = Path(found["pictures"][0]["path"])
    assert path == tmp_path / "out" / "face.png" and read_infotext(path).startswith("who")
    assert Image.open(path).size == (512, 512) and not np.array_equal(np.array(Image.open(path)), np.array(face))


# 3. grid


@pytest.mark.parametrize(
    "written, labels",
    [
        ("steps=10,20,30", ["10", "20", "30"]),
        ("seed=1-5", ["1", "2", "3", "4", "5"]),
        ("seed=1-10 (+3)", ["1", "4", "7", "10"]),
        ("Steps=10-5 (-3)", ["10", "7"]),
        ("cfg=1-2 (+0.5)", ["1", "1.5", "2"]),
        ("CFG scale=5-10 [3]", ["5", "7.5", "10"]),
        ('sampler="Euler a", DDIM', ["Euler a", "DDIM"]),
        ("s_churn=0-1 [2]", ["0", "1"]),
        ('prompt=a cat,"a, b"', ["a cat", "a, b"]),
        ("hires-size=64x64,96x0", ["64x64", "96x0"]),
    ],
)
def test_axes_are_written_as_in_the_webui(written: str, labels: list):
    assert read_axis(written).labels == labels


def test_axes_change_the_call():
    call = {"prompt": "a red fox", "webui_options": {"s_tmin": 1.0}}
    assert read_axis("replace=red,blue").changes[1](call)["prompt"] == "a blue fox"
    assert read_axis("s_churn=2").changes[0](call)["webui_options"] == {"s_tmin": 1.0, "s_churn": 2.0}
    assert read_axis("hires_size=96x0").changes[0](call)["hires_size"] == (96, 0)
    with pytest.raises(ValueError, match="goes nowhere"):
        read_axis("steps=1-5 (-1)")
    with pytest.raises(ValueError, match="to replace"):
        read_axis("replace=green,blue").changes[1](call)


def test_axes_of_a_texts_plot_are_those_that_the_webui_drew():
    text = (
        "a red fox\nSteps: 3, Seed: 1, Size: 64x64, Script: X/Y/Z plot, X Type: Seed, X Values: -1, Fixed X Values: "
    )
    text += '"11, 12", Y Type: Prompt S/R, Y Values: "red, blue", Z Type: Clip skip, Z Values: "1,2"'
    x, y, z = text_axes(parse_infotext(text))
    assert (x.labels, y.labels, z.labels) == (["11", "12"], ["red", "blue"], ["1", "2"])
    assert x.changes[1]({})["seed"] == 12 and y.changes[1]({"prompt": "a red fox"})["prompt"] == "a blue fox"
    assert [change({})["clip_skip"] for change in z.changes] == [0, 1]
    assert read_axis("clip_skip=1").changes[0]({})["clip_skip"] == 1
    assert read_axis("Size=64x96").changes[0]({}) == {"width": 64, "height": 96}
    assert read_axis("RNG source=NV").changes[0]({})["noise_source"] == "nv"
    with pytest.raises(ValueError, match="Styles"):
        text_axes({"X Type": "Styles", "X Values": "a, b"})


def test_axes_reach_into_units_and_passes_and_make_a_prompt_matrix():
    call = {
        "prompt": "a [b|c]",
        "control_units": [{"model": "x"}, {"model": "y"}],
        "detailers": [{"ad_model": "face"}],
    }
    weights = read_axis("ControlNet 1 weight=0-1 [3]")
    assert weights.labels == ["0", "0.5", "1"]
    assert weights.changes[1](call)["control_units"] == [{"model": "x"}, {"model": "y", "weight": 0.5}]
    assert (
        read_axis("[ControlNet] Control Mode=Balanced").changes[0](call)["control_units"][0]["control_mode"]
        == "Balanced"
    )
    assert read_axis("detailer confidence=0.5").changes[0](call)["detailers"] == [
        {"ad_model": "face", "ad_confidence": 0.5}
    ]
    with pytest.raises(ValueError, match="there are 0"):
        read_axis("controlnet weight=1").changes[0]({})
    matrix = read_axis("prompt matrix=red,big")
    assert matrix.labels == ["(as it is)", "red", "big", "red, big"]
    assert [change(call)["prompt"] for change in matrix.changes][2:] == ["a [b|c], big", "a [b|c], red, big"]


def test_every_setting_may_be_an_axis():
    for name in WEBUI_OPTIONS:
        assert argument_name(name) == f"webui_options.{name}"


def test_a_grid_is_one_sheet_and_goes_on_after_a_stop(tmp_path: Path, tiny_sd: Path):
    arguments = ["grid", "a red circle", "-m", tiny_sd, *SMALL, "-o", tmp_path]
    arguments += ["--x", "cfg=1-7 (+6)", "--y", "sampler=Euler,DDIM", "--z", "replace=red,blue"]
    found = result_of(*arguments)
    assert len(found["cells"]) == 8 and found["axes"]["cfg"] == ["1", "7"]
    seeds = {parse_infotext(read_infotext(cell))["Seed"] for cell in found["cells"]}
    assert len(seeds) == 1
    text = read_infotext(found["sheet"])
    assert 'X Type: cfg, X Values: "1, 7"' in text and "Script: X/Y/Z plot" in text
    times = {cell: Path(cell).stat().st_mtime_ns for cell in found["cells"]}
    Path(found["sheet"]).unlink()
    assert result_of(*arguments) == found and all(Path(cell).stat().st_mtime_ns == times[cell] for cell in times)


def test_a_sheet_has_every_cell_in_its_place(tmp_path: Path):
    axes = read_axis("steps=1,2,3"), read_axis("seed=7,8"), read_axis(None)
    cells: list[Path | None] = []
    for index in range(6):
        cells.append(save_picture(Image.new("RGB", (40, 30), (index + 1, 0, 0)), tmp_path / f"{index}.png"))
    cells[4] = None
    sheet = np.array(labelled_sheet(cells, axes, margin=2))
    reds = [int((sheet == (index + 1, 0, 0)).all(-1).sum()) for index in range(6)]
    assert reds == [1200, 1200, 1200, 1200, 0, 1200]
    places = [np.argwhere((sheet == (index + 1, 0, 0)).all(-1)).min(0) for index in (0, 1, 3)]
    assert places[1][1] - places[0][1] == 42 and places[2][0] - places[0][0] == 32


# 4. batch, and the command itself


def test_an_interrupt_has_its_own_exit_code():
    with pytest.raises(click.exceptions.Exit) as error, handle_errors():
        raise KeyboardInterrupt
    assert error.value.exit_code == 130


def test_a_batch_is_drawn_and_reported(tmp_path: Path, tiny_sd: Path, drawn: Path):
    jobs = tmp_path / "jobs.jsonl"
    lines = [{"from": str(drawn), "name": "same"}, {"prompt": "a cat", "seed": 2, "sampler": "nope"}, {"prompt": "a"}]
    jobs.write_text("\n".join(map(json.dumps, lines)))
    arguments = ["batch", jobs, "-m", tiny_sd, *SMALL, "-o", tmp_path / "out"]
    found = result_of(*arguments, code=1)
    assert [job["line"] for job in found["done"]] == [1, 3]
    assert found["failed"][0]["line"] == 2 and "nope" in found["failed"][0]["error"]
    same = Image.open(found["done"][0]["pictures"][0]["path"])
    assert np.array_equal(np.array(same), np.array(Image.open(drawn)))


@pytest.mark.parametrize("command", [["txt2img", "--help"], ["explain", "a (cat:1.2)"], ["info", "{picture}"]])
def test_commands_that_need_no_model_library_load_none(command: list, drawn: Path):
    command = [part.format(picture=drawn) for part in command]
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from webui_diffusers.pipelines.cli.main import app\n"
        f"assert CliRunner().invoke(app, {command!r}).exit_code == 0\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
