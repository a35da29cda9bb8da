"""Checkpoints in one file: told apart by their keys, loaded offline, equal to the folder they were made from."""

import json
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
from ldm_layout import ldm_unet, one_file
from safetensors.torch import save_file
from tiny_models import pipeline_with_copies
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


def test_an_sd1_file_loads_as_its_folder(tmp_path: Path, tiny_sd: Path) -> None:
    pipe = pipeline_with_copies(StableDiffusionPipeline, tiny_sd.name)
    save_file(one_file(pipe), tmp_path / "tiny.safetensors")
    torch.save({"state_dict": one_file(pipe)}, tmp_path / "tiny.ckpt")
    options = {"config": str(tiny_sd), "prediction_type": "epsilon"}
    draw = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "np"}
    expected = pipe("a red circle", generator=torch.Generator().manual_seed(1), **draw).images
    for path in (tmp_path / "tiny.safetensors", tmp_path / "tiny.ckpt"):
        loaded = load_single_file(StableDiffusionPipeline.from_single_file, path, {**options})
        same_weights(pipe, loaded)
        assert loaded.scheduler.config == pipe.scheduler.config
        drawn = loaded("a red circle", generator=torch.Generator().manual_seed(1), **draw).images
        # Weights read in place lie at other addresses, and the processor adds up unaligned rows in another order.
        assert abs(drawn - expected).max() < 1e-4, path


def test_an_sdxl_file_loads_as_its_folder(tmp_path: Path, tiny_sdxl: Path) -> None:
    if not tiny_sdxl.is_dir():
        pytest.skip("no tiny SDXL in this folder of recordings")
    pipe = pipeline_with_copies(StableDiffusionXLPipeline, tiny_sdxl.name)
    torch.manual_seed(0)  # diffusers tells the two encoders apart by their widths, as in the published model
    wide = {**pipe.text_encoder_2.config.to_dict(), "hidden_size": 48, "projection_dim": 48}
    pipe.register_modules(text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**wide)))
    pipe.save_pretrained(tmp_path / "folder")
    save_file(one_file(pipe), tmp_path / "xl.safetensors")
    load, options = StableDiffusionXLPipeline.from_single_file, {"config": str(tmp_path / "folder")}
    same_weights(pipe, load_single_file(load, tmp_path / "xl.safetensors", options))


def test_an_sd2_file_loads_as_its_folder(tmp_path: Path, tiny_sd: Path) -> None:
    pipe = pipeline_with_copies(StableDiffusionPipeline, tiny_sd.name)
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
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, dtype=dtype)
    tensors = {key.replace(".text_model.", "."): value for key, value in one_file(pipe).items()}
    tensors["cond_stage_model.transformer.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tensors, tmp_path / "old.safetensors")
    place = "webui_diffusers.loaders.checkpoint.load.single_file_config"
    monkeypatch.setattr(place, lambda info: tiny_sd)  # the shipped one is of full size
    options = {"dtype": dtype}
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
    kwargs = {"dtype": torch.float16, "prediction_type": "v_prediction"}
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
    unet = UNet2DConditionModel.from_pretrained(tiny_sd, subfolder="unet")
    assert predicts_noise(unet)
    torch.manual_seed(0)
    assert not predicts_noise(UNet2DConditionModel.from_config(unet.config))


def test_a_guess_is_settled_by_trying_the_unet(tmp_path: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline_with_copies(StableDiffusionPipeline, tiny_sd.name)
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
    pipe = pipeline_with_copies(StableDiffusionPipeline, tiny_sd.name)
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
    tensors = one_file(pipeline_with_copies(StableDiffusionPipeline, tiny_sd.name))
    del tensors[lost]
    save_file(tensors, tmp_path / "x.safetensors")
    load, options = StableDiffusionPipeline.from_single_file, {"config": str(tiny_sd)}
    with pytest.raises(CheckpointError, match=rf"x\.safetensors.*{says}"):
        load_single_file(load, tmp_path / "x.safetensors", options)


def test_a_refiner_must_be_one(tmp_path: Path, tiny_sdxl_refiner: Path) -> None:
    if not tiny_sdxl_refiner.is_dir():
        pytest.skip("no tiny refiner in this folder of recordings")
    unet = UNet2DConditionModel.from_pretrained(tiny_sdxl_refiner, subfolder="unet")
    save_file(ldm_unet(unet.state_dict(), unet.config.layers_per_block), tmp_path / "r.safetensors")
    loaded = read_refiner(tmp_path / "r.safetensors", config=str(tiny_sdxl_refiner))
    assert all(torch.equal(value, unet.state_dict()[key]) for key, value in loaded.state_dict().items())
    save_file(
        ldm_unet(unet.state_dict(), 1) | {"conditioner.embedders.1.model.x": torch.zeros(1)},
        tmp_path / "base.safetensors",
    )
    with pytest.raises(CheckpointError, match="Stable Diffusion XL, noise prediction.*no refiner"):
        read_refiner(tmp_path / "base.safetensors")


# key, what stands in its place, what the message says
SPOILT = [
    ("model.diffusion_model.out.2.bias", lambda value: value[:1], "does not have the shape of its kind"),
    ("first_stage_model.decoder.mid.attn_1.q.weight", lambda value: value.sum(), "does not have the shape"),
]


@pytest.mark.parametrize("key, spoil, says", SPOILT)
def test_a_weight_of_another_shape_is_said(tmp_path: Path, tiny_sd: Path, key: str, spoil: object, says: str) -> None:
    tensors = one_file(pipeline_with_copies(StableDiffusionPipeline, tiny_sd.name))
    tensors[key] = spoil(tensors[key])
    torch.save(tensors, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=rf"x\.ckpt`.*{says}"):
        load_single_file(StableDiffusionPipeline.from_single_file, tmp_path / "x.ckpt", {"config": str(tiny_sd)})
