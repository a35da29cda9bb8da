"""MultiLora pipelines: diffusers' own pictures, with networks by name, and one mix for every image of a batch."""

from functools import cache

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from recordings import GOLDEN
from safetensors.torch import save_file
from tiny_models import pipeline_with_copies
from webui_diffusers.loaders import read_network
from webui_diffusers.pipelines.loras import LoraUse, mixed_call, networks_on
from webui_diffusers.pipelines.multi_lora import MultiLoraPipeline
from webui_diffusers.pipelines.multi_lora_xl import MultiLoraXLPipeline


LORA = GOLDEN / "lora"
PROMPTS = ["a red circle", "a blue square", "a green star"]
STEPS = 2

pytestmark = [
    pytest.mark.goldens,
    pytest.mark.skipif(not (GOLDEN / "tiny-sd").is_dir(), reason="needs the tiny model beside the recordings"),
]


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def euler(kind=MultiLoraPipeline):
    """A pipeline with models of its own that finds the recordings' networks."""
    pipe = pipeline_with_copies(kind, "tiny-sd")
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.lora_folder = LORA
    return pipe


@cache
def shared():
    """A MultiLoraPipeline, diffusers' own over the same models, and their state."""
    pipe = euler()
    own = quiet(StableDiffusionPipeline(**pipe.components, requires_safety_checker=False))
    return pipe, own, state_of(pipe)


@pytest.fixture
def pair():
    return shared()


@pytest.fixture
def pipe(pair):
    yield pair[0]
    assert_same(state_of(pair[0]), pair[2])


def state_of(pipe):
    found = {}
    for component in ("unet", "text_encoder", "text_encoder_2"):
        model = getattr(pipe, component, None)
        if model is not None:
            found |= {(component, name): value.detach().clone() for name, value in model.named_parameters()}
            found |= {(component, name, "trained"): value.requires_grad for name, value in model.named_parameters()}
            found[component] = ([type(module) for module in model.modules()], sorted(model.__dict__))
    return found


def assert_same(after, before):
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value) if isinstance(value, torch.Tensor) else after[name] == value, name


def seeds(count):
    return [torch.Generator().manual_seed(number) for number in range(count)]


def pictures(pipe, prompt=PROMPTS, **arguments):
    arguments = {"generator": seeds(3), "num_inference_steps": STEPS, "output_type": "np", **arguments}
    return pipe(prompt, **arguments).images


def assert_near(got, wanted, atol=2e-5):
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= atol


# --- parity


def test_without_networks_the_picture_is_diffusers_own(pair, pipe):
    assert np.array_equal(pictures(pipe), pictures(pair[1]))
    assert pipe.network_report() == "No networks were in use."


MIXES = [{"fp16_lora": 1.5}, None, [("loha", 2.0), ("alpha_ne_rank", 0.5, 0.9)]]


@cache
def plain():
    """The batch without networks, by diffusers' pipeline."""
    return pictures(shared()[1])


@cache
def batch_of_mixes(backend="peft", guidance_scale=7.5):
    """Its pictures, and how many rows the UNet was given at each of its runs."""
    rows, pipe = [], shared()[0]
    hook = pipe.unet.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    try:
        return pictures(pipe, loras=MIXES, lora_backend=backend, guidance_scale=guidance_scale), rows
    finally:
        hook.remove()


@cache
def alone_with_its_mix(i, backend="peft"):
    return pictures(shared()[0], PROMPTS[i], generator=seeds(3)[i], loras=MIXES[i], lora_backend=backend)


@pytest.mark.parametrize("backend", ["peft", "reference"])
def test_a_batch_of_mixes_is_each_image_alone_with_its_mix(pipe, backend):
    batch, _ = batch_of_mixes(backend)
    for i, mix in enumerate(MIXES):
        for other in ("peft", "reference"):
            assert_near(batch[i : i + 1], alone_with_its_mix(i, other))
        assert (np.abs(batch[i] - plain()[i]).max() > 0.01) == bool(mix)


def test_mixes_of_adapters_take_one_pass_of_the_unet_a_step(pipe):
    assert batch_of_mixes()[1] == [6] * STEPS
    assert batch_of_mixes(guidance_scale=0.0)[1] == [3] * STEPS
    assert batch_of_mixes("reference")[1] == [2] * (3 * STEPS)


def test_tags_hold_for_the_images_of_their_prompt(pipe):
    tagged = [
        "a red circle<lora:fp16_lora:1.5>",
        "a blue square",
        "a <lora:loha:2>green star<lora:alpha_ne_rank:.5:.9>",
    ]
    assert np.array_equal(pictures(pipe, tagged), batch_of_mixes()[0])
    assert [line.split(":")[0] for line in pipe.network_report().splitlines()] == [
        "fp16_lora",
        "loha",
        "alpha_ne_rank",
    ]


def test_images_of_one_prompt_stand_together(pipe):
    mix = {"alpha_ne_rank": 2.0}
    each = [mix, mix, None, None]
    wanted = pictures(pipe, [text for text in PROMPTS[:2] for _ in "ab"], generator=seeds(4), loras=each)
    given = {"negative_prompt": ["", ""], "num_images_per_prompt": 2}
    for mixes in ([mix, None], each):  # one for each prompt, one for each image
        assert_near(pictures(pipe, PROMPTS[:2], **given, generator=seeds(4), loras=mixes), wanted)
    assert np.abs(wanted[:2] - pictures(pipe, PROMPTS[:1] * 2, generator=seeds(2))).max() > 0.01


def test_one_prompt_with_a_mix_for_each_of_its_images(pipe):
    got = pictures(pipe, PROMPTS[0], negative_prompt="blue", num_images_per_prompt=3, loras=MIXES)
    assert_near(got, pictures(pipe, PROMPTS[:1] * 3, negative_prompt=["blue"] * 3, loras=MIXES))


def test_embeddings_and_latents_go_with_their_images(pipe):
    with torch.no_grad():
        rows = [pipe.encode_prompt(text, "cpu", 1, True) for text in PROMPTS]
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    given = {
        "prompt_embeds": torch.cat([r[0] for r in rows]),
        "negative_prompt_embeds": torch.cat([r[1] for r in rows]),
    }
    given["latents"] = latents
    adapted, merged = (pictures(pipe, None, loras=MIXES, lora_backend=way, **given) for way in ("peft", "reference"))
    for i, mix in enumerate(MIXES):
        one = {key: value[i : i + 1] for key, value in given.items()}
        alone = pictures(pipe, None, generator=None, loras=mix, **one)
        assert_near(adapted[i : i + 1], alone)
        assert_near(merged[i : i + 1], alone)


def test_groups_share_the_noise_of_the_batch(pipe):
    dora = [{"dora_out": 1.0}, None, {"dora_out": 1.0}]  # PEFT's per-sample adapters know no DoRA
    got = pictures(pipe, loras=dora, generator=torch.Generator().manual_seed(5))
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    for i, mix in enumerate(dora):
        assert_near(got[i : i + 1], pictures(pipe, PROMPTS[i], generator=None, latents=noise[i : i + 1], loras=mix))


@pytest.mark.parametrize("kind", ["pil", "pt", "latent"])
def test_groups_come_back_in_order_in_every_kind_of_output(pipe, kind):
    mixes = [{"norm": 1.0}, None, {"norm": 1.0}]
    arguments = {"generator": seeds(3), "num_inference_steps": 1, "output_type": kind, "loras": mixes}
    images, flags = pipe(PROMPTS, return_dict=False, lora_backend="reference", **arguments)
    assert len(images) == 3 and flags is None
    middle = pipe(PROMPTS[1], num_inference_steps=1, output_type=kind, generator=seeds(3)[1]).images[0]
    as_array = [np.asarray(image, dtype=np.float32) for image in (images[1], middle)]
    assert np.abs(as_array[0] - as_array[1]).max() <= (1 if kind == "pil" else 2e-5)


def test_block_strengths_and_paths(pipe):
    entry = (LORA / "fp16_lora.safetensors", 0.5, 1.0, {"M00": 0.0, "OUT03": 2.0})
    merged = pictures(pipe, loras=[entry], lora_backend="reference")
    assert_near(pictures(pipe, loras=[entry]), merged)
    assert np.abs(merged - pictures(pipe, loras=[entry[:3]], lora_backend="reference")).max() > 1e-3


def test_the_webuis_rules_are_the_webuis(pipe):
    plain = pictures(pipe, loras={"dora_out": 0.5}, lora_backend="reference")
    assert np.abs(pictures(pipe, loras={"dora_out": 0.5}, lora_backend="webui") - plain).max() > 1e-3


def test_sdxl_does_the_same():
    folder = GOLDEN / "tiny-sdxl-e2e"
    if not folder.is_dir() or not (LORA / "xl_kohya.safetensors").is_file():
        pytest.skip("needs the tiny SDXL")
    pipe = pipeline_with_copies(MultiLoraXLPipeline, folder.name)
    own = quiet(StableDiffusionXLPipeline(**pipe.components))
    assert np.array_equal(pictures(pipe), pictures(own))
    before = state_of(pipe)  # after a first call: text encoders put their own hooks up then
    pipe.add_lora(LORA / "xl_kohya.safetensors", "xl")
    mixes = [None, {"xl": 1.0}, [("xl", 0.2, -0.8)]]
    batch = pictures(pipe, loras=mixes)
    assert np.abs(batch[1] - batch[2]).max() > 1e-3
    for i, mix in enumerate(mixes):
        assert_near(batch[i : i + 1], pictures(pipe, PROMPTS[i], generator=seeds(3)[i], loras=mix))
    tagged = pictures(pipe, PROMPTS[1], prompt_2="a house <lora:xl:1>", generator=seeds(1))
    assert_near(tagged, pictures(pipe, PROMPTS[1], prompt_2="a house ", generator=seeds(1), loras={"xl": 1.0}))
    assert_same(state_of(pipe), before)


# --- state


def test_an_interrupt_leaves_all_as_it_was(pipe):
    def stop(pipe, step, timestep, tensors):
        raise KeyboardInterrupt

    for mixes, backend in ((MIXES, "peft"), ({"fp16_lora": 1.0}, "peft"), (MIXES, "webui")):
        with pytest.raises(KeyboardInterrupt):
            pictures(pipe, loras=mixes, lora_backend=backend, callback_on_step_end=stop)


def test_loaded_adapters_act_beside_the_calls_networks_and_stay(pair):
    pipe = euler()
    pipe.load_lora_weights(LORA, weight_name="fp16_lora.safetensors", adapter_name="mine")
    pipe.set_adapters("mine", 0.5)
    before = state_of(pipe)
    assert_near(pictures(pipe), pictures(pair[0], loras={"fp16_lora": 0.5}))
    mixes = [{"loha": 2.0}, None]
    wanted = [[("fp16_lora", 0.5), *(mix or {}).items()] for mix in mixes]
    two = {"prompt": PROMPTS[:2], "generator": seeds(2)}
    got = pictures(pipe, loras=mixes, **two)
    two["generator"] = seeds(2)
    assert_near(got, pictures(pair[0], loras=wanted, **two))
    assert_same(state_of(pipe), before)
    assert pipe.get_active_adapters() == ["mine"]
    assert {
        m.scaling["mine"] / m.lora_alpha["mine"] * m.r["mine"]
        for m in pipe.unet.modules()
        if isinstance(m, BaseTunerLayer)
    } == {0.5}
    assert "fp16_lora: 29 layers applied" not in pipe.network_report()
    pipe.unload_lora_weights()
    assert_near(pictures(pipe), plain(), atol=0)


def test_the_scale_of_cross_attention_kwargs_counts_for_networks_of_the_call(pipe):
    one = {"prompt": PROMPTS[0], "loras": {"fp16_lora": 1.5}, "cross_attention_kwargs": {"scale": 0.5}}
    wanted = pictures(pipe, PROMPTS[0], generator=seeds(1), loras={"fp16_lora": 0.75})
    assert_near(pictures(pipe, **one, generator=seeds(1)), wanted)
    mixed = pictures(pipe, loras=MIXES, cross_attention_kwargs={"scale": 0.5})
    assert_near(mixed[:1], wanted)


def test_adapted_networks_switch_and_go(pair, pipe):
    a, b = (read_network(LORA / f"{name}.safetensors") for name in ("fp16_lora", "lokr_full"))
    with networks_on(pipe, "peft") as networks:
        assert networks.switch([]) == []
        reports = networks.switch([LoraUse("a", (a, 1.0, 1.0))])
        assert [report.name for report in reports] == ["fp16_lora"]
        first = pictures(pair[1])
        assert [
            report.name for report in networks.switch([LoraUse("b", (b, 1.0, 1.0)), LoraUse("a", (a, 0.1, 0.1))])
        ] == [
            "lokr_full",
            "fp16_lora",
        ]
        networks.switch([])
        assert_near(pictures(pair[1]), plain(), atol=0)
    assert_near(first, pictures(pipe, loras={"fp16_lora": 1.0}))


def test_layerwise_offloading_is_put_back(pair):
    """accelerate's hooks with the CPU for a device: weights lie elsewhere, and come for one layer's forward."""

    class Offloaded(MultiLoraPipeline):
        def enable_sequential_cpu_offload(self):
            for model in (self.unet, self.text_encoder, self.vae):
                cpu_offload(model, torch.device("cpu"))

    pipe = euler(Offloaded)
    pipe.enable_sequential_cpu_offload()
    assert pipe.unet.conv_in.weight.device.type == "meta"
    short = {"num_inference_steps": 1, "generator": seeds(1), "prompt": PROMPTS[:1]}
    wanted = pictures(pair[0], loras={"loha": 1.0}, **short)
    for _ in range(2):
        short["generator"] = seeds(1)
        got = pictures(pipe, loras={"loha": 1.0}, **short)
        assert pipe.unet.conv_in.weight.device.type == "meta"
        assert_near(got, wanted)
    short["generator"] = seeds(1)
    pipe.load_lora_weights(LORA / "loha.safetensors", "mine")
    assert_near(pictures(pipe, **short), got)


def test_embeddings_inside_a_network_are_spoken_of(pipe, caplog):
    if not (LORA / "bundle_emb.safetensors").is_file():
        pytest.skip("needs the recording bundle_emb")
    pictures(pipe, loras={"bundle_emb": 1.0})
    assert "brings the embeddings" in caplog.text


# --- errors


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"loras": {"fp16_loro": 1.0}}, "No network is called `fp16_loro`. Perhaps `fp16_lora`"),
        ({"loras": [None, {"loha": 1.0}]}, "lists 2 mixes for 3 images of 3 prompts"),
        ({"loras": ["fp16_lora"]}, "Each must be \\(name, weight\\)"),
        ({"loras": {"fp16_lora": float("nan")}}, "finite number"),
        ({"loras": {"ia3": 1.0}}, "cannot be a PEFT adapter"),
        ({"loras": [None, {"diag_oft": 1.0}, None]}, "cannot be a PEFT adapter"),
        ({"loras": {"bad_sdxl_on_sd1": 1.0}}, "another base model"),
        ({"lora_backend": "pefd"}, "Did you mean 'peft'"),
        ({"lora": {"loha": 1.0}}, "Did you mean 'loras'"),
        ({"prompt": ["<lora:loha:x>"] * 3}, "is not a number"),
    ],
)
def test_bad_calls_are_refused_and_change_nothing(pipe, arguments, says):
    with pytest.raises(ValueError, match=says):
        pictures(pipe, **arguments)


def test_a_prompt_that_is_no_mix_is_read_as_one_mix(pipe, tmp_path):
    uses = mixed_call(pipe.networks, {"prompt": PROMPTS}, [["loha", 0.5], ("fp16_lora", 1)]).mixes
    assert [[lora.network.name for lora in mix] for mix in uses] == [["loha", "fp16_lora"]] * 3
    assert mixed_call(pipe.networks, {"prompt": PROMPTS}, []).mixes == [[]] * 3
    nested = mixed_call(pipe.networks, {"prompt": PROMPTS}, [[["loha", 0.5]], [], None]).mixes
    assert [len(mix) for mix in nested] == [1, 0, 0]


def test_what_is_no_network_gets_diffusers_own_word(pipe, tmp_path):
    save_file({"weird.weight": torch.ones(2)}, tmp_path / "weird.safetensors")
    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        pipe.load_lora_weights(tmp_path, weight_name="weird.safetensors")


def test_ancestral_schedulers_draw_their_noise_by_image(pair, pipe):
    before, pipe.scheduler = pipe.scheduler, EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    try:
        batch = pictures(pipe, loras=MIXES)
        assert_near(batch[2:], pictures(pipe, PROMPTS[2], generator=seeds(3)[2], loras=MIXES[2]))
    finally:
        pipe.scheduler = before
