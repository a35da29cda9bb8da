"""Networks, embeddings, faces and infotexts called for by name, through the whole pipeline."""

import copy
import gc
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from tiny_models import pipeline_around, pipeline_with_copies
from webui_diffusers.loaders import NetworkError
from webui_diffusers.pipelines import MultiLoraPipeline, WebUITxt2ImgPipeline, call_arguments, parse_infotext


CALL = {"seed": 3, "sampler": "Euler a", "num_inference_steps": 2, "output_type": "latent"}


@pytest.fixture
def pipe(golden: Path) -> WebUITxt2ImgPipeline:
    pipe = pipeline_with_copies(WebUITxt2ImgPipeline, "tiny-sd")
    pipe.add_lora(golden / "lora" / "fp16_lora.safetensors", "ink")
    pipe.add_lora(golden / "lora" / "loha.safetensors", "moss")
    return pipe


def weights(pipe: WebUITxt2ImgPipeline) -> list[torch.Tensor]:
    return [p.clone() for model in (pipe.unet, pipe.text_encoder) for p in model.parameters()]


def same(before: list[torch.Tensor], pipe: WebUITxt2ImgPipeline) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, weights(pipe), strict=True))


def test_a_tag_and_the_argument_say_the_same(pipe):
    by_tag = pipe("a red circle<lora:ink:0.8:0.5>", **CALL).images
    by_argument = pipe("a red circle", loras=[("ink", 0.8, 0.5)], **CALL).images
    assert np.array_equal(by_tag, by_argument)
    assert not np.allclose(by_tag, pipe("a red circle", **CALL).images, atol=1e-2)
    assert not np.allclose(by_tag, pipe("a red circle<lora:ink:0.8>", **CALL).images, atol=1e-3)


def test_weights_come_back_to_the_last_bit(pipe):
    before = weights(pipe)
    for backend in ("webui", "reference", "peft"):
        pipe("a <lora:ink:0.8><lora:moss:0.5>", lora_backend=backend, **CALL)
        assert same(before, pipe), backend


def test_weights_come_back_after_an_error_inside_the_drawing(pipe):
    before = weights(pipe)

    def fail(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe("a <lora:ink:0.8>", callback_on_step_end=fail, **CALL)
    assert same(before, pipe)


def test_adapters_draw_what_merging_draws(pipe):
    merged = pipe("a red circle<lora:ink:0.8>", lora_backend="reference", **CALL).images
    adapted = pipe("a red circle<lora:ink:0.8>", lora_backend="peft", **CALL).images
    assert (merged - adapted).abs().max() < 1e-3


def test_the_second_pass_has_networks_of_its_own(pipe):
    hires = {"hires_scale": 1.5, "hires_strength": 0.6}
    both = pipe("a red circle<lora:ink:1>", hires_prompt="a red circle<lora:ink:1>", **hires, **CALL).images
    inherited = pipe("a red circle<lora:ink:1>", **hires, **CALL).images
    other = pipe("a red circle<lora:ink:1>", hires_prompt="a red circle", **hires, **CALL).images
    assert np.array_equal(both, inherited) and not np.allclose(both, other, atol=1e-3)


def test_only_the_first_prompt_of_a_batch_chooses_networks(pipe):
    tagged = pipe(["a red circle<lora:ink:1>", "a blue square"], **CALL).images
    second = pipe(["a red circle", "a blue square<lora:ink:1>"], **CALL).images
    assert np.array_equal(second, pipe(["a red circle", "a blue square"], **CALL).images)
    assert not np.allclose(tagged[1], second[1], atol=1e-3)


def test_conditioning_is_never_that_of_other_weights(pipe):
    plain = pipe("a red circle", **CALL).images
    pipe("a red circle<lora:ink:1:0>", **CALL)
    assert np.array_equal(pipe("a red circle", **CALL).images, plain)
    pipe.text_encoder.get_input_embeddings().weight.data.mul_(1.5)  # leaves no trace in the version counter
    assert not np.allclose(pipe("a red circle", **CALL).images, plain, atol=1e-3)


def test_the_report_says_what_was_applied(pipe):
    pipe("a <lora:ink:1>", **CALL)
    assert "fp16_lora" in pipe.network_report() and "applied" in pipe.network_report()
    pipe("a", **CALL)
    assert "No networks" in pipe.network_report()


def test_a_path_in_a_tag_is_only_a_name(pipe, golden):
    with pytest.raises(NetworkError, match="never paths"):
        pipe(f"a <lora:{golden / 'lora' / 'kohya_lora.safetensors'}:1>", **CALL)


def test_embeddings_are_read_by_name_and_hashed(pipe, golden):
    plain = pipe("a red circle, zorbstyle", **CALL).images
    pipe.add_embedding(golden / "prompt" / "ti" / "zorbstyle.pt")
    output = pipe("a red circle, zorbstyle", **CALL)
    assert not np.allclose(output.images, plain, atol=1e-3)
    assert "TI hashes" in output.infotexts[0]


def test_an_infotext_draws_its_picture_again(pipe):
    first = pipe("(a red circle:1.2)<lora:ink:0.7>", negative_prompt="dark", hires_scale=1.5, **CALL)
    given = call_arguments(parse_infotext(first.infotexts[0]))
    again = pipe(**given, output_type="latent")
    assert np.array_equal(first.images, again.images) and again.infotexts == first.infotexts


class PaintsFaces(ModelMixin, ConfigMixin):
    """A face restorer that paints what it is given."""

    def __init__(self):
        super().__init__()
        self.color = torch.nn.Parameter(torch.tensor([0.9, -0.9, -0.9]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x) + self.color[None, :, None, None]


class FindsOne(ModelMixin, ConfigMixin):
    """A detector with one face in the middle of any picture; it is shown an enlarged one."""

    def __init__(self):
        super().__init__()
        self.score = torch.nn.Parameter(torch.ones(1))

    def forward(self, picture: np.ndarray) -> np.ndarray:
        points = np.array([[24, 26], [40, 26], [32, 34], [26, 44], [38, 44]], dtype=np.float32)
        return np.array([[16, 12, 48, 56, 1.0, *points.flatten()]], dtype=np.float32) * (len(picture) / 64)


def test_faces_are_restored_in_the_finished_picture(pipe):
    plain = pipe("a red circle", **{**CALL, "output_type": "np"}).images
    pipe.face_restorer, pipe.face_detector = PaintsFaces(), FindsOne()
    output = pipe("a red circle", restore_faces="CodeFormer", **{**CALL, "output_type": "np"})
    assert not np.allclose(output.images[0, 30:36, 30:36], plain[0, 30:36, 30:36], atol=0.05)
    assert "Face restoration: CodeFormer" in output.infotexts[0]


def steps_of(pipe, prompt, **more):
    """The latents after every step."""
    seen = []

    def note(pipe, i, t, tensors):
        seen.append(tensors["latents"].clone())
        return {}

    pipe(prompt, callback_on_step_end=note, **{**CALL, "num_inference_steps": 3, **more})
    return seen


@pytest.mark.parametrize("backend", ["webui", "peft"])
def test_a_network_is_on_in_the_steps_that_its_tag_names(pipe, backend):
    before = weights(pipe)
    plain, whole = (steps_of(pipe, f"a circle{tag}", lora_backend=backend) for tag in ("", "<lora:ink:0:1>"))
    late, early, never = (
        steps_of(pipe, f"a circle<lora:ink:0:1:{steps}>", lora_backend=backend)
        for steps in ("start=2", "stop=2", "stop=0")
    )
    for same_as, got, count in ((plain, late, 2), (whole, early, 2), (plain, never, 3)):
        assert all(torch.equal(a, b) for a, b in zip(same_as[:count], got[:count]))
    for other, got in ((plain, late), (whole, late), (plain, early), (whole, early)):
        assert (other[-1] - got[-1]).abs().max() > 1e-3
    assert same(before, pipe)


def test_block_strengths_in_a_tag_are_those_of_the_argument(pipe):
    blocks = ",".join(["0", "0.5", *["0"] * 15])
    by_tag = pipe(f"a circle<lora:ink:1:lbw={blocks}>", **CALL).images
    by_argument = pipe("a circle", loras=[("ink", 1, 1, None, blocks)], **CALL).images
    assert np.array_equal(by_tag, by_argument)
    for others in ("<lora:ink:1>", ""):
        assert not np.allclose(by_tag, pipe(f"a circle{others}", **CALL).images, atol=1e-3)


def test_diffusers_own_loop_knows_no_steps_of_networks(golden):
    pipe = pipeline_around(MultiLoraPipeline, "tiny-sd")
    pipe.add_lora(golden / "lora" / "fp16_lora.safetensors", "ink")
    with pytest.raises(ValueError, match="start=1"):
        pipe("a circle<lora:ink:1:start=1>", num_inference_steps=1)


def test_the_scale_of_attention_arguments_reaches_the_text_encoders_adapters(pipe, golden):
    pipe.load_lora_weights(golden / "lora" / "fp16_lora.safetensors", adapter_name="ink")
    whole, named = (
        pipe("a circle", **call).images for call in (CALL, {**CALL, "cross_attention_kwargs": {"scale": 1}})
    )
    half = pipe("a circle", cross_attention_kwargs={"scale": 0.4}, **CALL).images
    pipe.set_adapters("ink", 0.4)
    assert np.array_equal(whole, named)
    np.testing.assert_allclose(half, pipe("a circle", **CALL).images, atol=1e-5)
    assert not np.allclose(half, whole, atol=1e-2)


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_a_pipeline_is_copied_after_a_network_was_used(pipe, copy_of):
    wanted = pipe("a circle<lora:ink:0.8>", **CALL).images
    assert np.array_equal(copy_of(pipe)("a circle<lora:ink:0.8>", **CALL).images, wanted)


# --- networks that stay on between calls


def writes(pipe):
    """How often the weights were written."""
    return sum(p._version for model in (pipe.unet, pipe.text_encoder) for p in model.parameters())


def test_kept_networks_are_written_once_and_draw_what_they_drew(pipe):
    before, prompt = weights(pipe), "a circle<lora:ink:0.8>"
    wanted, plain, moss = (pipe(text, **CALL).images for text in (prompt, "a circle", "a circle<lora:moss>"))
    pipe.keep_networks = True
    first = pipe(prompt, **CALL).images
    count = writes(pipe)
    again = pipe(prompt, **CALL).images
    assert writes(pipe) == count
    assert not same(before, pipe)
    assert np.array_equal(first, wanted) and np.array_equal(again, wanted)
    assert np.array_equal(pipe("a circle<lora:moss>", **CALL).images, moss)
    assert np.array_equal(pipe("a circle", **CALL).images, plain)
    pipe(prompt, **CALL)
    pipe.unload_networks()
    assert same(before, pipe)


def test_no_other_call_draws_with_networks_that_one_pipeline_keeps(pipe, tmp_path):
    other = WebUITxt2ImgPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    plain, before = other("a circle", **CALL).images, weights(pipe)
    own = {"num_inference_steps": 2, "output_type": "latent"}
    stock = pipe("a circle", generator=torch.Generator().manual_seed(1), **own).images
    adapted = pipe("a circle<lora:ink:0.8>", lora_backend="peft", **CALL).images
    pipe.keep_networks = True

    def keep():
        pipe("a circle<lora:ink:0.8>", **CALL)
        assert not same(before, pipe)

    keep()
    assert np.array_equal(other("a circle", **CALL).images, plain)
    keep()
    assert np.array_equal(pipe("a circle", generator=torch.Generator().manual_seed(1), **own).images, stock)
    keep()
    assert np.array_equal(pipe("a circle<lora:ink:0.8>", lora_backend="peft", **CALL).images, adapted)
    keep()
    with pytest.raises(NetworkError, match="unload_networks"):
        copy.deepcopy(pipe)
    pipe.save_pretrained(tmp_path / "saved")
    assert same(before, WebUITxt2ImgPipeline.from_pretrained(tmp_path / "saved", dtype=torch.float32))
    assert same(before, pipe)


def test_an_error_takes_kept_networks_out(pipe):
    before = weights(pipe)
    pipe.keep_networks = True

    def fail(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe("a <lora:ink:0.8>", callback_on_step_end=fail, **CALL)
    assert same(before, pipe)
    keeper = WebUITxt2ImgPipeline.from_pipe(pipe)
    keeper.keep_networks = True
    keeper("a circle", loras=[(pipe.networks.network("ink"), 0.8)], **CALL)
    assert not same(before, pipe)
    del keeper
    gc.collect()
    assert same(before, pipe)
