"""Take what the tests keep out of a full folder of recordings, and put the models together again.

    python tests/golden/slim.py FULL_FOLDER      writes tests/golden (models, prompt embeddings, txt2img runs)

Slim models lack their tokenizers, which are all CLIP's and are made from the package's own vocabulary, and most rows
of the token embeddings: only ids below `COMMON` and those in the recordings are kept, the others become zeros. Runs
keep their final latents and pictures; what else the tests read of a run is copied whole.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer
from webui_diffusers.loaders.checkpoint.configs import clip_tokenizer_files
from webui_diffusers.pipelines.prompt.clip_tokenizer import FragmentTokenizer


HERE = Path(__file__).parent
MODELS = ("tiny-sd", "tiny-sdxl-e2e", "tiny-sdxl-e2e-refiner")
# control networks, which began as copies of a UNet and still share most tensors with it -> that UNet's model
CONTROLNETS = {"tiny-controlnet": "tiny-sd", "tiny-controlnet-2": "tiny-sd", "tiny-controlnet-xl": "tiny-sdxl-e2e"}
CONTROL_WHOLE_RUNS = ("mode_c_w1.0", "inpaint_only_t2i")  # with what tests read besides latents
COMMON = 3000
EMBEDDING = "token_embedding.weight"
DETAILER_RUNS = {
    "adetailer": (
        *("ad_default_two", "ad_size_not_8", "ad_hires_whole", "ad_batch_niter", "ad_no_overlay", "ad_two_tabs"),
        *("ad_seg_masks", "ad_i2i_soft", "ad_skip_img2img", "ad_i2i_inpaint_whole", "ad_checkpoint_vae"),
        *("ad_black_mask", "ad_prompt_skip", "ad_color_correction", "ad_match_free", "ad_seed_batch_i2i_nv"),
        *("ad_second_tab_only", "ad_nothing"),
    ),
    "soft_inpainting": (
        *("soft_alpha_mask", "soft_batch2", "soft_ddim", "soft_default", "soft_empty_mask", "soft_only_masked_wide"),
    ),
    "scripts": (
        *("hrckpt_lanczos_batch", "hrckpt_latent", "loop_count2_mask", "sdup_batch2", "sdup_nearest", "sdup_none"),
        "sdup_small",
    ),
}


def slim_model(source: Path, target: Path, ids: torch.Tensor) -> None:
    """Copy a model folder without tokenizers and without the rows of other tokens."""
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_dir() or path.name in ("vocab.json", "merges.txt", "tokenizer.json"):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".safetensors" or not path.parent.name.startswith("text_encoder"):
            shutil.copyfile(path, place)
            continue
        tensors = load_file(path)
        name = next(key for key in tensors if key.endswith(EMBEDDING))
        rows = tensors.pop(name)
        kept = ids[ids < len(rows)]
        save_file({**tensors, "rows": rows[kept].contiguous(), "ids": kept.int()}, place)


def whole_model(source: Path, target: Path) -> None:
    """The slim folder `source` as a folder that diffusers loads."""
    for path in sorted(source.rglob("*.*")):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.name != "model.safetensors":
            shutil.copyfile(path, place)
            continue
        tensors = load_file(path)
        rows, ids = tensors.pop("rows"), tensors.pop("ids").long()
        weight = torch.zeros((49408, rows.shape[1]), dtype=rows.dtype)
        weight[ids] = rows
        tensors[f"embeddings.{EMBEDDING}"] = weight
        # The spelling with `text_model.` is read by every transformers, before and after 5.6.
        written = ("text_model.", "text_projection")
        named = {key if key.startswith(written) else f"text_model.{key}": value for key, value in tensors.items()}
        save_file(named, place, {"format": "pt"})
    for folder in sorted(target.glob("tokenizer*")):
        for name, text in clip_tokenizer_files().items():
            (folder / name).write_text(text, encoding="utf-8")


def slim_runs(source: Path, target: Path) -> None:
    """The final latents and pictures of every run."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.safetensors")):
        if not (target / path.name).exists():  # tests of masks and img2img read some runs whole
            tensors = load_file(path)
            save_file({name: tensors[name] for name in ("latents", "images")}, target / path.name)


def _controlnet_files(golden: Path, name: str) -> tuple[Path, Path]:
    """A control network's weights, and those of the UNet that it is a copy of."""
    file = "diffusion_pytorch_model.safetensors"
    return golden / "controlnet" / "models" / name / file, golden / CONTROLNETS[name] / "unet" / file


def whole_controlnet(kept: Path, place: Path, name: str) -> None:
    """The control network `name` in `place`, with the tensors that it shares with its model's UNet."""
    (own, _), (whole, unet) = _controlnet_files(kept, name), _controlnet_files(place, name)
    tensors, shared = load_file(own), load_file(unet)
    names = json.loads((kept / "controlnet" / "shared.json").read_text(encoding="utf-8"))[name]
    whole.unlink(missing_ok=True)
    save_file({**tensors, **{key: shared[key].float() for key in names}}, whole, {"format": "pt"})


def slim_control(full: Path, target: Path) -> None:
    """ControlNet: the tables, the networks without what they share with their UNet, and the runs with those."""
    source, shared = full / "controlnet", {}
    for name in CONTROLNETS:
        own, unet = (load_file(path) for path in _controlnet_files(full, name))
        shared[name] = sorted(key for key in own if key in unet and torch.equal(own[key], unet[key]))
        place = _controlnet_files(target.parent, name)[0]
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / "models" / name / "config.json", place.parent / "config.json")
        save_file({key: value for key, value in own.items() if key not in shared[name]}, place)
    (target / "shared.json").write_text(json.dumps(shared, indent=0) + "\n", encoding="utf-8")
    for name in ("resize.json", "resize.safetensors", "infotext.json"):
        shutil.copyfile(source / name, target / name)
    table = json.loads((source / "runs.json").read_text(encoding="utf-8"))
    table["runs"] = [run for run in table["runs"] if run["model"] in MODELS]
    for call in (call for run in table["runs"] for call in run["calls"]):
        for key in ("t", "batch", "tokens", "latent"):
            del call[key]
    (target / "runs.json").write_text(json.dumps(table) + "\n", encoding="utf-8")
    text = json.dumps(table)
    pictures = load_file(source / "pictures.safetensors")
    save_file(
        {name: value for name, value in pictures.items() if f'"{name}"' in text}, target / "pictures.safetensors"
    )
    (target / "runs").mkdir(exist_ok=True)
    for run in table["runs"]:
        tensors = load_file(source / "runs" / f"{run['name']}.safetensors")
        if run["name"] not in CONTROL_WHOLE_RUNS:
            kept = ("latents", "images") if run["kind"] == "img2img" else ("latents",)
            tensors = {name: tensors[name] for name in kept}
        save_file(tensors, target / "runs" / f"{run['name']}.safetensors")


def slim_detailer(source: Path, target: Path) -> None:
    """Detailer, soft inpainting and scripts: the tables, and of the runs in DETAILER_RUNS what the tests read."""
    for name in (
        "mask_cases.json",
        "mask_cases.safetensors",
        "text_cases.json",
        "soft_inpainting.json",
        "scripts.json",
    ):
        shutil.copyfile(source / name, target / name)
    runs = json.loads((source / "adetailer.json").read_text(encoding="utf-8"))["runs"]
    kept = [run for run in runs if run["name"] in DETAILER_RUNS["adetailer"]]
    for run in kept:
        run["calls"] = [{key: call[key] for key in ("image_index", "tab")} for call in run["calls"]]
    (target / "adetailer.json").write_text(json.dumps({"runs": kept}, indent=1) + "\n", encoding="utf-8")
    for kind, names in DETAILER_RUNS.items():
        (target / kind).mkdir(exist_ok=True)
        for name in names:
            tensors = load_file(source / kind / f"{name}.safetensors")
            if kind == "adetailer":
                given = [found["masks"] for run in kept if run["name"] == name for found in run["detections"]]
                tensors = {k: v for k, v in tensors.items() if re.match(r"(in_)?(image|mask)\b", k) or k in given}
            save_file(tensors, target / kind / f"{name}.safetensors")


def slim_embeddings(source: Path, target: Path) -> None:
    """Every third row of the recorded encodings, with the tensors it names."""
    for path in sorted(source.glob("*embeddings_*.jsonl")) + [source / "pad_conds.jsonl"]:
        lines = path.read_text(encoding="utf-8").splitlines()[::3]
        tensors = load_file(path.with_suffix(".safetensors"))
        named = {name for name in tensors if any(f'"{name}"' in line for line in lines)}
        if "recipe" not in path.name:
            (target / path.name).write_text("\n".join(lines) + "\n", encoding="utf-8")
            save_file(
                {name: tensors[name] for name in sorted(named)}, (target / path.name).with_suffix(".safetensors")
            )


def used_ids(full: Path) -> torch.Tensor:
    """Token ids of every word in the recordings' texts and in the tests, and the common ones."""
    texts = [*full.glob("prompt/*.jsonl"), *full.glob("sampling*/e2e*.json"), full / "controlnet" / "runs.json"]
    texts += HERE.parent.glob("*.py")
    texts += [full / "detailer" / f"{kind}.json" for kind in DETAILER_RUNS]
    words = {word for path in texts for word in re.findall(r"[^\W\d_]+", path.read_text(encoding="utf-8"))}
    tokenizer = FragmentTokenizer(CLIPTokenizer.from_pretrained(full / MODELS[0] / "tokenizer"))
    ids = set(range(COMMON)) | {49406, 49407}
    return torch.tensor(sorted(ids.union(*(tokenizer(word) for word in words))))


if __name__ == "__main__":
    full = Path(sys.argv[1])
    for model in MODELS:
        shutil.rmtree(HERE / model, ignore_errors=True)
        slim_model(full / model, HERE / model, used_ids(full))
    slim_embeddings(full / "prompt", HERE / "prompt")
    shutil.copyfile(full / "prompt" / "recipes.json", HERE / "prompt" / "recipes.json")
    for folder in ("sampling", "sampling_xl"):
        slim_runs(full / folder / "e2e", HERE / folder / "e2e")
        for path in (full / folder).glob("e2e*.json"):
            shutil.copyfile(path, HERE / folder / path.name)
    slim_control(full, HERE / "controlnet")
    slim_detailer(full / "detailer", HERE / "detailer")
