"""WebUITxt2ImgPipeline from single files, and with what users load into a pipeline: checkers, adapters, embeddings."""

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from ldm_layout import ldm_unet, one_file
from PIL import Image
from safetensors.torch import save_file
from tiny_models import pipeline_with_copies
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from webui_diffusers.loaders.checkpoint.configs import model_config_files
from webui_diffusers.loaders.checkpoint.describe import CheckpointInfo
from webui_diffusers.loaders.checkpoint.load import read_refiner
from webui_diffusers.pipelines import WebUITxt2ImgPipeline


CALL = {"num_inference_steps": 2, "output_type": "np"}
NAMED = {"seed": 1, "sampler": "Euler", **CALL}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 24,
}


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEBUI_DIFFUSERS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def sd(tiny_sd: Path) -> StableDiffusionPipeline:
    return pipeline_with_copies(StableDiffusionPipeline, tiny_sd.name, requires_safety_checker=False)


@pytest.fixture
def sdxl(tiny_sdxl: Path) -> StableDiffusionXLPipeline:
    if not tiny_sdxl.is_dir():
        pytest.skip("no tiny SDXL in this folder of recordings")
    return pipeline_with_copies(StableDiffusionXLPipeline, tiny_sdxl.name)


@pytest.fixture(params=["sd", "sdxl"])
def theirs(request: pytest.FixtureRequest):
    return request.getfixturevalue(request.param)


def ours_of(pipe, **components) -> WebUITxt2ImgPipeline:
    """A new pipeline of ours around the same components."""
    return quiet(WebUITxt2ImgPipeline(**{**pipe.components, **components}, requires_safety_checker=False))


# ---- single files


def saved_tiny(monkeypatch: pytest.MonkeyPatch, pipe, folder: Path) -> None:
    """Let files be taken for `pipe`'s shapes, with the scheduler that their keys call for."""

    def config(info: CheckpointInfo) -> Path:
        entries = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if info.zero_snr else {}
        files = model_config_files(info.base, prediction_type=info.prediction_type, scheduler=entries)
        pipe.save_pretrained(folder)
        written = {**files["scheduler/scheduler_config.json"]}
        json.dump(written, (folder / "scheduler" / "scheduler_config.json").open("w"))
        return folder

    monkeypatch.setattr("webui_diffusers.loaders.checkpoint.load.single_file_config", config)


def wide_sdxl(pipe: StableDiffusionXLPipeline) -> StableDiffusionXLPipeline:
    """Encoders of two widths, as in the published model: diffusers tells them apart by that."""
    torch.manual_seed(0)
    wide = {**pipe.text_encoder_2.config.to_dict(), "hidden_size": 48, "projection_dim": 48}
    told = {"cross_attention_dim": 32 + 48, "projection_class_embeddings_input_dim": 48 + 6 * 256}
    pipe.register_modules(
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**wide)),
        unet=UNet2DConditionModel.from_config(pipe.unet.config, **told),
    )
    return pipe


def sd2_like(pipe: StableDiffusionPipeline) -> StableDiffusionPipeline:
    torch.manual_seed(0)
    config = {**pipe.text_encoder.config.to_dict(), "hidden_act": "gelu"}
    pipe.register_modules(
        unet=UNet2DConditionModel.from_config(pipe.unet.config, use_linear_projection=True),
        text_encoder=CLIPTextModel(CLIPTextConfig(**config)),
    )
    pipe.tokenizer = deepcopy(pipe.tokenizer)
    pipe.tokenizer.pad_token = "!"
    return pipe


@pytest.mark.parametrize("base", ["sd1", "sd2", "sdxl"])
def test_a_single_file_draws_what_its_folder_draws(request, tmp_path, monkeypatch, base):
    source = request.getfixturevalue("sdxl" if base == "sdxl" else "sd")
    source = {"sd1": lambda p: p, "sd2": sd2_like, "sdxl": wide_sdxl}[base](source)
    saved_tiny(monkeypatch, source, tmp_path / "folder")
    tensors, expected = one_file(source), ours_of(source)("a (red:1.2) circle", **NAMED).images
    save_file(tensors, tmp_path / "model-base.safetensors")
    torch.save({"state_dict": tensors}, tmp_path / "model-base.ckpt")
    for path in (tmp_path / "model-base.safetensors", tmp_path / "model-base.ckpt"):
        pipe = quiet(WebUITxt2ImgPipeline.from_single_file(path, prediction_type="epsilon", dtype=torch.float32))
        assert pipe.is_sdxl == (base == "sdxl") and pipe.scheduler.config.prediction_type == "epsilon"
        assert pipe.safety_checker is None and pipe.refiner is None
        assert np.abs(pipe("a (red:1.2) circle", **NAMED).images - expected).max() < 1e-4, path


def test_a_v_checkpoint_with_zero_terminal_snr_is_drawn_as_one(tmp_path, monkeypatch, sdxl):
    source = wide_sdxl(sdxl)
    saved_tiny(monkeypatch, source, tmp_path / "folder")
    save_file(one_file(source) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, tmp_path / "x.safetensors")
    pipe = quiet(WebUITxt2ImgPipeline.from_single_file(tmp_path / "x.safetensors", dtype=torch.float32))
    told = pipe.scheduler.config
    assert (told.prediction_type, told.rescale_betas_zero_snr) == ("v_prediction", True)
    plain = ours_of(source)
    plain.scheduler = type(plain.scheduler).from_config(plain.scheduler.config, prediction_type="v_prediction")
    named = {**NAMED, "output_type": "latent"}
    zero = plain("a", webui_options={"sd_noise_schedule": "Zero Terminal SNR"}, **named).images
    actual = pipe("a", **named).images
    assert (actual - zero).abs().max() < 1e-3 * zero.abs().max()
    assert (actual - plain("a", **named).images).abs().max() > 1e-2
    assert torch.isfinite(pipe("a", **{**named, "sampler": None}).images).all()


def test_an_sd2_file_whose_name_says_v_is_drawn_as_one(tmp_path, monkeypatch, sd):
    source = sd2_like(sd)
    saved_tiny(monkeypatch, source, tmp_path / "folder")
    save_file(one_file(source), tmp_path / "v2-768.safetensors")
    pipe = quiet(WebUITxt2ImgPipeline.from_single_file(tmp_path / "v2-768.safetensors", dtype=torch.float32))
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    expected = ours_of(source)
    expected.scheduler = type(sd.scheduler).from_config(sd.scheduler.config, prediction_type="v_prediction")
    assert np.abs(pipe("a", **NAMED).images - expected("a", **NAMED).images).max() < 1e-4


def test_a_refiner_comes_from_its_file(tmp_path, sdxl, tiny_sdxl_refiner):
    unet = UNet2DConditionModel.from_pretrained(tiny_sdxl_refiner, subfolder="unet")
    save_file(ldm_unet(unet.state_dict(), unet.config.layers_per_block), tmp_path / "refiner.safetensors")
    read = read_refiner(tmp_path / "refiner.safetensors", config=str(tiny_sdxl_refiner), dtype=torch.float32)
    named = {**NAMED, "refiner_switch_at": 0.5}
    expected = ours_of(sdxl, refiner=unet)("a red circle", **named).images
    assert np.abs(ours_of(sdxl, refiner=read)("a red circle", **named).images - expected).max() < 1e-4
    assert not np.allclose(expected, ours_of(sdxl)("a red circle", **NAMED).images, atol=1e-3)


# ---- the safety checker


def safety_checker(concept_weight: float) -> StableDiffusionSafetyChecker:
    """A real one at tiny size that flags everything (weight below every cosine) or nothing (above)."""
    torch.manual_seed(0)
    text = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 4}
    checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24))
    checker.concept_embeds_weights.data.fill_(concept_weight)
    checker.special_care_embeds_weights.data.fill_(2.0)
    return checker.eval()


@pytest.mark.parametrize("named", [{}, {"sampler": "Euler", "seed": 1}])
def test_a_flagged_picture_is_black_and_said(sd, named):
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    for weight, flagged in ((-2.0, True), (2.0, False)):
        components = {"safety_checker": safety_checker(weight), "feature_extractor": processor}
        pipe = ours_of(sd, **components)
        output = pipe(["a red circle", "a"], **CALL, **named)
        assert output.nsfw_content_detected == [flagged] * 2
        assert output.images.any() != flagged
        images, flags = pipe("a", num_inference_steps=1, return_dict=False, **named)
        assert flags == [flagged] and (images[0].getextrema() == ((0, 0),) * 3) == flagged


# ---- IP-Adapter


def ip_adapter_weights(unet: UNet2DConditionModel, tokens: int = 4) -> dict[str, dict[str, Tensor]]:
    """Random weights in the layout of the published files, as diffusers' own tests make them."""
    torch.manual_seed(1)
    width, layers, number = unet.config.cross_attention_dim, {}, 1
    for name in unet.attn_processors:
        if not name.endswith("attn1.processor"):
            module = unet.get_submodule(name.removesuffix(".processor"))
            for part in ("k", "v"):
                layers[f"{number}.to_{part}_ip.weight"] = torch.randn(module.to_k.out_features, width) * 0.3
            number += 2
    projection = {
        "proj.weight": torch.randn(width * tokens, VISION["projection_dim"]) * 0.3,
        "proj.bias": torch.zeros(width * tokens),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    return {"image_proj": projection, "ip_adapter": layers}


def with_ip_adapter(theirs):
    """Our pipeline with the same models and a random adapter, and a picture for it."""
    torch.manual_seed(2)
    encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)).eval()
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    theirs.register_modules(image_encoder=encoder, feature_extractor=processor)
    pipe = ours_of(theirs)
    pipe.load_ip_adapter(ip_adapter_weights(theirs.unet), subfolder=None, weight_name=None, image_encoder_folder=None)
    pipe.set_ip_adapter_scale(0.8)
    return pipe, np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 1, 3))


def test_an_ip_adapter_works_under_a_controlnet(theirs):
    torch.manual_seed(3)
    network = ControlNetModel.from_unet(theirs.unet, conditioning_embedding_out_channels=(8, 8, 16, 16))
    torch.nn.init.normal_(network.controlnet_mid_block.weight, std=0.3)
    pipe, picture = with_ip_adapter(theirs)
    pipe.register_modules(controlnet=network)
    kind = StableDiffusionXLControlNetPipeline if pipe.is_sdxl else StableDiffusionControlNetPipeline
    own, control = quiet(kind.from_pipe(pipe)), Image.fromarray(picture)
    given = {"ip_adapter_image": picture, **CALL}
    expected = own("a red circle", image=control, generator=seeded(), **given).images
    assert np.array_equal(pipe("a red circle", image=control, generator=seeded(), **given).images, expected)
    units = {"control_units": [{"image": control}], **NAMED}
    one, two = (pipe("a (red:1.2) circle", ip_adapter_image=i, **units).images for i in (picture, 255 - picture))
    plain = pipe("a (red:1.2) circle", ip_adapter_image=picture, **NAMED).images
    assert not np.allclose(one, two, atol=1e-3) and not np.allclose(one, plain, atol=1e-3)


def test_an_ip_adapter_works_on_both_roads(theirs):
    pipe, picture = with_ip_adapter(theirs)
    other = np.ascontiguousarray(picture.transpose(1, 0, 2))[::-1].copy()
    given = {"prompt": "a red circle", **CALL}
    expected = theirs(ip_adapter_image=picture, generator=seeded(), **given).images
    assert np.array_equal(pipe(ip_adapter_image=picture, generator=seeded(), **given).images, expected)
    latents = torch.randn((1, 4, 8, 8), generator=seeded(1))
    ours_by_scheduler = pipe(**{**given, "prompt": "(a red circle:1.0)"}, latents=latents, ip_adapter_image=picture)
    by_scheduler = theirs(**given, latents=latents, ip_adapter_image=picture).images
    assert np.abs(ours_by_scheduler.images - by_scheduler).max() < 1e-4
    named = {**NAMED, "prompt": ["a red circle AND a square", "b"], "num_images_per_prompt": 2}
    one, two = (pipe(ip_adapter_image=image, **named).images for image in (picture, other))
    assert one.shape[0] == 4 and not np.allclose(one, two, atol=1e-3)
    embeds = pipe.prepare_ip_adapter_image_embeds(picture, None, "cpu", 1, True)
    assert np.array_equal(pipe(ip_adapter_image_embeds=embeds, **named).images, one)
    single = [both.chunk(2)[1] for both in embeds]
    unguided = {"prompt": "(a:1.0)", "guidance_scale": 1.0, "latents": latents, **CALL}
    expected = theirs(ip_adapter_image_embeds=single, **{**unguided, "prompt": "a"}).images
    assert np.abs(pipe(ip_adapter_image_embeds=single, **unguided).images - expected).max() < 1e-4
    pipe.unload_ip_adapter()
    assert np.isfinite(pipe(**named).images).all()


# ---- textual inversions that diffusers loaded


def with_own_tokenizers(pipe):
    """Words are added to them, and other tests share those of the pipeline."""
    pipe.register_modules(**{name: deepcopy(part) for name, part in pipe.components.items() if "tokenizer" in name})
    return pipe


def test_textual_inversions_that_diffusers_loaded_are_read(sd, tmp_path):
    """Several vectors under one word: diffusers writes them out as <moss> <moss>_1 <moss>_2 before cutting tokens."""
    sd = with_own_tokenizers(sd)
    vectors = torch.randn((3, sd.text_encoder.config.hidden_size), generator=seeded())
    save_file({"emb_params": vectors}, tmp_path / "mossy.safetensors")
    pipe = ours_of(sd)
    pipe.add_embedding(tmp_path / "mossy.safetensors")
    from_file = pipe("a (circle:1.1) of mossy, red", **NAMED).images
    pipe.load_textual_inversion({"<moss>": vectors}, token="<moss>")
    assert np.abs(pipe("a (circle:1.1) of <moss>, red", **NAMED).images - from_file).max() < 1e-5
    assert not np.allclose(from_file, pipe("a (circle:1.1) of moss, red", **NAMED).images, atol=1e-3)
    half, whole = (pipe(f"a {sign} of <moss>", **NAMED).images for sign in ("\ud800", "\ufffd"))
    assert np.array_equal(half, whole)
    expected = sd("a circle of <moss>", generator=seeded(), **CALL).images
    assert np.array_equal(pipe("a circle of <moss>", generator=seeded(), **CALL).images, expected)


def test_textual_inversions_of_both_encoders_are_read(sdxl, tmp_path):
    parts = {"clip_l": torch.randn((2, 32), generator=seeded(1)), "clip_g": torch.randn((2, 32), generator=seeded(2))}
    save_file(parts, tmp_path / "mossy.safetensors")
    pipe = ours_of(with_own_tokenizers(sdxl))
    pipe.add_embedding(tmp_path / "mossy.safetensors")
    from_file = pipe("a (circle:1.1) of mossy, red", **NAMED).images
    for part, suffix in (("clip_l", ""), ("clip_g", "_2")):
        models = {
            "tokenizer": getattr(pipe, f"tokenizer{suffix}"),
            "text_encoder": getattr(pipe, f"text_encoder{suffix}"),
        }
        pipe.load_textual_inversion({"<moss>": parts[part]}, token="<moss>", **models)
    assert np.abs(pipe("a (circle:1.1) of <moss>, red", **NAMED).images - from_file).max() < 1e-5
    assert not np.allclose(from_file, pipe("a (circle:1.1) of moss, red", **NAMED).images, atol=1e-3)


# ---- the VAE's own settings


def test_vae_slicing_and_tiling_are_the_pipelines_to_set(theirs):
    pipe = ours_of(theirs)
    large = {**NAMED, "prompt": ["a", "b"], "width": 128, "height": 128, "num_inference_steps": 1}
    expected = pipe(**large).images
    pipe.vae.enable_slicing()
    assert np.abs(pipe(**large).images - expected).max() < 1e-4
    pipe.vae.enable_tiling()  # tiles of 64 pixels here
    tiled = pipe(**large).images
    assert 0 < np.abs(tiled - expected).mean() < 0.1
    pipe.vae.disable_slicing()
    pipe.vae.disable_tiling()
    assert np.array_equal(pipe(**large).images, expected)
