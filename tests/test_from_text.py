"""A pipeline out of a webui's folder by a picture's text, and VAEs from every kind of file."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionPipeline
from recordings import GOLDEN
from safetensors.torch import save_file
from test_single_file import one_file
from tiny_models import pipeline_with_copies
from webui_diffusers.loaders import WebUIFolder, load_upscaler, load_vae, read_refiner
from webui_diffusers.loaders.checkpoint.describe import CheckpointError
from webui_diffusers.loaders.library.missing import missing_files
from webui_diffusers.pipelines import WebUITxt2ImgPipeline
from webui_diffusers.pipelines.from_text import load_from_library
from webui_diffusers.pipelines.images.vae import encode_pictures
from webui_diffusers.pipelines.infotext import call_arguments, parse_infotext


LORA = GOLDEN / "lora" / "alpha_ne_rank.safetensors"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_sd: Path) -> None:
    monkeypatch.setenv("WEBUI_DIFFUSERS_CACHE", str(tmp_path / "cache"))
    # the shipped configuration is of full size
    monkeypatch.setattr("webui_diffusers.loaders.checkpoint.load.single_file_config", lambda info: tiny_sd)


@pytest.fixture(scope="module")
def stock(tiny_sd: Path) -> StableDiffusionPipeline:
    return pipeline_with_copies(StableDiffusionPipeline, tiny_sd.name)


def another(vae: AutoencoderKL) -> AutoencoderKL:
    """The same VAE with other weights."""
    torch.manual_seed(1)
    other = AutoencoderKL.from_config(vae.config)
    other.load_state_dict({key: value + 0.01 * torch.randn_like(value) for key, value in vae.state_dict().items()})
    return other


@pytest.fixture
def webui(tmp_path: Path, stock: StableDiffusionPipeline) -> Path:
    root = tmp_path / "webui"
    for place in ("models/Stable-diffusion/sub", "models/VAE", "models/Lora", "embeddings", "models/ESRGAN"):
        (root / place).mkdir(parents=True)
    file = one_file(stock)
    save_file(file, root / "models/Stable-diffusion/sub/shapes.safetensors")
    second = {key: value * 1.01 if key.endswith("out.2.weight") else value for key, value in file.items()}
    torch.save({"state_dict": second}, root / "models/Stable-diffusion/second.ckpt")
    parts = StableDiffusionPipeline(**{**stock.components, "vae": another(stock.vae)})
    vae = {k.removeprefix("first_stage_model."): v for k, v in one_file(parts).items() if k.startswith("first_stage")}
    torch.save({"state_dict": vae}, root / "models/VAE/shapes.vae.pt")
    shutil.copy(LORA, root / "models/Lora/on_disk.safetensors")
    width = stock.text_encoder.config.hidden_size
    generator = torch.Generator().manual_seed(2)
    save_file({"emb_params": torch.randn(2, width, generator=generator)}, root / "embeddings/myword.safetensors")
    shutil.copy(GOLDEN / "models" / "tiny-compact-x2.safetensors", root / "models/ESRGAN/2x-Tiny.safetensors")
    return root


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def text_for(webui: Path) -> str:
    """A text whose names are others than the files', so that its hashes are needed."""
    models = webui / "models"
    checkpoint = sha256(models / "Stable-diffusion/sub/shapes.safetensors")[:10]
    second = sha256(models / "Stable-diffusion/second.ckpt")[:10]
    network = sha256(models / "Lora/on_disk.safetensors")[:12]
    return (
        "a red circle, myword <lora:in_text:0.7>\nNegative prompt: blue\n"
        f"Steps: 2, Sampler: Euler a, CFG scale: 5, Seed: 7, Size: 64x64, Model hash: {checkpoint}, Model: renamed, "
        f"VAE: shapes.vae.pt, Denoising strength: 0.6, Hires upscale: 2, Hires steps: 2, Hires upscaler: 2x-Tiny, "
        f'Lora hashes: "in_text: {network}", Refiner: refine [{second}], Refiner switch at: 0.5, Version: v1.10.1'
    )


def test_the_picture_of_a_text_is_drawn_without_naming_a_file(webui: Path, stock: StableDiffusionPipeline) -> None:
    text = text_for(webui)
    pipe = WebUITxt2ImgPipeline.from_infotext(text, WebUIFolder(webui), dtype=torch.float32)
    drawn = pipe(**call_arguments(parse_infotext(text)), output_type="np")
    by_hand = WebUITxt2ImgPipeline(
        **{**stock.components, "vae": another(stock.vae)},
        refiner=read_refiner(webui / "models/Stable-diffusion/second.ckpt", like="sd1"),
        upscaler=load_upscaler(webui / "models/ESRGAN/2x-Tiny.safetensors"),
    )
    by_hand.add_lora(webui / "models/Lora/on_disk.safetensors", "in_text")
    by_hand.add_embedding(webui / "embeddings/myword.safetensors")
    wanted = by_hand(
        "a red circle, myword <lora:in_text:0.7>",
        negative_prompt="blue",
        num_inference_steps=2,
        sampler="Euler a",
        guidance_scale=5.0,
        seed=7,
        width=64,
        height=64,
        hires_scale=2.0,
        hires_steps=2,
        hires_strength=0.6,
        refiner_switch_at=0.5,
        output_type="np",
    )
    assert drawn.images.shape == (1, 128, 128, 3)
    assert np.abs(drawn.images - wanted.images).max() < 2 / 255  # weights in place add up in another order
    vae = sha256(webui / "models/VAE/shapes.vae.pt")[:10]
    for field in (
        f"VAE hash: {vae}, VAE: shapes.vae.pt",
        "Model: shapes",
        "Hires upscaler: 2x-Tiny",
        'Lora hashes: "in_text: ',
        "Refiner: second [",
    ):
        assert field in drawn.infotexts[0]
    assert not list(webui.rglob("*.json"))  # nothing is written there


def test_all_that_is_missing_is_said_before_anything_is_loaded(webui: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WebUITxt2ImgPipeline, "from_single_file", lambda *_, **__: pytest.fail("it loaded"))
    text = text_for(webui).replace("shapes.vae.pt", "other.vae.pt").replace("2x-Tiny", "4x-Tiny")
    text = re.sub(r"in_text: \w+", "in_text: 0123456789ab", text)
    with pytest.raises(ValueError, match="3 things that the text names are missing, and nothing was loaded") as told:
        WebUITxt2ImgPipeline.from_infotext(text, WebUIFolder(webui))
    assert [line.split("`")[1] for line in str(told.value).splitlines()[1:]] == ["other.vae.pt", "in_text", "4x-Tiny"]
    text = "a cat\nSteps: 2, Sampler: Euler, Seed: 1, Size: 64x64"
    with pytest.raises(ValueError, match="The text names no checkpoint"):
        WebUITxt2ImgPipeline.from_infotext(text, WebUIFolder(webui))


def test_a_checkpoint_of_a_library_is_loaded_by_its_title(webui: Path) -> None:
    library = WebUIFolder(webui)
    pipe = load_from_library(WebUITxt2ImgPipeline, library, "shapes", dtype=torch.float32)
    pipe.add_embedding(webui / "embeddings/myword.safetensors")
    digest = sha256(webui / "models/Stable-diffusion/second.ckpt")
    other = load_from_library(WebUITxt2ImgPipeline, library, f"second.ckpt [{digest[:10]}]", like=pipe)
    assert other.attached is pipe.attached and other.unet.dtype == torch.float32
    assert Path(other.config._name_or_path).name == "second.ckpt"
    with pytest.raises(ValueError, match="No checkpoint is called 'shape'. Did you mean 'shapes'"):
        load_from_library(WebUITxt2ImgPipeline, library, "shape")


# ---- VAEs


def keys_of(vae: AutoencoderKL, stock: StableDiffusionPipeline, prefix: str) -> dict[str, torch.Tensor]:
    tensors = one_file(StableDiffusionPipeline(**{**stock.components, "vae": vae}))
    return {
        prefix + k.removeprefix("first_stage_model."): v for k, v in tensors.items() if k.startswith("first_stage")
    }


@pytest.mark.parametrize("kind", ["x.vae.pt", "x.vae.safetensors", "x.ckpt", "diffusers.safetensors", "folder"])
def test_a_vae_is_read_from_every_kind_of_file(tmp_path: Path, stock: StableDiffusionPipeline, kind: str) -> None:
    vae, path = another(stock.vae), tmp_path / kind
    if kind == "x.vae.pt":
        torch.save({"state_dict": keys_of(vae, stock, "") | {"loss.logvar": torch.zeros(())}}, path)
    elif kind == "x.vae.safetensors":
        old = {k.replace("attn_1.q.", "attn_1.to_q."): v for k, v in keys_of(vae, stock, "").items()}
        save_file(old, path)
    elif kind == "x.ckpt":
        torch.save(keys_of(vae, stock, "first_stage_model."), path)
    elif kind == "diffusers.safetensors":
        save_file(vae.state_dict(), path)
    else:
        vae.register_to_config(scaling_factor=0.5)  # of another model; this model's holds
        vae.save_pretrained(path)
    loaded = load_vae(path, like=stock.vae)
    assert all(torch.equal(value, vae.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert loaded.config.scaling_factor == stock.vae.config.scaling_factor and loaded.dtype == torch.float32


def test_a_pipeline_takes_another_vae(tmp_path: Path, tiny_sd: Path, stock: StableDiffusionPipeline) -> None:
    pipe = pipeline_with_copies(WebUITxt2ImgPipeline, tiny_sd.name).to(torch.float16)
    save_file(keys_of(another(stock.vae), stock, ""), tmp_path / "x.vae.safetensors")
    pipe.load_vae(tmp_path / "x.vae.safetensors")
    assert pipe.vae.dtype == torch.float16
    wanted = another(stock.vae).state_dict()["decoder.conv_in.weight"].half()
    assert torch.equal(pipe.vae.state_dict()["decoder.conv_in.weight"], wanted)


def test_what_is_no_vae_or_a_broken_one_is_said(tmp_path: Path, stock: StableDiffusionPipeline) -> None:
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(2)}, tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match=r"net\.safetensors` is no VAE: it is a network"):
        load_vae(tmp_path / "net.safetensors", like=stock.vae)
    tensors = keys_of(stock.vae, stock, "")
    del tensors["decoder.mid.block_1.norm1.weight"]
    save_file(tensors, tmp_path / "hole.safetensors")
    with pytest.raises(CheckpointError, match=r"hole\.safetensors`.*(not in the file|do not fit)"):
        load_vae(tmp_path / "hole.safetensors", like=stock.vae)
    save_file(keys_of(stock.vae, stock, ""), tmp_path / "small.safetensors")
    with pytest.raises(CheckpointError, match=r"small\.safetensors` looks like a VAE, but its weights do not fit"):
        load_vae(tmp_path / "small.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no VAE: there is no config.json"):
        load_vae(tmp_path / "empty")
    (tmp_path / "empty/config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(CheckpointError, match="holds a UNet2DConditionModel"):
        load_vae(tmp_path / "empty")


def taesd_files(folder: Path) -> AutoencoderTiny:
    """TAESD's two files, whose decoder's layers are counted from its clamp on; and the model in them."""
    torch.manual_seed(0)
    tiny = AutoencoderTiny().eval()
    for part, later in (("encoder", 0), ("decoder", 1)):
        state = {}
        for key, value in getattr(tiny, part).state_dict().items():
            number, _, rest = key.removeprefix("layers.").partition(".")
            state[f"{int(number) + later}.{rest}"] = value
        torch.save(state, folder / f"taesd_{part}.pth")
    return tiny


def test_taesd_is_read_from_its_two_files(tmp_path: Path) -> None:
    tiny = taesd_files(tmp_path)
    for part in ("encoder", "decoder"):
        loaded = load_vae(tmp_path / f"taesd_{part}.pth")
        assert isinstance(loaded, AutoencoderTiny)
        assert all(torch.equal(value, tiny.state_dict()[key]) for key, value in loaded.state_dict().items())
    (tmp_path / "taesd_encoder.pth").unlink()
    with pytest.raises(CheckpointError, match="its encoder is not beside it. Put `taesd_encoder.pth` there"):
        load_vae(tmp_path / "taesd_decoder.pth")


def test_a_pipeline_draws_with_taesd(tmp_path: Path, tiny_sd: Path) -> None:
    torch.manual_seed(0)
    AutoencoderTiny().save_pretrained(tmp_path / "taesd")
    pipe = pipeline_with_copies(WebUITxt2ImgPipeline, tiny_sd.name)
    pipe.load_vae(tmp_path / "taesd")
    assert isinstance(pipe.vae, AutoencoderTiny)
    call = {"num_inference_steps": 1, "seed": 1, "sampler": "Euler", "width": 64, "height": 64}
    latents = pipe("a red circle", **call, output_type="latent").images
    with torch.no_grad():
        wanted = pipe.vae.decode(latents).sample / 2 + 0.5
    drawn = torch.from_numpy(pipe("a red circle", **call, output_type="np").images).permute(0, 3, 1, 2)
    torch.testing.assert_close(drawn, wanted.clamp(0, 1), atol=2e-5, rtol=0)
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    state = torch.get_rng_state()
    with torch.no_grad():
        torch.testing.assert_close(encode_pictures(pipe.vae, pixels), pipe.vae.encode(pixels).latents)
    assert torch.equal(torch.get_rng_state(), state)
    hires = {"hires_scale": 2, "hires_upscaler": "Lanczos", "hires_strength": 0.5}
    assert pipe("a red circle", **call, **hires, output_type="np").images.shape == (1, 128, 128, 3)


def test_a_texts_hires_checkpoint_and_taesd_come_from_the_folder(webui: Path, stock: StableDiffusionPipeline) -> None:
    folder = webui / "models/VAE-taesd"
    folder.mkdir()
    taesd_files(folder)
    text = (
        "a red circle\nSteps: 2, Sampler: Euler, CFG scale: 5, Seed: 7, Size: 64x64, Model: shapes, "
        "Denoising strength: 0.6, Hires upscale: 2, Hires upscaler: Latent, Hires checkpoint: second, "
        "VAE Decoder: TAESD, VAE Encoder: TAESD"
    )
    library = WebUIFolder(webui)
    assert missing_files(parse_infotext(text), library) == []
    pipe = WebUITxt2ImgPipeline.from_infotext(text, library, torch_dtype=torch.float32)
    assert isinstance(pipe.vae, AutoencoderTiny)
    call = call_arguments(parse_infotext(text))
    assert call["hires_model"] == "second"
    assert "Hires checkpoint: second" in pipe(**call, output_type="np").infotexts[0]
    (folder / "taesd_decoder.pth").unlink()
    with pytest.raises(
        ValueError, match="1 things that the text names are missing(.|\n)*TAESD `TAESD`: not in .*VAE-taesd"
    ):
        WebUITxt2ImgPipeline.from_infotext(text, WebUIFolder(webui))
