"""Which model a checkpoint holds, and what a file is that holds none: from key names and shapes."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTokenizer
from webui_diffusers.loaders.checkpoint.configs import MODEL_BASES, model_config_folder
from webui_diffusers.loaders.checkpoint.describe import CheckpointError, describe_checkpoint
from webui_diffusers.loaders.checkpoint.load import load_single_file, local_checkpoint, single_file_arguments
from webui_diffusers.loaders.weight_files import WeightFileError


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEBUI_DIFFUSERS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


# ---- what a file is


UNET = "model.diffusion_model."
TEXT_KEYS = {
    "sd1": ["cond_stage_model.transformer.text_model.final_layer_norm.weight"],
    "sd2": ["cond_stage_model.model.ln_final.weight"],
    "sdxl": ["conditioner.embedders.0.transformer.text_model.x", "conditioner.embedders.1.model.ln_final.weight"],
    "sdxl-refiner": ["conditioner.embedders.0.model.ln_final.weight"],
}
WIDTHS = {"sd1": 768, "sd2": 1024, "sdxl": 2048, "sdxl-refiner": 1280}


def sketch(base: str, *, channels: int = 4, width: int | None = None, vae: bool = True) -> dict[str, Tensor]:
    """A few keys of a checkpoint, with the shapes that tell."""
    tensors = {
        f"{UNET}input_blocks.0.0.weight": torch.zeros(8, channels, 3, 3, dtype=torch.float16),
        f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(4, width or WIDTHS[base]),
    }
    if base.startswith("sdxl"):
        tensors[f"{UNET}label_emb.0.0.weight"] = torch.zeros(4, 4)
    names = TEXT_KEYS[base] + (["first_stage_model.decoder.conv_in.weight"] if vae else [])
    return tensors | {name: torch.zeros(2) for name in names}


def standard_alphas() -> Tensor:
    return torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)


@pytest.mark.parametrize("base", WIDTHS)
@pytest.mark.parametrize("width", [None, 32])
@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
def test_the_base_is_told_from_the_keys(tmp_path: Path, base: str, width: int | None, ending: str) -> None:
    path = tmp_path / f"any name{ending}"
    (save_file if ending == ".safetensors" else torch.save)(sketch(base, width=width), path)
    info = describe_checkpoint(path)
    assert (info.base, info.unet_channels, info.dtype) == (base, 4, torch.float16)
    assert info.parts[:2] == ("unet", "vae") and len(info.parts) == (4 if base == "sdxl" else 3)
    assert str(info).startswith(f"any name{ending}: Stable Diffusion ") and "\n" not in str(info)


# extra keys, metadata, name, yaml beside it, what is found
PREDICTIONS = [
    ("sd1", {}, {}, "model", None, ("epsilon", "as all of its kind")),
    ("sd1", {}, {}, "model", 'model:\n  params:\n    parameterization: "v"\n', ("v_prediction", "model.yaml")),
    ("sdxl", {"v_pred": 0}, {}, "noob", None, ("v_prediction", "key `v_pred`")),
    ("sdxl", {}, {"modelspec.prediction_type": "v"}, "x", None, ("v_prediction", "metadata")),
    ("sdxl", {}, {"modelspec.predict_key": "epsilon"}, "x", None, ("epsilon", "metadata")),
    ("sd2", {}, {"modelspec.architecture": "stable-diffusion-v2-512"}, "768", None, ("epsilon", "metadata")),
    ("sd2", {}, {"modelspec.architecture": "stable-diffusion-v2-768-v"}, "512", None, ("v_prediction", "metadata")),
    ("sd2", {}, {}, "m", "    linear_start: 0.00085\n", ("epsilon", "m.yaml")),
    ("sd2", {}, {}, "m", "notes: none\n", ("v_prediction", "guessed")),
    ("sd2", {}, {}, "v2-1_512-ema-pruned", None, ("epsilon", "guessed from its name")),
    ("sd2", {}, {}, "v2-1_768-ema-pruned", None, ("v_prediction", "guessed from its name")),
    ("sd2", {}, {}, "something", None, ("v_prediction", "guessed: most")),
]


@pytest.mark.parametrize("base, keys, metadata, name, yaml, found", PREDICTIONS)
def test_the_prediction_type_and_what_told_it(
    tmp_path: Path,
    base: str,
    keys: dict[str, int],
    metadata: dict[str, str],
    name: str,
    yaml: str | None,
    found: tuple[str, str],
) -> None:
    extra = {key: torch.zeros(size) for key, size in keys.items()}
    save_file(sketch(base) | extra, tmp_path / f"{name}.safetensors", metadata=metadata)
    if yaml is not None:
        (tmp_path / f"{name}.yaml").write_text(yaml)
    info = describe_checkpoint(tmp_path / f"{name}.safetensors")
    assert info.prediction_type == found[0] and info.decided_by.startswith(found[1])
    asked = describe_checkpoint(tmp_path / f"{name}.safetensors", "epsilon")
    assert (asked.prediction_type, asked.decided_by) == ("epsilon", "as asked")


def test_sd2_inpainting_and_sd2_base_predict_noise(tmp_path: Path) -> None:
    save_file(sketch("sd2", channels=9), tmp_path / "i.safetensors")
    info = describe_checkpoint(tmp_path / "i.safetensors")
    assert info.prediction_type == "epsilon" and "inpainting UNet" in str(info)
    torch.save({"state_dict": sketch("sd2"), "global_step": 875000}, tmp_path / "b.ckpt")
    assert describe_checkpoint(tmp_path / "b.ckpt").prediction_type == "epsilon"


def full_sketch(tensors: dict[str, Tensor], base: str = "sdxl") -> dict[str, Tensor]:
    """As many UNet tensors as the published model has, empty."""
    count = {"sd1": 686, "sd2": 686, "sdxl": 1680}[base]
    return tensors | {f"{UNET}filler.{number}": torch.zeros(0) for number in range(count)}


@pytest.mark.parametrize("base", ["sd1", "sdxl"])
def test_zero_terminal_snr_reaches_the_scheduler(tmp_path: Path, base: str) -> None:
    tensors = full_sketch(sketch(base), base) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file(tensors, tmp_path / "x.safetensors")
    assert "zero terminal SNR" in str(describe_checkpoint(tmp_path / "x.safetensors"))
    folder = Path(single_file_arguments(tmp_path / "x.safetensors", {})["config"])
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["rescale_betas_zero_snr"] and scheduler["prediction_type"] == "v_prediction"
    index = json.loads((folder / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "EulerDiscreteScheduler" if base == "sdxl" else "DDIMScheduler"]


def test_only_a_schedule_of_its_own_is_taken_over(tmp_path: Path) -> None:
    found = {}
    for name, alphas in {"half": standard_alphas().half(), "own": standard_alphas().float() ** 1.5}.items():
        save_file(full_sketch(sketch("sd1"), "sd1") | {"alphas_cumprod": alphas}, tmp_path / f"{name}.safetensors")
        assert torch.equal(describe_checkpoint(tmp_path / f"{name}.safetensors").alphas_cumprod, alphas.float())
        folder = Path(single_file_arguments(tmp_path / f"{name}.safetensors", {})["config"])
        found[name] = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["trained_betas"]
    assert found["half"] is None
    rebuilt = torch.cumprod(1 - torch.tensor(found["own"], dtype=torch.float64), 0)
    torch.testing.assert_close(rebuilt, standard_alphas() ** 1.5, rtol=1e-4, atol=0)


def test_a_callers_own_configuration_is_left_alone(tmp_path: Path) -> None:
    save_file(sketch("sd1"), tmp_path / "x.safetensors")
    kwargs = {"config": "some/repo", "dtype": torch.float16}
    assert single_file_arguments(tmp_path / "x.safetensors", kwargs) == kwargs
    assert local_checkpoint(tmp_path / "x.safetensors", {}) == tmp_path / "x.safetensors"


# ---- pickles


class Intruder:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return Path.touch, (self.target,)


def test_a_ckpt_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": sketch("sd1"), "note": Intruder(tmp_path / "made")}, tmp_path / "bad.ckpt")
    with pytest.raises(WeightFileError, match=r"bad\.ckpt.*would run code"):
        describe_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "made").exists()


# ---- what cannot be loaded


# keys, what the message says
OTHERS = [
    (["lora_unet_down_blocks_0.lora_down.weight"], "a network"),
    (["encoder.conv_in.weight", "decoder.conv_in.weight"], "VAE alone.*`vae=`"),
    (["control_model.input_blocks.0.0.weight"], "ControlNet"),
    (["model.diffusion_model.joint_blocks.0.x"], "SD3, Flux"),
    (["conv_first.weight", "body.0.rdb1.conv1.weight"], "upscaler"),
    (["down_blocks.0.resnets.0.conv1.weight"], "from_pretrained"),
    (["text_model.embeddings.token_embedding.weight"], "text encoder alone"),
    (["emb_params"], "embedding"),
    (["cond_stage_model.transformer.text_model.x"], "UNet is not"),
    (["something", "else"], "`else`, `something`"),
]


@pytest.mark.parametrize("keys, says", OTHERS)
def test_what_is_no_checkpoint_is_called_by_its_name(tmp_path: Path, keys: list[str], says: str) -> None:
    save_file({key: torch.zeros(2) for key in keys}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=rf"x\.safetensors` is no Stable Diffusion checkpoint: .*{says}"):
        describe_checkpoint(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "channels, says", [(5, "Depth2Img"), (7, "Upscale"), (8, "InstructPix2Pix"), (6, "not known")]
)
def test_a_unet_for_other_input_is_refused(tmp_path: Path, channels: int, says: str) -> None:
    save_file(sketch("sd1", channels=channels), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=says):
        describe_checkpoint(tmp_path / "x.safetensors")


def test_missing_parts_are_named_before_any_work(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(full_sketch(sketch("sd1", vae=False), "sd1"), path)
    assert str(describe_checkpoint(path)).endswith("no vae")
    with pytest.raises(CheckpointError, match=r"without vae.*`vae=\.\.\.`"):
        single_file_arguments(path, {})
    assert single_file_arguments(path, {"vae": object()})["local_files_only"]


@pytest.mark.parametrize("tensors", [sketch("sd1"), full_sketch(sketch("sd1", width=512), "sd1")])
def test_a_smaller_or_incomplete_unet_is_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="incomplete, or a smaller model.*`config=`"):
        single_file_arguments(tmp_path / "x.safetensors", {})


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
def test_a_truncated_checkpoint_is_said(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x{ending}"
    (save_file if ending == ".safetensors" else torch.save)(sketch("sd1"), path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(WeightFileError, match="truncated or damaged"):
        load_single_file(StableDiffusionPipeline.from_single_file, path, {})


def test_a_wrong_wish_and_a_missing_file_are_said(tmp_path: Path) -> None:
    save_file(sketch("sd1"), tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="got 'sample'"):
        describe_checkpoint(tmp_path / "x.ckpt", "sample")
    with pytest.raises(WeightFileError, match="does not exist"):
        load_single_file(StableDiffusionPipeline.from_single_file, tmp_path / "nowhere.safetensors", {})


# ---- the configuration folders


@pytest.mark.parametrize("base", MODEL_BASES)
def test_the_configuration_folder_is_complete_and_made_once(base: str, tiny_sdxl: Path) -> None:
    folder = model_config_folder(base)
    assert model_config_folder(base) == folder
    for tokenizer in folder.glob("tokenizer*"):
        read = CLIPTokenizer.from_pretrained(tokenizer)
        assert read("a photo of an astronaut").input_ids == [49406, 320, 1125, 539, 550, 18376, 49407]
        assert read.pad_token_id == (49407 if base in ("sd1", "sdxl") and tokenizer.name == "tokenizer" else 0)
        for name in ("vocab.json", "merges.txt"):
            if (tiny_sdxl / "tokenizer" / name).is_file():
                assert (tokenizer / name).read_bytes() == (tiny_sdxl / "tokenizer" / name).read_bytes()
    (folder / "unet" / "config.json").unlink()
    assert (model_config_folder(base) / "unet" / "config.json").is_file()


def test_an_unknown_base_is_refused() -> None:
    with pytest.raises(ValueError, match="sd1, sd2, sdxl, sdxl-refiner; got 'sd3'"):
        model_config_folder("sd3")
    with pytest.raises(ValueError, match="'epsilon' or 'v_prediction'; got 'x0'"):
        model_config_folder("sd1", prediction_type="x0")


ADDRESSES = [
    "https://huggingface.co/org/repo/blob/main/sub/x.safetensors",
    "https://huggingface.co/org/repo/resolve/main/sub/x.safetensors?download=true",
    "hf.co/org/repo/sub/x.safetensors",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_on_the_hub_is_looked_up_in_the_cache(tmp_path: Path, address: str) -> None:
    commit = "a" * 40
    kept = tmp_path / "models--org--repo" / "snapshots" / commit / "sub" / "x.safetensors"
    kept.parent.mkdir(parents=True)
    save_file(sketch("sd1"), kept)
    (tmp_path / "models--org--repo" / "refs").mkdir()
    (tmp_path / "models--org--repo" / "refs" / "main").write_text(commit)
    found = local_checkpoint(address, {"cache_dir": str(tmp_path), "local_files_only": True})
    assert found.samefile(kept) and describe_checkpoint(found).base == "sd1"
