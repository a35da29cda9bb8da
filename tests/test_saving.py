"""A saved pipeline brings its code; and which component a pipeline ends up with, by every way of making one.

The table below is the documentation: how a component is given, and what the pipeline then has, where its folder has
one (saved) and where it has none (bare). `from_pipe` starts from a pipeline with and without one.

    call                                             saved / with one     bare / without
    from_pretrained(folder)                          the saved one        None
    from_pretrained(folder, upscaler=None)           None                 None
    from_pretrained(folder, upscaler=obj)            obj                  obj
    from_pipe(pipe)                                  see below            None
    from_pipe(pipe, upscaler=None)                   None                 None
    from_pipe(pipe, upscaler=obj)                    obj                  obj

`from_pipe` hands over components of diffusers and transformers (safety checker, UNet, ...). One of a class of ours is
not handed over, and diffusers says in a warning that it has to be passed: `from_pipe(pipe, upscaler=pipe.upscaler)`.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import webui_diffusers.pipelines
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import dynamic_modules_utils
from tiny_models import pipeline_with_copies
from webui_diffusers.loaders import load_upscaler
from webui_diffusers.pipelines import WebUIImg2ImgPipeline, WebUITxt2ImgPipeline
from webui_diffusers.pipelines.bundle.build import PACK_ROOT, PIPELINES, pipeline_file


FLOAT = {"dtype": torch.float32}
TRUST = {"trust_remote_code": True}
CALL = {"prompt": "a (red:1.3) circle", "seed": 3, "sampler": "Euler a", "num_inference_steps": 2, "output_type": "np"}


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory: pytest.TempPathFactory):
    """diffusers' folder of code, empty, for these tests alone."""
    folder = tmp_path_factory.mktemp("modules")
    before = dynamic_modules_utils.HF_MODULES_CACHE
    dynamic_modules_utils.HF_MODULES_CACHE = str(folder)
    yield folder
    dynamic_modules_utils.HF_MODULES_CACHE = before
    for name in [name for name in sys.modules if name.startswith("diffusers_modules")]:
        del sys.modules[name]
    if str(folder) in sys.path:
        sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def upscaler():
    return load_upscaler("R-ESRGAN AnimeVideo")


@pytest.fixture(scope="module")
def saved(tiny_sd: Path, upscaler, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the package's pipeline saved, with an upscaler and a refiner."""
    refiner = UNet2DConditionModel.from_pretrained(tiny_sd, subfolder="unet")
    pipe = pipeline_with_copies(WebUITxt2ImgPipeline, tiny_sd.name, upscaler=upscaler, refiner=refiner)
    folder = tmp_path_factory.mktemp("saved")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bare(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without optional components."""
    folder = tmp_path_factory.mktemp("bare")
    pipeline_with_copies(WebUITxt2ImgPipeline, tiny_sd.name).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reloaded(saved: Path) -> DiffusionPipeline:
    """The pipeline of the saved folder, with the folder's code."""
    return DiffusionPipeline.from_pretrained(saved, **FLOAT, **TRUST)


@pytest.fixture(scope="module")
def picture(tiny_sd: Path) -> np.ndarray:
    return _draw(pipeline_with_copies(WebUITxt2ImgPipeline, tiny_sd.name))


def _draw(pipe: DiffusionPipeline) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    return pipe(**CALL).images[0]


# --- folders


def test_a_saved_folder_reloads_by_itself_and_draws_the_same(reloaded, bare: Path, picture: np.ndarray):
    for pipe in (reloaded, DiffusionPipeline.from_pretrained(bare, **FLOAT, **TRUST)):
        assert type(pipe).__name__ == "WebUITxt2ImgPipeline" and type(pipe) is not WebUITxt2ImgPipeline
        assert np.array_equal(_draw(pipe), picture)


def test_an_imported_class_opens_a_saved_folder_and_runs_nothing_of_it(
    saved: Path, upscaler, picture: np.ndarray, tmp_path: Path
):
    folder = tmp_path / "hostile"
    shutil.copytree(saved, folder)
    for file in folder.rglob("*.py"):
        file.write_text("raise SystemExit('the code of the folder ran')")
    pipe = WebUITxt2ImgPipeline.from_pretrained(folder, **FLOAT)
    assert type(pipe) is WebUITxt2ImgPipeline and type(pipe.upscaler) is type(upscaler)
    assert type(pipe.refiner) is UNet2DConditionModel and np.array_equal(_draw(pipe), picture)
    other = WebUIImg2ImgPipeline.from_pretrained(folder, upscaler=None, **FLOAT)
    assert type(other) is WebUIImg2ImgPipeline and other.upscaler is None


def test_diffusers_own_classes_ask_for_trust(bare: Path):
    """They run the code that the index names, whichever class is asked."""
    for maker in (DiffusionPipeline, StableDiffusionPipeline):
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            maker.from_pretrained(bare)


def test_components_of_somebody_elses_code_still_ask_for_trust(bare: Path, tmp_path: Path):
    folder = tmp_path / "foreign"
    shutil.copytree(bare, folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["refiner"] = ["their_unet", "TheirUNet"]
    (folder / "refiner").mkdir()
    (folder / "refiner" / "their_unet.py").write_text("class TheirUNet: pass")
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        WebUITxt2ImgPipeline.from_pretrained(folder, **FLOAT)


def test_components_of_our_classes_come_with_their_code(saved: Path, reloaded, upscaler):
    index = json.loads((saved / "model_index.json").read_text())
    assert index["_class_name"] == ["webui_txt2img", "WebUITxt2ImgPipeline"]
    assert index["upscaler"] == ["webui_txt2img", "ImageUpscaler"]
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"] and "_name_or_path" not in index
    assert (saved / "pipeline.py").read_text() == (saved / "webui_txt2img.py").read_text()
    pixels = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(reloaded.upscaler(pixels), upscaler(pixels))
    assert reloaded.refiner.config.in_channels == 4


def test_what_was_loaded_from_a_folder_saves_again(saved: Path, reloaded, picture: np.ndarray, tmp_path: Path):
    reloaded.save_pretrained(tmp_path)
    for file in ("model_index.json", "pipeline.py", "upscaler/webui_txt2img.py"):
        assert (tmp_path / file).read_bytes() == (saved / file).read_bytes(), file
    assert np.array_equal(_draw(DiffusionPipeline.from_pretrained(tmp_path, **FLOAT, **TRUST)), picture)


def test_a_pipeline_of_the_single_file_saves_and_reloads_with_components_of_the_package(
    tiny_sd: Path, upscaler, picture: np.ndarray, tmp_path: Path
):
    code = str(pipeline_file("webui-txt2img"))
    pipe = DiffusionPipeline.from_pretrained(tiny_sd, custom_pipeline=code, upscaler=upscaler, **FLOAT, **TRUST)
    pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path, **FLOAT, **TRUST)
    assert again.upscaler.scale == upscaler.scale
    assert np.array_equal(_draw(again), picture)


def test_a_folder_serves_as_code_for_another_model(saved: Path, tiny_sd: Path, picture: np.ndarray):
    pipe = DiffusionPipeline.from_pretrained(tiny_sd, custom_pipeline=str(saved), **FLOAT, **TRUST)
    assert np.array_equal(_draw(pipe), picture)


def test_a_half_precision_variant_reloads(tiny_sd: Path, tmp_path: Path):
    WebUITxt2ImgPipeline.from_pretrained(tiny_sd, dtype=torch.bfloat16).save_pretrained(tmp_path, variant="bf16")
    pipe = DiffusionPipeline.from_pretrained(tmp_path, variant="bf16", dtype=torch.bfloat16, **TRUST)
    assert pipe.unet.dtype == torch.bfloat16


# --- the table at the head of this file


@pytest.mark.parametrize("made", [pytest.param("class", marks=pytest.mark.slow), "DiffusionPipeline"])
def test_from_pretrained_takes_what_it_is_given_where_the_folder_has_one(
    made: str, saved, reloaded, tiny_sd: Path, upscaler
):
    """Of our classes and of diffusers': the refiner stands for `safety_checker=None`, which tiny models lack."""
    maker = WebUITxt2ImgPipeline if made == "class" else DiffusionPipeline
    refiner = UNet2DConditionModel.from_pretrained(tiny_sd, subfolder="unet")
    loaded = reloaded if maker is DiffusionPipeline else maker.from_pretrained(saved, **FLOAT, **TRUST)
    assert type(loaded.upscaler).__name__ == "ImageUpscaler" and type(loaded.refiner) is UNet2DConditionModel
    loaded = maker.from_pretrained(saved, upscaler=None, refiner=refiner, **FLOAT, **TRUST)
    assert loaded.upscaler is None and loaded.refiner is refiner
    loaded = maker.from_pretrained(saved, upscaler=upscaler, refiner=None, **FLOAT, **TRUST)
    assert loaded.upscaler is upscaler and loaded.refiner is None


@pytest.mark.slow
@pytest.mark.parametrize("made", ["class", "DiffusionPipeline"])
def test_from_pretrained_takes_what_it_is_given_where_the_folder_has_none(made: str, bare, upscaler):
    maker = WebUITxt2ImgPipeline if made == "class" else DiffusionPipeline
    assert maker.from_pretrained(bare, **FLOAT, **TRUST).upscaler is None
    assert maker.from_pretrained(bare, upscaler=None, **FLOAT, **TRUST).upscaler is None
    assert maker.from_pretrained(bare, upscaler=upscaler, **FLOAT, **TRUST).upscaler is upscaler


@pytest.mark.parametrize("made", ["class", "DiffusionPipeline"])
def test_from_pipe_takes_the_component_it_is_given(made: str, tiny_sd: Path, upscaler, caplog):
    refiner = UNet2DConditionModel.from_pretrained(tiny_sd, subfolder="unet")
    more = {"custom_pipeline": str(pipeline_file("webui-txt2img")), **TRUST} if made != "class" else {}
    maker = WebUITxt2ImgPipeline if made == "class" else DiffusionPipeline
    plain = pipeline_with_copies(StableDiffusionPipeline, tiny_sd.name)
    pipe = maker.from_pipe(plain, **more)
    assert pipe.unet is plain.unet
    given = {name for name in pipe._optional_components if getattr(pipe, name) is not None}
    assert given == {"text_encoder", "tokenizer"} and pipe.components.keys() == plain.components.keys()
    assert maker.from_pipe(plain, upscaler=None, **more).upscaler is None
    assert maker.from_pipe(plain, upscaler=upscaler, **more).upscaler is upscaler
    full = pipeline_with_copies(WebUITxt2ImgPipeline, tiny_sd.name, upscaler=upscaler, refiner=refiner)
    pipe = maker.from_pipe(full, **more)
    assert pipe.refiner is refiner and pipe.upscaler is None
    assert maker.from_pipe(full, upscaler=None, **more).upscaler is None
    assert maker.from_pipe(full, upscaler=full.upscaler, **more).upscaler is upscaler
    assert StableDiffusionPipeline.from_pipe(full).unet is full.unet


def test_a_class_of_somebody_elses_is_saved_with_a_warning(tiny_sd: Path, tmp_path: Path, caplog):
    class Elsewhere(UNet2DConditionModel):
        pass

    refiner = Elsewhere.from_pretrained(tiny_sd, subfolder="unet")
    pipe = pipeline_with_copies(WebUITxt2ImgPipeline, tiny_sd.name, refiner=refiner)
    with caplog.at_level("WARNING", logger="diffusers.webui"):
        pipe.save_pretrained(tmp_path)
    assert f"`{__name__}`, whose code cannot be saved along" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PIPELINES if name != "face-restore"])
def test_every_pipeline_reloads_from_what_it_saved(name: str, tiny_sd: Path, tiny_sdxl: Path, tmp_path: Path):
    if not (PACK_ROOT / PIPELINES[name].file).is_file():
        pytest.skip(f"there is no {name} yet")
    made = getattr(webui_diffusers.pipelines, PIPELINES[name].class_name)
    pipe = made.from_pretrained(tiny_sdxl if name.endswith("-xl") else tiny_sd, **FLOAT)
    pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path, **FLOAT, **TRUST)
    assert type(again).__name__ == made.__name__
    ours = [p.state_dict() for p in (pipe.unet, again.unet)]
    assert all(torch.equal(ours[0][key], ours[1][key]) for key in ours[0])
