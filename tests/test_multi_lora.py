"""MultiLora pipelines: diffusers' own pictures, with networks by name, and one mix for every image of a batch."""

from copy import deepcopy

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


@pytest.fixture(scope="module")
def pair():
    """A MultiLoraPipeline and diffusers' own over the same models."""
    pipe = quiet(MultiLoraPipeline.from_pretrained(GOLDEN / "tiny-sd", dtype=torch.float32))
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.lora_folder = LORA
    own = quiet(StableDiffusionPipeline(**pipe.components, requires_safety_checker=False))
    return pipe, own, state_of(pipe)


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


MIXES = [{"kohya_lora": 1.5}, None, [("loha", 2.0), ("alpha_ne_rank", 0.5, 0.9)]]


@pytest.mark.parametrize("backend", ["peft", "reference"])
def test_a_batch_of_mixes_is_each_image_alone_with_its_mix(pair, pipe, backend):
    batch = pictures(pipe, loras=MIXES, lora_backend=backend)
    plain = pictures(pair[1])
    for i, mix in enumerate(MIXES):
        for other in ("peft", "reference"):
            alone = pictures(pipe, PROMPTS[i], generator=seeds(3)[i], loras=mix, lora_backend=other)
            assert_near(batch[i : i + 1], alone)
        assert (np.abs(batch[i] - plain[i]).max() > 0.01) == bool(mix)


def test_mixes_of_adapters_take_one_pass_of_the_unet_a_step(pipe):
    rows = []
    hook = pipe.unet.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    try:
        pictures(pipe, loras=MIXES)
        assert rows == [6] * STEPS
        rows.clear()
        pictures(pipe, loras=MIXES, guidance_scale=0.0)
        assert rows == [3] * STEPS
        rows.clear()
        pictures(pipe, loras=MIXES, lora_backend="reference")
        assert rows == [2] * (3 * STEPS)
    finally:
        hook.remove()


def test_tags_hold_for_the_images_of_their_prompt(pipe):
    tagged = [
        "a red circle<lora:kohya_lora:1.5>",
        "a blue square",
        "a <lora:loha:2>green star<lora:alpha_ne_rank:.5:.9>",
    ]
    assert np.array_equal(pictures(pipe, tagged), pictures(pipe, loras=MIXES))
    assert [line.split(":")[0] for line in pipe.network_report().splitlines()] == [
        "kohya_lora",
        "loha",
        "alpha_ne_rank",
    ]


@pytest.mark.parametrize("by", ["prompt", "image"])
def test_images_of_one_prompt_stand_together(pipe, by):
    mixes = [{"kohya_lora": 1.0}, None]
    wanted = pictures(
        pipe, [text for text in PROMPTS[:2] for _ in "ab"], generator=seeds(4), loras=[*mixes[:1] * 2, *mixes[1:] * 2]
    )
    got = pictures(
        pipe,
        PROMPTS[:2],
        negative_prompt=["", ""],
        num_images_per_prompt=2,
        generator=seeds(4),
        loras=mixes if by == "prompt" else [mixes[0], mixes[0], None, None],
    )
    assert_near(got, wanted)


def test_one_prompt_with_a_mix_for_each_of_its_images(pipe):
    got = pictures(pipe, PROMPTS[0], negative_prompt="blue", num_images_per_prompt=3, loras=MIXES)
    for i, mix in enumerate(MIXES):
        alone = pictures(pipe, PROMPTS[0], negative_prompt="blue", generator=seeds(3)[i], loras=mix)
        assert_near(got[i : i + 1], alone)


def test_embeddings_and_latents_go_with_their_images(pipe):
    with torch.no_grad():
        rows = [pipe.encode_prompt(text, "cpu", 1, True) for text in PROMPTS]
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    given = {
        "prompt_embeds": torch.cat([r[0] for r in rows]),
        "negative_prompt_embeds": torch.cat([r[1] for r in rows]),
    }
    for backend in ("peft", "reference"):
        got = pictures(pipe, None, loras=MIXES, latents=latents, lora_backend=backend, **given)
        for i, mix in enumerate(MIXES):
            one = {key: value[i : i + 1] for key, value in given.items()}
            alone = pictures(pipe, None, generator=None, loras=mix, latents=latents[i : i + 1], **one)
            assert_near(got[i : i + 1], alone)


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
    entry = (LORA / "kohya_lora.safetensors", 0.5, 1.0, {"M00": 0.0, "OUT03": 2.0})
    peft = pictures(pipe, loras=[entry])
    assert_near(peft, pictures(pipe, loras=[entry], lora_backend="reference"))
    assert np.abs(peft - pictures(pipe, loras=[entry[:3]])).max() > 1e-3


def test_the_webuis_rules_are_the_webuis(pipe):
    plain = pictures(pipe, loras={"dora_out": 0.5}, lora_backend="reference")
    assert np.abs(pictures(pipe, loras={"dora_out": 0.5}, lora_backend="webui") - plain).max() > 1e-3


def test_sdxl_does_the_same():
    folder = GOLDEN / "tiny-sdxl-e2e"
    if not folder.is_dir() or not (LORA / "xl_kohya.safetensors").is_file():
        pytest.skip("needs the tiny SDXL")
    pipe = quiet(MultiLoraXLPipeline.from_pretrained(folder, dtype=torch.float32))
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

    for mixes, backend in ((MIXES, "peft"), ({"kohya_lora": 1.0}, "peft"), (MIXES, "webui")):
        with pytest.raises(KeyboardInterrupt):
            pictures(pipe, loras=mixes, lora_backend=backend, callback_on_step_end=stop)


def test_loaded_adapters_act_beside_the_calls_networks_and_stay(pair):
    pipe = quiet(MultiLoraPipeline.from_pretrained(GOLDEN / "tiny-sd", dtype=torch.float32))
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.lora_folder = LORA
    pipe.load_lora_weights(LORA, weight_name="kohya_lora.safetensors", adapter_name="mine")
    pipe.set_adapters("mine", 0.5)
    before = state_of(pipe)
    assert_near(pictures(pipe), pictures(pair[0], loras={"kohya_lora": 0.5}))
    mixes = [{"loha": 2.0}, None, {"loha": 1.0}]
    wanted = [[("kohya_lora", 0.5), *(mix or {}).items()] for mix in mixes]
    assert_near(pictures(pipe, loras=mixes), pictures(pair[0], loras=wanted))
    assert_same(state_of(pipe), before)
    assert pipe.get_active_adapters() == ["mine"]
    assert {
        m.scaling["mine"] / m.lora_alpha["mine"] * m.r["mine"]
        for m in pipe.unet.modules()
        if isinstance(m, BaseTunerLayer)
    } == {0.5}
    assert "kohya_lora: 108 layers applied" not in pipe.network_report()
    pipe.unload_lora_weights()
    assert_near(pictures(pipe), pictures(pair[1]), atol=0)


def test_the_scale_of_cross_attention_kwargs_counts_for_networks_of_the_call(pipe):
    got = pictures(pipe, loras={"kohya_lora": 1.0}, cross_attention_kwargs={"scale": 0.5})
    assert_near(got, pictures(pipe, loras={"kohya_lora": 0.5}))
    mixed = pictures(pipe, loras=MIXES, cross_attention_kwargs={"scale": 0.5})
    assert_near(mixed[:1], pictures(pipe, PROMPTS[0], generator=seeds(1), loras={"kohya_lora": 0.75}))


def test_adapted_networks_switch_and_go(pair, pipe):
    a, b = (read_network(LORA / f"{name}.safetensors") for name in ("kohya_lora", "lokr_full"))
    with networks_on(pipe, "peft") as networks:
        assert networks.switch([]) == []
        reports = networks.switch([LoraUse("a", (a, 1.0, 1.0))])
        assert [report.name for report in reports] == ["kohya_lora"]
        first = pictures(pair[1])
        assert [
            report.name for report in networks.switch([LoraUse("b", (b, 1.0, 1.0)), LoraUse("a", (a, 0.1, 0.1))])
        ] == [
            "lokr_full",
            "kohya_lora",
        ]
        networks.switch([])
        assert_near(pictures(pair[1]), pictures(pipe), atol=0)
    assert_near(first, pictures(pipe, loras={"kohya_lora": 1.0}))


def test_layerwise_offloading_is_put_back(pair):
    """accelerate's hooks with the CPU for a device: weights lie elsewhere, and come for one layer's forward."""

    class Offloaded(MultiLoraPipeline):
        def enable_sequential_cpu_offload(self):
            for model in (self.unet, self.text_encoder, self.vae):
                cpu_offload(model, torch.device("cpu"))

    parts = {name: deepcopy(part) for name, part in pair[0].components.items()}
    pipe = quiet(Offloaded(**parts, requires_safety_checker=False))
    pipe.lora_folder = LORA
    pipe.enable_sequential_cpu_offload()
    assert pipe.unet.conv_in.weight.device.type == "meta"
    short = {"num_inference_steps": 1, "generator": seeds(1), "prompt": PROMPTS[:1]}
    for _ in range(2):
        short["generator"] = seeds(1)
        got = pictures(pipe, loras={"loha": 1.0}, **short)
        assert pipe.unet.conv_in.weight.device.type == "meta"
        short["generator"] = seeds(1)
        assert_near(got, pictures(pair[0], loras={"loha": 1.0}, **short))
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
        ({"loras": {"kohya_loro": 1.0}}, "No network is called `kohya_loro`. Perhaps `kohya_lora`"),
        ({"loras": [None, {"loha": 1.0}]}, "lists 2 mixes for 3 images of 3 prompts"),
        ({"loras": ["kohya_lora"]}, "Each must be \\(name, weight\\)"),
        ({"loras": {"kohya_lora": float("nan")}}, "finite number"),
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
    uses = mixed_call(pipe.networks, {"prompt": PROMPTS}, [["loha", 0.5], ("kohya_lora", 1)]).mixes
    assert [[lora.network.name for lora in mix] for mix in uses] == [["loha", "kohya_lora"]] * 3
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
