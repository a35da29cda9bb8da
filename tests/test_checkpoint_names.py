"""Checkpoints whose keys are spelled otherwise than diffusers' converter has them load as those that are not."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from safetensors.torch import save_file
from test_single_file import meta_pipe, one_file, same_weights
from tiny_models import pipeline_with_copies
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from webui_diffusers.loaders.checkpoint.describe import CheckpointError, describe_checkpoint
from webui_diffusers.loaders.checkpoint.load import load_single_file
from webui_diffusers.loaders.checkpoint.names import checkpoint_names, part_tensors, text_encoder_tensors, unet_names
from webui_diffusers.pipelines import WebUITxt2ImgPipeline
from webui_diffusers.pipelines.images.vae import decode_latents, encode_pictures


Spelling = Callable[[dict[str, Tensor]], dict[str, Tensor]]
UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def sd1(tiny_sd: Path) -> StableDiffusionPipeline:
    return pipeline_with_copies(StableDiffusionPipeline, tiny_sd.name)


@pytest.fixture(scope="module")
def sdxl(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StableDiffusionXLPipeline]:
    pipe = pipeline_with_copies(StableDiffusionXLPipeline, tiny_sdxl.name)
    torch.manual_seed(0)  # diffusers tells the two encoders apart by their widths, as in the published model
    wide = {**pipe.text_encoder_2.config.to_dict(), "hidden_size": 48, "projection_dim": 48}
    pipe.register_modules(text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**wide)))
    pipe.folder = tmp_path_factory.mktemp("xl")
    pipe.save_pretrained(pipe.folder)
    return pipe


def load(monkeypatch: pytest.MonkeyPatch, pipe: object, folder: Path, path: Path, **options: object) -> object:
    """Load with the tiny model's configuration in place of the shipped one, which is of full size."""
    monkeypatch.setattr("webui_diffusers.loaders.checkpoint.load.single_file_config", lambda info: folder)
    return load_single_file(type(pipe).from_single_file, path, options)


def replaced(pattern: str, new: str) -> Spelling:
    return lambda tensors: {re.sub(pattern, new, key): value for key, value in tensors.items()}


def ema_only(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    def flat(key: str) -> str:
        return "model_ema.diffusion_model" + key.removeprefix(UNET).replace(".", "") if key.startswith(UNET) else key

    return {flat(key): value for key, value in tensors.items()} | {"model_ema.decay": torch.tensor(0.9999)}


TEXT = r"cond_stage_model\.transformer\.text_model\."
SD1_SPELLINGS: dict[str, Spelling] = {
    "as usual": lambda tensors: tensors,
    "text without text_model": replaced(TEXT, "cond_stage_model.transformer."),
    "text as clip_l": replaced(TEXT, "cond_stage_model.clip_l.transformer.text_model."),
    "text as text_encoders.clip_l": replaced(TEXT, "text_encoders.clip_l.transformer.text_model."),
    "vae attention to_q": lambda tensors: replaced(r"attn_1\.proj_out\.", "attn_1.to_out.0.")(
        replaced(r"attn_1\.([qkv])\.", r"attn_1.to_\1.")(tensors)
    ),
    "vae attention query": lambda tensors: {
        re.sub(r"attn_1\.(q|k|v|proj_out)\.", lambda m: f"attn_1.{OLD_VAE[m[1]]}.", key): value
        for key, value in tensors.items()
    },
    "averaged weights alone": ema_only,
    "unet without prefix": replaced(r"model\.diffusion_model\.", ""),
    "unet as diffusion_model": replaced(r"^model\.diffusion_model\.", "diffusion_model."),
}
OLD_VAE = {"q": "query", "k": "key", "v": "value", "proj_out": "proj_attn"}


def same_parts(pipe: object, tensors: dict[str, Tensor], base: str) -> None:
    """What is found in a file with these tensors is what the plain file has."""
    plain = one_file(pipe)
    table, names = Table(tensors), checkpoint_names(tensors, base)
    wanted = checkpoint_names(plain, base)
    for part in ("unet", "vae"):
        found = part_tensors(table, getattr(names, part))
        assert found.keys() == getattr(wanted, part).keys()
        assert all(torch.equal(value, plain[key]) for key, value in found.items())
    assert names.text.keys() == wanted.text.keys()
    for part, place in names.text.items():
        state = getattr(pipe, part).state_dict()
        state = {key.removeprefix("text_model."): value for key, value in state.items()}
        found = text_encoder_tensors(table, place, getattr(pipe, part).config.num_hidden_layers)
        assert found.keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in found.items())


class Table(dict):
    """Tensors in memory as an opened checkpoint."""

    tensor = dict.__getitem__


@pytest.mark.parametrize("spelling", SD1_SPELLINGS)
def test_an_sd1_file_is_read_in_every_spelling(sd1: StableDiffusionPipeline, spelling: str) -> None:
    same_parts(sd1, SD1_SPELLINGS[spelling](one_file(sd1)), "sd1")


def test_an_sd1_file_that_is_odd_all_over_loads_as_a_plain_one(
    tmp_path: Path, sd1: StableDiffusionPipeline, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = one_file(sd1)
    for spelling in ("text as clip_l", "vae attention to_q", "averaged weights alone"):
        tensors = SD1_SPELLINGS[spelling](tensors)
    save_file(tensors, tmp_path / "x.safetensors")
    assert describe_checkpoint(tmp_path / "x.safetensors").base == "sd1"
    same_weights(sd1, load(monkeypatch, sd1, tiny_sd, tmp_path / "x.safetensors"))


def hf_second(place: str) -> Spelling:
    """SDXL's second text encoder under transformers' names; its projection as the weight of a linear layer."""

    def spell(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        renamed = {}
        for key, value in tensors.items():
            if not key.startswith("conditioner.embedders.1.model."):
                renamed[key] = value
                continue
            name = key.removeprefix("conditioner.embedders.1.model.")
            for theirs, ours in OPENCLIP_TO_HF.items():
                name = name.replace(theirs, ours)
            if "in_proj_" in name:
                start, kind = name.rsplit("in_proj_", 1)
                for part, rows in zip("qkv", value.chunk(3)):
                    renamed[f"{place}text_model.{start}{part}_proj.{kind}"] = rows.contiguous()
            elif name == "text_projection":
                renamed[f"{place}text_projection.weight"] = value.T.contiguous()
            else:
                renamed[f"{place}text_model.{name}"] = value
        return renamed

    return spell


OPENCLIP_TO_HF = {
    "transformer.resblocks.": "encoder.layers.",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.": "final_layer_norm.",
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
    "attn.": "self_attn.",
}


def linear_projection(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    key = "conditioner.embedders.1.model.text_projection"
    return {k: v for k, v in tensors.items() if k != key} | {f"{key}.weight": tensors[key].T.contiguous()}


def clip_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    tensors = replaced(r"conditioner\.embedders\.0\.transformer\.", "cond_stage_model.clip_l.transformer.")(tensors)
    return hf_second("cond_stage_model.clip_g.transformer.")(tensors)


SDXL_SPELLINGS: dict[str, Spelling] = {
    "as usual": lambda tensors: tensors,
    "first without text_model": replaced(r"embedders\.0\.transformer\.text_model\.", "embedders.0.transformer."),
    "second by transformers' names": hf_second("conditioner.embedders.1.model."),
    "second as a transformers model": hf_second("conditioner.embedders.1.transformer."),
    "second as text_encoders.clip_g": hf_second("text_encoders.clip_g.transformer."),
    "projection as a linear layer": linear_projection,
    "clip_l and clip_g": clip_names,
    "clip_g by OpenCLIP's names": replaced(r"conditioner\.embedders\.1\.model\.", "cond_stage_model.clip_g."),
}


@pytest.mark.parametrize("spelling", SDXL_SPELLINGS)
def test_an_sdxl_file_is_read_in_every_spelling(sdxl: StableDiffusionXLPipeline, spelling: str) -> None:
    same_parts(sdxl, SDXL_SPELLINGS[spelling](one_file(sdxl)), "sdxl")


def test_an_sdxl_file_with_clip_l_and_clip_g_loads_as_a_plain_one(
    tmp_path: Path, sdxl: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(clip_names(one_file(sdxl)), tmp_path / "x.safetensors")
    info = describe_checkpoint(tmp_path / "x.safetensors")
    assert (info.base, info.parts) == ("sdxl", ("unet", "vae", "text_encoder", "text_encoder_2"))
    same_weights(sdxl, load(monkeypatch, sdxl, sdxl.folder, tmp_path / "x.safetensors"))


def test_an_sd2_text_encoder_loads_by_transformers_names(
    tmp_path: Path, sd1: StableDiffusionPipeline, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_sd, tmp_path / "folder")
    config = {**sd1.text_encoder.config.to_dict(), "hidden_act": "gelu", "num_hidden_layers": 2}
    torch.manual_seed(0)
    encoder = CLIPTextModel(CLIPTextConfig(**config))
    encoder.save_pretrained(tmp_path / "folder" / "text_encoder")
    tensors = {key: value for key, value in one_file(sd1).items() if not key.startswith("cond_stage_model.")}
    state = {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}
    tensors |= {f"cond_stage_model.transformer.text_model.{key}": value for key, value in state.items()}
    width = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    names = checkpoint_names({width: None, **tensors}, "sd2")
    assert names.text == {"text_encoder": "cond_stage_model.transformer."} and "text_encoder" in names.odd
    save_file(tensors, tmp_path / "x.safetensors")
    loaded = load(monkeypatch, sd1, tmp_path / "folder", tmp_path / "x.safetensors")
    assert all(
        torch.equal(value, encoder.state_dict()[key]) for key, value in loaded.text_encoder.state_dict().items()
    )


@pytest.mark.parametrize("base", ["sd1", "sd2", "sdxl", "sdxl-refiner"])
def test_the_published_models_are_plain_and_their_averaged_names_unfold(base: str) -> None:
    keys = list(one_file(meta_pipe(base)))
    assert not checkpoint_names(keys, base).odd
    unet = [key for key in keys if key.startswith(UNET)]
    flat = ["model_ema.diffusion_model" + key.removeprefix(UNET).replace(".", "") for key in unet]
    assert unet_names(flat) == dict(zip(unet, flat))
    assert list(unet_names(key.removeprefix(UNET) for key in unet)) == unet


def test_averaged_weights_beside_the_others_are_left(sd1: StableDiffusionPipeline) -> None:
    keys = list(one_file(sd1))
    assert unet_names([*keys, *ema_only(one_file(sd1))]) == {key: key for key in keys if key.startswith(UNET)}


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
def test_a_checkpoint_under_another_ending_is_read_as_what_it_is(
    tmp_path: Path, sd1: StableDiffusionPipeline, tiny_sd: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"x{ending}"
    torch.save({"state_dict": one_file(sd1)}, path) if ending == ".safetensors" else save_file(one_file(sd1), path)
    same_weights(sd1, load(monkeypatch, sd1, tiny_sd, path))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_unet_alone_is_called_so_and_loads_with_the_other_parts(
    tmp_path: Path, sd1: StableDiffusionPipeline, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {key.removeprefix(UNET): value for key, value in one_file(sd1).items() if key.startswith(UNET)}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"x\.safetensors.*the UNet alone.*missing: vae, text_encoder"):
        load(monkeypatch, sd1, tiny_sd, tmp_path / "x.safetensors")
    parts = {"vae": sd1.vae, "text_encoder": sd1.text_encoder}
    same_weights(sd1, load(monkeypatch, sd1, tiny_sd, tmp_path / "x.safetensors", **parts))


def test_a_text_encoder_with_holes_or_other_shapes_is_said(
    tmp_path: Path, sd1: StableDiffusionPipeline, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = SD1_SPELLINGS["text as clip_l"](one_file(sd1))
    key = "cond_stage_model.clip_l.transformer.text_model.final_layer_norm.bias"
    save_file({k: v for k, v in tensors.items() if k != key}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"1 weights of the text_encoder.*final_layer_norm\.bias"):
        load(monkeypatch, sd1, tiny_sd, tmp_path / "x.safetensors")
    save_file(tensors | {key: torch.zeros(7)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="shapes of its kind"):
        load(monkeypatch, sd1, tiny_sd, tmp_path / "x.safetensors")


# ---- SDXL's networks with another diffusion

MEAN, DEVIATION = [-1.6574, 1.886, -1.383, 2.5155], [8.4927, 5.9022, 6.5498, 5.2299]


def test_playground_gets_its_scheduler_and_the_scale_of_its_latents(
    tmp_path: Path, sdxl: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = {"edm_mean": torch.tensor(MEAN)[None, :, None, None], "edm_std": torch.tensor(DEVIATION)[None]}
    save_file(one_file(sdxl) | extra, tmp_path / "p.safetensors")
    assert "EDM (Playground v2.5)" in str(describe_checkpoint(tmp_path / "p.safetensors"))
    pipe = load(monkeypatch, sdxl, sdxl.folder, tmp_path / "p.safetensors")
    assert isinstance(pipe.scheduler, EDMDPMSolverMultistepScheduler)
    assert (pipe.scheduler.config.sigma_max, pipe.scheduler.config.sigma_data) == (80.0, 0.5)
    assert pipe.vae.config.latents_mean == pytest.approx(MEAN) and pipe.vae.config.scaling_factor == 0.5
    assert pipe.vae.config.latents_std == pytest.approx(DEVIATION)


def test_cosxl_gets_its_scheduler(tmp_path: Path, sdxl: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch):
    extra = {"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.002)}
    save_file(one_file(sdxl) | extra, tmp_path / "c.safetensors")
    info = describe_checkpoint(tmp_path / "c.safetensors")
    assert info.prediction_type == "v_prediction" and "EDM (CosXL)" in str(info)
    scheduler = load(monkeypatch, sdxl, sdxl.folder, tmp_path / "c.safetensors").scheduler
    assert isinstance(scheduler, EDMEulerScheduler)
    wanted = {
        "sigma_max": 120.0,
        "sigma_data": 1.0,
        "prediction_type": "v_prediction",
        "sigma_schedule": "exponential",
    }
    assert {name: scheduler.config[name] for name in wanted} == wanted
    assert scheduler.config.sigma_min == pytest.approx(0.002)


def test_the_keys_mean_nothing_beside_another_network(tmp_path: Path, sd1: StableDiffusionPipeline) -> None:
    save_file(one_file(sd1) | {"edm_mean": torch.zeros(4)}, tmp_path / "x.safetensors")
    assert describe_checkpoint(tmp_path / "x.safetensors").diffusion == ""
    assert json.dumps(describe_checkpoint(tmp_path / "x.safetensors").diffusion_numbers) == "[]"


def test_such_a_model_draws_by_its_scheduler_and_refuses_the_webuis_samplers(tiny_sdxl: Path) -> None:
    pipe = WebUITxt2ImgPipeline.from_pretrained(
        tiny_sdxl, scheduler=EDMDPMSolverMultistepScheduler(), dtype=torch.float32
    )
    pipe.vae.register_to_config(latents_mean=MEAN, latents_std=DEVIATION, scaling_factor=0.5)
    call = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "np"}

    def draw(negative: str) -> np.ndarray:
        generator = torch.Generator().manual_seed(1)
        return pipe("a red circle", negative_prompt=negative, generator=generator, **call).images

    assert abs(draw("bad") - draw("(bad:1.0)")).max() < 1e-4  # diffusers' own call, and ours with syntax
    with pytest.raises(ValueError, match="EDMDPMSolverMultistepScheduler knows no betas.*name no `sampler`"):
        pipe("a red circle", seed=1, sampler="Euler a", **call)
    with torch.no_grad():
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        pixels = decode_latents(pipe.vae, latents)
        mean, deviation = (torch.tensor(numbers).view(1, 4, 1, 1) for numbers in (MEAN, DEVIATION))
        wanted = pipe.vae.decode(latents * deviation / 0.5 + mean).sample / 2 + 0.5
        torch.testing.assert_close(pixels, wanted.clamp(0, 1), atol=1e-5, rtol=0)
        encoded = encode_pictures(pipe.vae, pixels * 2 - 1, torch.Generator().manual_seed(3))
        moments = pipe.vae.encode(pixels * 2 - 1).latent_dist
        drawn = moments.mean + moments.std * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
        torch.testing.assert_close(encoded, (drawn - mean) * 0.5 / deviation, atol=1e-5, rtol=1e-4)
