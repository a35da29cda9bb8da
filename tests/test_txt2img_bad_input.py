"""What a pipeline says to bad input of every kind, and that it draws the same picture after it as before."""

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from recordings import GOLDEN
from safetensors.torch import save_file
from tiny_models import pipeline_with_copies
from webui_diffusers.loaders import NetworkError
from webui_diffusers.pipelines import WebUITxt2ImgPipeline


CALL = {"num_inference_steps": 2, "seed": 1, "sampler": "Euler", "output_type": "np"}
SMALL = {**CALL, "num_inference_steps": 1, "width": 32, "height": 32}


@pytest.fixture(scope="module")
def shared() -> WebUITxt2ImgPipeline:
    return pipeline_with_copies(WebUITxt2ImgPipeline, "tiny-sd")


@pytest.fixture(scope="module")
def expected(shared: WebUITxt2ImgPipeline) -> np.ndarray:
    """What it draws before anything went wrong."""
    return shared("a (red:1.2) circle", **SMALL).images


@pytest.fixture
def pipe(shared: WebUITxt2ImgPipeline, expected: np.ndarray):
    """The pipeline, which must be as good after the test as before."""
    pipe = WebUITxt2ImgPipeline(**shared.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    yield pipe
    assert np.array_equal(pipe("a (red:1.2) circle", **SMALL).images, expected)


# ---- prompts

PROMPTS = {
    "empty": "",
    "blank": " \n\t ",
    "huge": "a very (large:1.1) prompt, " * 1500,
    "ten thousand tokens": "cat " * 10_000,
    "ten thousand openings": "(" * 10_000,
    "ten thousand closings": ")" * 10_000,
    "deep edits": "[" * 200 + "a" + ":b:0.5]" * 200,
    "unbalanced": "((a:1.2), [b:c:0.5, (d)], e]] {f",
    "escapes": "\\(a\\) \\[b\\] \\\\ \\",
    "control signs": "a\x00b\x01\u202e c\ufeff",
    "unpaired surrogate": "a \ud800 b",
    "signs beyond the first plane": "🦊" * 300,
    "weight of nothing": "(:1.5) (a:) (:)",
    "huge weight": "(a:1e30)",
    "half a tag": "<lora:x <lora",
    "AND alone": "AND",
    "BREAK alone": "BREAK BREAK BREAK",
    "alternation of nothing": "[|]",
    "edit at a negative step": "[a:b:-5] [c:d:1e9]",
}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
def test_any_text_is_a_prompt(pipe, prompt):
    images = pipe(prompt, negative_prompt=prompt[:2000], **{**CALL, "num_inference_steps": 1}).images
    assert images.shape == (1, 64, 64, 3)


BAD_CALLS = [
    ({"prompt": "(a:1.2.3)"}, "1.2.3"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": ["a", None]}, "prompt"),
    ({"prompt": []}, "empty"),
    ({"prompt": None}, "prompt"),
    ({"negative_prompt": ["x"], "prompt": ["a", "b"]}, "negative_prompt"),
    ({"width": 60, "sampler": None}, "multiples of 8"),
    ({"width": 0, "height": -8}, "pixels|multiples"),
    ({"num_inference_steps": -1}, "at least 1"),
    ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
    ({"prompt": "a <lora:nobody:1>"}, "nobody"),
    ({"prompt": "<lora:x <lora: :>"}, "not a number"),
    ({"loras": ["kohya"]}, "kohya"),
    ({"webui_options": {"no_such_option": 1}}, "no_such_option"),
    ({"hires_scale": 2, "hires_upscaler": "nothing.pth"}, "nothing"),
]


@pytest.mark.parametrize("arguments, told", BAD_CALLS, ids=range(len(BAD_CALLS)))
def test_a_bad_call_is_refused_before_any_work(pipe, arguments, told):
    ran = []
    handle = pipe.unet.register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(ValueError, match=told):
        pipe(**{"prompt": "a", **CALL, **arguments})
    handle.remove()
    assert not ran


# ---- embeddings


class Payload:
    """What unpickling must not run."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (os.system, (f"touch {self.trace}",))


@pytest.mark.parametrize("legacy", [False, True])
def test_an_embedding_that_would_run_code_is_refused_and_runs_nothing(pipe, tmp_path, legacy):
    trace, path = tmp_path / "ran", tmp_path / "evil.pt"
    content = {"string_to_param": {"*": torch.zeros(1, 32)}, "name": "evil", "extra": Payload(trace)}
    if legacy:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"evil\.pt"):
        pipe.add_embedding(path)
    assert not trace.exists() and not pipe.attached.embeddings


def test_a_network_or_checkpoint_that_would_run_code_is_refused_and_runs_nothing(pipe, tmp_path):
    trace = tmp_path / "ran"
    torch.save({"lora_unet_x.lora_up.weight": torch.zeros(1), "extra": Payload(trace)}, tmp_path / "evil.pt")
    torch.save({"state_dict": {"model.diffusion_model.x": Payload(trace)}}, tmp_path / "evil.ckpt")
    with pytest.raises(NetworkError, match=r"evil\.pt"):
        pipe("a", loras={str(tmp_path / "evil.pt"): 1.0}, **CALL)
    with pytest.raises(ValueError, match=r"evil\.ckpt"):
        WebUITxt2ImgPipeline.from_single_file(tmp_path / "evil.ckpt")
    assert not trace.exists()


def test_an_embedding_of_the_wrong_width_is_said_and_stays_text(pipe, tmp_path, caplog):
    save_file({"emb_params": torch.randn(2, 768)}, tmp_path / "wide.safetensors")
    pipe.add_embedding(tmp_path / "wide.safetensors")
    with caplog.at_level("WARNING", logger="webui_diffusers"):
        named = pipe("a wide circle, (red:1.1)", **CALL)
    told = [record.getMessage() for record in caplog.records]
    assert any("wide" in text and "768" in text and "32" in text for text in told), told
    del pipe.attached.embeddings["wide"]
    assert np.array_equal(named.images, pipe("a wide circle, (red:1.1)", **CALL).images)


EMBEDDINGS = {
    "empty.pt": b"",
    "text.pt": b"this is no embedding",
    "cut.safetensors": struct.pack("<Q", 500) + b'{"emb_params": {"dtype"',
    "huge-header.safetensors": struct.pack("<Q", 2**60) + b"{}",
}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_a_broken_embedding_is_refused_by_name(pipe, tmp_path, name):
    (tmp_path / name).write_bytes(EMBEDDINGS[name])
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        pipe.add_embedding(tmp_path / name)


def test_an_embedding_with_nan_is_refused(pipe, tmp_path):
    save_file({"emb_params": torch.full((2, 32), float("nan"))}, tmp_path / "nan.safetensors")
    with pytest.raises(ValueError, match="nan"):
        pipe.add_embedding(tmp_path / "nan.safetensors")
        pipe("a nan circle", **CALL)


# ---- networks

NETWORKS = sorted(path.name for path in (GOLDEN / "lora").glob("bad_*"))
DRAWN = "bad_unknown_keys.safetensors"  # has layers of this model, too: those are applied and the rest is told


@pytest.mark.parametrize("backend", ["webui", "reference"])
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != DRAWN])
def test_a_bad_network_is_refused_by_name(pipe, name, backend):
    before = [value.clone() for value in pipe.unet.parameters()]
    with pytest.raises(NetworkError, match=name.split(".")[0]):
        pipe("a (red:1.2) circle", loras={str(GOLDEN / "lora" / name): 1.0}, lora_backend=backend, **CALL)
    assert all(torch.equal(a, b) for a, b in zip(before, pipe.unet.parameters(), strict=True))


# ---- checkpoints and components


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused_by_name(pipe, tmp_path, ending, share):
    tensors = {f"model.diffusion_model.{key}": value for key, value in pipe.unet.state_dict().items()}
    path = tmp_path / f"cut{ending}"
    save_file(tensors, path) if ending == ".safetensors" else torch.save({"state_dict": tensors}, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ValueError, match=r"cut\."):
        WebUITxt2ImgPipeline.from_single_file(path)


def test_what_is_no_checkpoint_is_said(pipe, tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    for path in (
        tmp_path / "other.safetensors",
        tmp_path / "missing.safetensors",
        GOLDEN / "lora" / "loha.safetensors",
    ):
        with pytest.raises(ValueError, match=path.stem):
            WebUITxt2ImgPipeline.from_single_file(path)


@pytest.mark.parametrize("sampler", ["Euler", None, "DPM adaptive", "DDIM"])
def test_a_network_of_nan_says_so_and_draws_nothing(pipe, sampler):
    weight = pipe.unet.conv_out.weight
    before = weight.detach().clone()
    weight.data[0, 0] = float("nan")
    try:
        with pytest.raises(ValueError, match="NaN"):
            pipe("a (red:1.1) circle", **{**CALL, "sampler": sampler})
    finally:
        weight.data.copy_(before)


def test_a_vae_of_nan_says_so(pipe):
    weight = pipe.vae.decoder.conv_out.weight
    before = weight.detach().clone()
    weight.data[:] = float("nan")
    try:
        with pytest.raises(ValueError, match="VAE"):
            pipe("a (red:1.1) circle", **CALL)
        with pytest.raises(ValueError, match="VAE"):
            pipe("a (red:1.1) circle", hires_scale=1.5, hires_upscaler="Lanczos", **CALL)
    finally:
        weight.data.copy_(before)


@pytest.mark.parametrize(
    "given, said",
    [
        ({"steps": 3}, "here it is `num_inference_steps`"),
        ({"styles": ["film"]}, "`apply_styles` merges them"),
        ({"denoising_strength": 0.5}, "here it is `hires_strength`"),
        ({"enable_hr": True}, "`hires_scale` or `hires_size`"),
        ({"n_iter": 2}, "`num_images_per_prompt`"),
        ({"override_settings": {}}, "here it is `webui_options`"),
        ({"output_type": "jpg"}, "`output_type` must be one of pil, np, pt, latent; got 'jpg'"),
        ({"num_inference_steps": 2.5}, "`num_inference_steps` must be a whole number; got 2.5"),
        ({"num_images_per_prompt": "2"}, "`num_images_per_prompt` must be a whole number"),
        ({"clip_skip": 50}, "of which one must be read"),
        ({"clip_skip": -1}, "`clip_skip` must be 0 or more"),
        ({"width": 63.5}, "`width` must be a whole number; got 63.5"),
        ({"width": "64"}, "`width` must be a whole number; got '64'"),
        ({"seed": "x"}, "`seed` must be a whole number, or a list"),
        ({"seed": [1.5]}, "`seed` must be"),
        ({"guidance_scale": "7"}, "`guidance_scale` must be a finite number; got '7'"),
        ({"guidance_scale": float("nan")}, "`guidance_scale` must be a finite number"),
        ({"hires_size": (1, 2, 3)}, "`hires_size` must be (width, height)"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_told_before_any_work(shared, given: dict, said: str):
    """Whether by a name of the webui's API or with a value of another kind."""
    with pytest.raises(ValueError) as error:
        shared("a", **{"num_inference_steps": 1, "sampler": "Euler", **given})
    assert said in str(error.value)
