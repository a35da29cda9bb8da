"""Checkpoints in one file: told apart by their keys, loaded offline, equal to the folder they were made from."""

import json
import re
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from webui_diffusers.loaders.checkpoint.configs import model_config_files
from webui_diffusers.loaders.checkpoint.describe import CheckpointError, describe_checkpoint
from webui_diffusers.loaders.checkpoint.load import load_single_file, predicts_noise, read_refiner


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEBUI_DIFFUSERS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


# ---- from a diffusers folder to one file, the other way round than diffusers converts

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_OPENCLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "fc1": "c_fc",
    "fc2": "c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def ldm_unet(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    attended = {match[1] for key in state if (match := re.match(r"(up_blocks\.\d+)\.attentions", key))}

    def place(side: str, block: int, kind: str, number: int) -> str:
        index = block * (layers + 1) + (layers if "samplers" in kind else number) + (side == "down")
        where = {"resnets": "0", "attentions": "1", "downsamplers": "0.op"}.get(kind)
        where = where or ("2" if f"up_blocks.{block}" in attended else "1")
        return f"{'input' if side == 'down' else 'output'}_blocks.{index}.{where}"

    def rename(key: str) -> str:
        if match := re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", key):
            side, block, kind, number, rest = match.groups()
            rest = rest.removeprefix("conv.") if kind == "downsamplers" else rest
            key = f"{place(side, int(block), kind, int(number))}.{rest}"
        elif match := re.match(r"mid_block\.(\w+)\.(\d+)\.(.+)", key):
            index = 1 if match[1] == "attentions" else 2 * int(match[2])
            kind, key = match[1], f"middle_block.{index}.{match[3]}"
        else:
            start, _, end = key.rpartition(".")
            return f"{_UNET_ENDS[start]}.{end}"
        if kind == "resnets":
            parts = key.split(".")
            key = ".".join(_RESNET.get(part, part) for part in parts)
        return key

    return {f"model.diffusion_model.{rename(key)}": value for key, value in state.items()}


def ldm_vae(state: Mapping[str, Tensor], blocks: int) -> dict[str, Tensor]:
    tensors = {}
    for key, value in state.items():
        key = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", key)
        key = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{blocks - 1 - int(m[1])}.block.", key)
        key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", key)
        key = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", key)
        key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
        key = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if "mid_block.attentions.0" in key:
            key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            key = re.sub(r"to_([qkv])\b", r"\1", key).replace("to_out.0", "proj_out")
            value = value[..., None, None] if value.ndim == 2 else value
        tensors[f"first_stage_model.{key}"] = value
    return tensors


def bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without `text_model.`, which transformers before 5.6 has and later ones have not."""
    return {key.removeprefix("text_model."): value for key, value in state.items()}


def ldm_open_clip(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    state, tensors = bare(state), {}
    for key, value in state.items():
        if key == "text_projection.weight":
            tensors["text_projection"] = value.T.contiguous()
        elif match := re.match(r"(.*self_attn)\.q_proj\.(weight|bias)", key):
            start = match[1].replace("encoder.layers", "transformer.resblocks").replace("self_attn", "attn")
            parts = [state[f"{match[1]}.{part}_proj.{match[2]}"] for part in "qkv"]
            tensors[f"{start}.in_proj_{match[2]}"] = torch.cat(parts)
        elif not re.search(r"[kv]_proj", key):
            for ours, theirs in _OPENCLIP.items():
                key = key.replace(ours, theirs)
            tensors[key] = value
    return {prefix + key: value for key, value in tensors.items()}


def one_file(pipe: object) -> dict[str, Tensor]:
    """The tensors of a StableDiffusion(XL)Pipeline under a checkpoint's keys."""
    tensors = ldm_unet(pipe.unet.state_dict(), pipe.unet.config.layers_per_block)
    tensors |= ldm_vae(pipe.vae.state_dict(), len(pipe.vae.config.block_out_channels))
    text = pipe.text_encoder
    second = getattr(pipe, "text_encoder_2", None)
    if text is not None and text.config.hidden_act == "gelu":
        tensors |= ldm_open_clip(text.state_dict(), "cond_stage_model.model.")
        tensors["cond_stage_model.model.text_projection"] = torch.eye(text.config.hidden_size)
        tensors["cond_stage_model.model.logit_scale"] = torch.tensor(4.6)
    elif text is not None:
        prefix = "cond_stage_model" if second is None else "conditioner.embedders.0"
        tensors |= {f"{prefix}.transformer.text_model.{key}": value for key, value in bare(text.state_dict()).items()}
    if second is not None:
        number = 0 if text is None else 1
        tensors |= ldm_open_clip(second.state_dict(), f"conditioner.embedders.{number}.model.")
    return {key: value.contiguous() for key, value in tensors.items()}


def meta_pipe(base: str, **options: object) -> object:
    """The published components of a base model without memory, as attributes."""
    files = model_config_files(base, **options)
    parts = ModuleType(base)
    parts.text_encoder = parts.text_encoder_2 = None
    with torch.device("meta"):
        parts.unet = UNet2DConditionModel.from_config(files["unet/config.json"])
        parts.vae = AutoencoderKL.from_config(files["vae/config.json"])
        for suffix in ("", "_2"):
            config = files.get(f"text_encoder{suffix}/config.json")
            if config is not None:
                kind = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}
                model = kind[config["architectures"][0]](CLIPTextConfig(**config))
                setattr(parts, f"text_encoder{suffix}", model)
    return parts


def hollow_file(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    """A .safetensors of half precision zeros that takes no room on the disk."""
    header, offset = {}, 0
    for key, value in tensors.items():
        end = offset + 2 * value.numel()
        header[key] = {"dtype": "F16", "shape": list(value.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + offset)
    return path


def same_weights(left: object, right: object) -> None:
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if getattr(left, name, None) is not None:
            wanted, actual = getattr(left, name).state_dict(), getattr(right, name).state_dict()
            assert wanted.keys() == actual.keys()
            assert all(torch.equal(wanted[key], actual[key]) for key in wanted), name


# ---- the shipped configurations


PARAMETERS = [
    ("sd1", 859_520_964, 123_060_480, None),
    ("sd2", 865_910_724, 340_387_840, None),
    ("sdxl", 2_567_463_684, 123_060_480, 694_659_840),
    ("sdxl-refiner", 2_259_526_660, None, 694_659_840),
]


@pytest.mark.parametrize("base, unet, text, second", PARAMETERS)
def test_the_shipped_configurations_have_the_published_numbers_of_parameters(
    base: str, unet: int, text: int | None, second: int | None
) -> None:
    pipe = meta_pipe(base)
    count = lambda module: module and sum(weight.numel() for weight in module.parameters())  # noqa: E731
    assert (count(pipe.unet), count(pipe.vae)) == (unet, 83_653_863)
    assert (count(pipe.text_encoder), count(pipe.text_encoder_2)) == (text, second)


# ---- equal to the folder


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
def test_an_sd1_file_loads_as_its_folder(tmp_path: Path, tiny_sd: Path, ending: str) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, torch_dtype=torch.float32)
    path = tmp_path / f"tiny{ending}"
    save_file(one_file(pipe), path) if ending == ".safetensors" else torch.save({"state_dict": one_file(pipe)}, path)
    options = {"config": str(tiny_sd), "prediction_type": "epsilon"}
    loaded = load_single_file(StableDiffusionPipeline.from_single_file, path, options)
    same_weights(pipe, loaded)
    assert loaded.scheduler.config == pipe.scheduler.config
    draw = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "np"}
    left = pipe("a red circle", generator=torch.Generator().manual_seed(1), **draw).images
    right = loaded("a red circle", generator=torch.Generator().manual_seed(1), **draw).images
    # Weights read in place lie at other addresses, and the processor adds up unaligned rows in another order.
    assert abs(left - right).max() < 1e-4


def test_an_sdxl_file_loads_as_its_folder(tmp_path: Path, tiny_sdxl: Path) -> None:
    if not tiny_sdxl.is_dir():
        pytest.skip("no tiny SDXL in this folder of recordings")
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, torch_dtype=torch.float32)
    torch.manual_seed(0)  # diffusers tells the two encoders apart by their widths, as in the published model
    wide = {**pipe.text_encoder_2.config.to_dict(), "hidden_size": 48, "projection_dim": 48}
    pipe.register_modules(text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**wide)))
    pipe.save_pretrained(tmp_path / "folder")
    save_file(one_file(pipe), tmp_path / "xl.safetensors")
    load, options = StableDiffusionXLPipeline.from_single_file, {"config": str(tmp_path / "folder")}
    same_weights(pipe, load_single_file(load, tmp_path / "xl.safetensors", options))


def test_an_sd2_file_loads_as_its_folder(tmp_path: Path, tiny_sd: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, torch_dtype=torch.float32)
    torch.manual_seed(0)
    pipe.register_modules(
        unet=UNet2DConditionModel.from_config(pipe.unet.config, use_linear_projection=True),
        text_encoder=CLIPTextModel(CLIPTextConfig(**{**pipe.text_encoder.config.to_dict(), "hidden_act": "gelu"})),
    )
    pipe.save_pretrained(tmp_path / "folder")
    save_file(one_file(pipe), tmp_path / "sd2.safetensors")
    assert describe_checkpoint(tmp_path / "sd2.safetensors").base == "sd2"
    options = {"config": str(tmp_path / "folder")}
    same_weights(
        pipe, load_single_file(StableDiffusionPipeline.from_single_file, tmp_path / "sd2.safetensors", options)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_text_encoder_spelled_as_in_older_files_is_found(
    tmp_path: Path, tiny_sd: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, torch_dtype=dtype)
    tensors = {key.replace(".text_model.", "."): value for key, value in one_file(pipe).items()}
    tensors["cond_stage_model.transformer.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tensors, tmp_path / "old.safetensors")
    place = "webui_diffusers.loaders.checkpoint.load.single_file_config"
    monkeypatch.setattr(place, lambda info: tiny_sd)  # the shipped one is of full size
    options = {"torch_dtype": dtype}
    same_weights(
        pipe, load_single_file(StableDiffusionPipeline.from_single_file, tmp_path / "old.safetensors", options)
    )


FULL_SIZE = [
    ("sd1", StableDiffusionPipeline, {}),
    pytest.param("sd1", StableDiffusionPipeline, {"unet_channels": 9}, marks=pytest.mark.slow),
    pytest.param("sd2", StableDiffusionPipeline, {}, marks=pytest.mark.slow),
    pytest.param("sdxl", StableDiffusionXLPipeline, {}, marks=pytest.mark.slow),
    pytest.param("sdxl-refiner", StableDiffusionXLImg2ImgPipeline, {}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("base, pipeline, options", FULL_SIZE)
def test_a_file_of_full_size_needs_nothing_but_itself(
    tmp_path: Path, base: str, pipeline: type, options: dict[str, int]
) -> None:
    path = hollow_file(tmp_path / "base-v.safetensors", one_file(meta_pipe(base, **options)) | EXTRA.get(base, {}))
    info = describe_checkpoint(path)
    assert (info.base, info.unet_channels) == (base, options.get("unet_channels", 4))
    kwargs = {"torch_dtype": torch.float16, "prediction_type": "v_prediction"}
    loaded = load_single_file(pipeline.from_single_file, path, kwargs)
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    assert sum(weight.numel() for weight in loaded.unet.parameters()) > 850_000_000
    encoders = [getattr(loaded, name, None) for name in ("text_encoder", "text_encoder_2")]
    assert [encoder is not None for encoder in encoders] == [f"text_encoder{s}" in info.parts for s in ("", "_2")]


# What real files hold beside: the block of OpenCLIP-H that nobody reads.
EXTRA = {
    "sd2": {
        f"cond_stage_model.model.transformer.resblocks.23.{name}": torch.empty(shape, device="meta")
        for name, shape in [("ln_1.weight", (1024,)), ("mlp.c_fc.weight", (4096, 1024)), ("ln_1.bias", (1024,))]
    }
}


# ---- what else there is


def test_a_unet_shows_that_it_predicts_noise(tiny_sd: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(tiny_sd, subfolder="unet", torch_dtype=torch.float32)
    assert predicts_noise(unet)
    torch.manual_seed(0)
    assert not predicts_noise(UNet2DConditionModel.from_config(unet.config))


def test_a_guess_is_settled_by_trying_the_unet(tmp_path: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, torch_dtype=torch.float32)
    tensors = one_file(pipe) | {"cond_stage_model.model.ln_final.weight": torch.zeros(2)}
    save_file(tensors, tmp_path / "mystery.safetensors")
    assert describe_checkpoint(tmp_path / "mystery.safetensors").prediction_type == "v_prediction"
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type="v_prediction")
    pipe.save_pretrained(tmp_path / "folder")
    place = "webui_diffusers.loaders.checkpoint.load.single_file_config"
    monkeypatch.setattr(place, lambda info: tmp_path / "folder")  # the shipped one is of full size
    loaded = load_single_file(StableDiffusionPipeline.from_single_file, tmp_path / "mystery.safetensors", {})
    assert loaded.scheduler.config.prediction_type == "epsilon"


def test_what_training_left_in_a_ckpt_is_passed_over(
    tmp_path: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    callback = type("ModelCheckpoint", (), {"__module__": names[-1]})
    sys.modules[names[-1]].ModelCheckpoint = callback
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, torch_dtype=torch.float32)
    notes = {callback: {"best": np.float64(0.5)}, "state": callback()}
    content = {"state_dict": one_file(pipe), "callbacks": notes, "global_step": 7}
    torch.save(content, tmp_path / "old.ckpt")
    for name in names:
        monkeypatch.delitem(sys.modules, name)
    before = set(torch.serialization.get_safe_globals())
    options = {"config": str(tiny_sd)}
    same_weights(pipe, load_single_file(StableDiffusionPipeline.from_single_file, tmp_path / "old.ckpt", options))
    assert set(torch.serialization.get_safe_globals()) == before and names[0] not in sys.modules


# a key of the file that is lost, what the message says
HOLES = [
    ("model.diffusion_model.middle_block.1.norm.weight", "weights of the UNet or the VAE are not in the file"),
    (
        "cond_stage_model.transformer.text_model.final_layer_norm.bias",
        "1 weights of the text_encoder.*layer_norm.bias",
    ),
]


@pytest.mark.parametrize("lost, says", HOLES)
def test_a_hole_is_said(tmp_path: Path, tiny_sd: Path, lost: str, says: str) -> None:
    tensors = one_file(StableDiffusionPipeline.from_pretrained(tiny_sd, torch_dtype=torch.float32))
    del tensors[lost]
    save_file(tensors, tmp_path / "x.safetensors")
    load, options = StableDiffusionPipeline.from_single_file, {"config": str(tiny_sd)}
    with pytest.raises(CheckpointError, match=rf"x\.safetensors.*{says}"):
        load_single_file(load, tmp_path / "x.safetensors", options)


def test_a_refiner_must_be_one(tmp_path: Path, tiny_sdxl_refiner: Path) -> None:
    if not tiny_sdxl_refiner.is_dir():
        pytest.skip("no tiny refiner in this folder of recordings")
    unet = UNet2DConditionModel.from_pretrained(tiny_sdxl_refiner, subfolder="unet", torch_dtype=torch.float32)
    save_file(ldm_unet(unet.state_dict(), unet.config.layers_per_block), tmp_path / "r.safetensors")
    loaded = read_refiner(tmp_path / "r.safetensors", config=str(tiny_sdxl_refiner))
    assert all(torch.equal(value, unet.state_dict()[key]) for key, value in loaded.state_dict().items())
    save_file(
        ldm_unet(unet.state_dict(), 1) | {"conditioner.embedders.1.model.x": torch.zeros(1)},
        tmp_path / "base.safetensors",
    )
    with pytest.raises(CheckpointError, match="Stable Diffusion XL, noise prediction.*no refiner"):
        read_refiner(tmp_path / "base.safetensors")
