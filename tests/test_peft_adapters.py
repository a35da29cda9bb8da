"""Networks as PEFT adapters: the merged weights' numbers at every strength, or a refusal, under diffusers' methods."""

import gc
import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from recordings import GOLDEN
from safetensors.torch import load_file, save_file
from tiny_models import pipeline_with_copies
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection
from webui_diffusers.loaders import NetworkError, attach_network
from webui_diffusers.loaders.lora.families import LayerStrength, weight_delta
from webui_diffusers.loaders.lora.families.table import layer_family
from webui_diffusers.loaders.lora.keys import NetworkLayer
from webui_diffusers.loaders.lora.merge import merged_networks
from webui_diffusers.loaders.lora.peft_factors import adapter_factors
from webui_diffusers.loaders.lora.peft_inject import AdapterSnapshot, scaled_adapters, tuner_layers
from webui_diffusers.loaders.lora.peft_loading import load_network_as_adapter
from webui_diffusers.loaders.lora.peft_mix import AdapterMixer
from webui_diffusers.loaders.lora.plan import MergeStep
from webui_diffusers.loaders.lora.read import read_network


LORA = GOLDEN / "lora"
CASES = json.loads((LORA / "cases.json").read_text())["cases"] if (LORA / "cases.json").is_file() else {}
MODELS = {"sd1": "tiny-sd", "sd2": "tiny-sd", "sdxl": "tiny-sdxl"}
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
FACTORS = ("lora_", "hada_", "lokr_")

# case -> PEFT's tuner for it; None: refused
TUNERS = {
    "kohya_lora": "LORA",
    "kohya_locon": "LORA",
    "alpha_ne_rank": "LORA",
    "lora_mid": "LORA",
    "diffusers_peft": "LORA",
    "dora_out": "LORA",
    "loha": "LOHA",
    "loha_tucker": "LOHA",
    "lokr_full": "LOKR",
    "lokr_w2": "LOKR",
    "lokr_tucker": "LOKR",
    "lokr_both": "LORA",  # both factors decomposed in some layers only, which one LoKrConfig cannot say
    "dora_in": None,
    "ia3": None,
    "full_diff": None,  # with biases
    "norm": None,
    "glora_old": None,
    "glora_new": None,
    "diag_oft": None,
    "diag_oft_constraint": None,
    "boft": None,
    "xl_oft_kohya": None,
    "oft_kohya_sd1": None,
}

pytestmark = pytest.mark.skipif(not (GOLDEN / "tiny-sd").is_dir(), reason="needs the tiny model beside the recordings")


@pytest.fixture(scope="module")
def pipes():
    found = {}
    for folder, kind in (("tiny-sd", StableDiffusionPipeline), ("tiny-sdxl", StableDiffusionXLPipeline)):
        if (GOLDEN / folder).is_dir():
            pipe = pipeline_with_copies(kind, folder)
            found[folder] = (pipe, state_of(pipe))
    return found


@pytest.fixture
def tiny(pipes):
    """Tiny SD1; whatever a test leaves on it is taken off, and then all must be as it was."""
    pipe, before = pipes["tiny-sd"]
    snapshot = AdapterSnapshot({name: getattr(pipe, name) for name in ("unet", "text_encoder")})
    yield pipe
    snapshot.restore()
    assert_same(state_of(pipe), before)


def state_of(pipe):
    """Weights, modules, what is trained, and the models' own attributes."""
    found = {}
    for component in COMPONENTS:
        model = getattr(pipe, component, None)
        if model is None:
            continue
        found |= {f"{component}.{name}": value.detach().clone() for name, value in model.named_parameters()}
        found |= {(component, name, "trained"): value.requires_grad for name, value in model.named_parameters()}
        found |= {(component, name): type(module).__name__ for name, module in model.named_modules()}
        found[component] = sorted(model.__dict__)
    return found


def assert_same(after, before):
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value) if isinstance(value, torch.Tensor) else after[name] == value, name


def base_weights(pipe):
    """The models' own parameters by their plain names, wrapped by PEFT or not."""
    found = {}
    for component in COMPONENTS:
        model = getattr(pipe, component, None)
        for name, value in model.named_parameters() if model is not None else ():
            if not any(part.startswith(FACTORS) for part in name.split(".")):
                found[f"{component}.{name.replace('.base_layer', '')}"] = value.detach().clone()
    return found


def adapter_change(pipe):
    """What the active adapters add to the weights, by parameter, taken from PEFT layer by layer."""
    found = {}
    for component in COMPONENTS:
        model = getattr(pipe, component, None)
        for path, layer in model.named_modules() if model is not None else ():
            if isinstance(layer, BaseTunerLayer):
                for name in layer.active_adapters:
                    if name in layer._get_available_adapters():
                        key = f"{component}.{path.replace('.base_layer', '')}.weight"
                        found[key] = found.get(key, 0) + layer.get_delta_weight(name).detach()
    return found


def merged_change(pipe, uses, semantics="reference"):
    before = base_weights(pipe)
    with merged_networks(pipe, uses, semantics):
        after = base_weights(pipe)
    return {name: after[name] - before[name] for name in before if not torch.equal(after[name], before[name])}


def assert_equal_changes(got, wanted, rtol=1e-4):
    assert {name for name, value in got.items() if value.abs().max() > 0} >= wanted.keys()
    for name, value in wanted.items():
        scale = value.abs().max().item()
        # a merged weight is rounded to float32 at its own size, an adapter is not
        assert (got[name] - value).abs().max().item() <= rtol * scale + 3e-7, name


def draw(pipe, seed=0):
    """The UNet's and the text encoder's outputs for fixed inputs."""
    generator = torch.Generator().manual_seed(seed)
    size = pipe.unet.config.cross_attention_dim
    with torch.no_grad():
        noise = torch.randn(2, 4, 8, 8, generator=generator)
        hidden = torch.randn(2, 77, size, generator=generator)
        unet = pipe.unet(noise, torch.tensor([7, 9]), encoder_hidden_states=hidden).sample
        ids = torch.arange(154).view(2, 77) % 99
        return unet, pipe.text_encoder(ids).last_hidden_state


def drawn_merged(pipe, uses):
    with merged_networks(pipe, uses, "reference"):
        return draw(pipe)


def assert_close(got, wanted, atol=5e-5):
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=1e-4)


def network(name):
    path = LORA / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"needs the recording {path.name}")
    return read_network(path)


# --- table


@pytest.mark.goldens
@pytest.mark.parametrize("name", [name for name, kind in TUNERS.items() if kind is None])
def test_a_family_without_a_tuner_is_refused(pipes, name):
    read = network(name)
    folder = MODELS[CASES[name]["base"]]
    if folder not in pipes:
        pytest.skip(f"needs {folder}")
    pipe, before = pipes[folder]
    with pytest.raises(NetworkError, match="cannot be a PEFT adapter: .*Merge the network instead"):
        attach_network(pipe, read, "a")
    assert_same(state_of(pipe), before)


# --- parity


def recorded_networks():
    for name, case in CASES.items():
        if (LORA / case["file"]).is_file() and TUNERS.get(name, "LORA"):
            yield pytest.param(name, case, id=name)


@pytest.mark.goldens
@pytest.mark.parametrize(("name", "case"), list(recorded_networks()))
def test_an_adapter_has_its_tuner_and_changes_the_weights_as_merging_does(pipes, name, case):
    folder = MODELS[case["base"]]
    if folder not in pipes:
        pytest.skip(f"needs {folder}")
    pipe, before = pipes[folder]
    read = read_network(LORA / case["file"])
    snapshot = AdapterSnapshot({part: getattr(pipe, part) for part in COMPONENTS if getattr(pipe, part, None)})
    wanted = drawn_merged(pipe, [(read, 1, 1)]) if "dora" in case["kind"] else {}
    strengths = [] if wanted else [(1.0, 1.0), (0.6, -0.8)]
    changes = [merged_change(pipe, [(read, *strength)]) for strength in strengths]
    attach_network(pipe, read, "a")
    kinds = {getattr(pipe, component).peft_config["a"].peft_type.value for component in pipe.get_list_adapters()}
    assert name not in TUNERS or kinds == {TUNERS[name]}
    if wanted:
        assert_close(draw(pipe), wanted, atol=2e-4)
    for (te, unet), change in zip(strengths, changes):
        parts = pipe.get_list_adapters()
        pipe.set_adapters(["a"], [{part: unet if part == "unet" else te for part in parts}])
        assert_equal_changes(adapter_change(pipe), change)
    snapshot.restore()
    assert_same(state_of(pipe), before)


def test_every_layer_has_its_own_alpha_over_rank(tiny, tmp_path):
    tensors = {}
    alphas = {"to_q": 8.0, "to_k": 1.0, "to_v": 0.0, "to_out_0": None}
    for i, (part, alpha) in enumerate(alphas.items()):
        stem = f"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_{part}"
        size = tiny.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight.shape[0]
        tensors |= {
            f"{stem}.lora_down.weight": torch.randn(2 + i, size),
            f"{stem}.lora_up.weight": torch.randn(size, 2 + i),
        }
        if alpha is not None:
            tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    save_file(tensors, tmp_path / "mixed.safetensors")
    attach_network(tiny, read_network(tmp_path / "mixed.safetensors"), "a")
    attention = tiny.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    layers = (attention.to_q, attention.to_k, attention.to_v, attention.to_out[0])
    assert [layer.r["a"] for layer in layers] == [2, 3, 4, 5]
    assert [layer.scaling["a"] for layer in layers] == pytest.approx([4.0, 1 / 3, 0.0, 1.0])


@pytest.mark.goldens
def test_adapters_of_several_tuners_work_side_by_side(tiny):
    names = ("loha", "fp16_lora", "lokr_full", "lora_mid")
    reads = {name: network(name) for name in names}
    mixes = [
        {"loha": 0.5},
        {"fp16_lora": 1.0, "loha": -0.5},
        {"fp16_lora": 0.3, "loha": 0.5, "lokr_full": 0.7, "lora_mid": 0.9},
        {"lokr_full": 0.8},
    ]
    bare = draw(tiny)
    wanted = [drawn_merged(tiny, [(reads[name], w, w) for name, w in mix.items()]) for mix in mixes]
    for name, read in reads.items():
        attach_network(tiny, read, name)
        assert tiny.unet.active_adapters() == [name]
    for mix, expected in zip(mixes, wanted):
        tiny.set_adapters(list(mix), list(mix.values()))
        assert tiny.get_active_adapters() == list(mix)
        assert_close(draw(tiny), expected)
    tiny.disable_lora()
    assert_close(draw(tiny), bare, atol=0)
    tiny.enable_lora()
    assert_close(draw(tiny), wanted[-1])
    tiny.delete_adapters("lokr_full")
    assert tiny.get_list_adapters() == {
        "unet": ["loha", "fp16_lora", "lora_mid"],
        "text_encoder": ["loha", "fp16_lora"],
    }
    tiny.set_adapters(["fp16_lora", "loha"], [1.0, -0.5])
    assert_close(draw(tiny), wanted[1])
    tiny.unload_lora_weights()
    assert tiny.get_list_adapters() == {}
    assert_close(draw(tiny), bare, atol=0)


@pytest.mark.goldens
def test_strengths_are_those_of_set_adapters_for_each_component(tiny):
    read = network("alpha_ne_rank")
    wanted = drawn_merged(tiny, [(read, 0.3, 0.9)])
    attach_network(tiny, read, "a")
    tiny.set_adapters("a", {"text_encoder": 0.3, "unet": 0.9})
    assert_close(draw(tiny), wanted)


@pytest.mark.goldens
def test_fused_adapters_are_the_merged_weights_and_come_off():
    pipe = pipeline_with_copies(StableDiffusionPipeline, "tiny-sd")
    read = network("loha")
    wanted, bare = drawn_merged(pipe, [(read, 0.7, 0.7)]), draw(pipe)
    attach_network(pipe, read, "a")
    pipe.fuse_lora(lora_scale=0.7)
    assert pipe.fused_loras == {"a"}
    assert_close(draw(pipe), wanted)
    pipe.unfuse_lora()
    pipe.disable_lora()
    assert_close(draw(pipe), bare)


@pytest.mark.goldens
def test_text_encoders_with_and_without_the_prefix_text_model(tiny):
    config = CLIPTextConfig(**{**tiny.text_encoder.config.to_dict(), "projection_dim": 16})
    prefixed = CLIPTextModelWithProjection(config).eval()
    assert any(name.startswith("text_model.") for name, _ in prefixed.named_modules())
    pipe = SimpleNamespace(unet=tiny.unet, text_encoder=prefixed)
    read = network("alpha_ne_rank")
    ids = torch.arange(77)[None] % 99
    with torch.no_grad():
        with merged_networks(pipe, [(read, 1, 1)], "reference"):
            wanted = prefixed(ids).last_hidden_state
        attach_network(pipe, read, "a")
        torch.testing.assert_close(prefixed(ids).last_hidden_state, wanted, atol=1e-5, rtol=1e-4)


# --- files that the tools write


def peft_configs():
    shared = {"target_modules": ["to_q", "to_out.0", "conv1", "proj_in", "ff.net.2"]}
    yield "lora", LoraConfig(r=4, lora_alpha=3, rank_pattern={"to_q": 2}, alpha_pattern={"conv1": 9}, **shared)
    yield "rslora", LoraConfig(r=4, lora_alpha=3, use_rslora=True, **shared)
    yield "dora", LoraConfig(r=4, lora_alpha=2, use_dora=True, **shared)
    yield "bias", LoraConfig(r=4, lora_alpha=2, lora_bias=True, target_modules=["conv1", "ff.net.2"])
    yield "loha", LoHaConfig(r=3, alpha=2, **shared)
    yield "loha tucker", LoHaConfig(r=3, alpha=2, use_effective_conv2d=True, **shared)
    for factor, both, conv in ((-1, False, False), (4, True, False), (-1, True, True)):
        yield (
            f"lokr {factor}",
            LoKrConfig(
                r=2, alpha=3, decompose_factor=factor, decompose_both=both, use_effective_conv2d=conv, **shared
            ),
        )


def tiny_unet():
    torch.manual_seed(5)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()


def unet_output(unet):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        noise, hidden = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 7, 32, generator=generator)
        return unet(noise, 5, encoder_hidden_states=hidden).sample


@pytest.mark.parametrize(("name", "config"), [pytest.param(*each, id=each[0]) for each in peft_configs()])
def test_what_peft_saves_acts_as_in_peft(tmp_path, name, config):
    model = get_peft_model(tiny_unet(), config).eval()
    torch.manual_seed(6)
    for key, value in model.named_parameters():
        if any(part.startswith(FACTORS) for part in key.split(".")) and "magnitude" not in key:
            nn.init.normal_(value, std=0.2)
    wanted = unet_output(model)
    model.save_pretrained(tmp_path)
    pipe = SimpleNamespace(unet=tiny_unet())
    bare = unet_output(pipe.unet)
    attach_network(pipe, read_network(tmp_path), "a")
    assert (wanted - bare).abs().max() > 1e-3
    torch.testing.assert_close(unet_output(pipe.unet), wanted, atol=2e-5, rtol=1e-4)
    assert pipe.unet.peft_config["a"].peft_type == config.peft_type


@pytest.mark.goldens
@pytest.mark.parametrize("with_metadata", [True, False])
def test_what_diffusers_saves_of_an_adapter_reads_back(tiny, tmp_path, with_metadata):
    read = network("alpha_ne_rank")
    wanted = drawn_merged(tiny, [(read, 1, 1)])
    attach_network(tiny, read, "a")
    layers = {
        part: get_peft_model_state_dict(getattr(tiny, part), adapter_name="a") for part in ("unet", "text_encoder")
    }
    metadata = {f"{part}_lora_adapter_metadata": getattr(tiny, part).peft_config["a"].to_dict() for part in layers}
    if not with_metadata:  # then alpha is the rank, by diffusers' rule; the file says no other
        metadata = {}
    tiny.save_lora_weights(
        tmp_path, unet_lora_layers=layers["unet"], text_encoder_lora_layers=layers["text_encoder"], **metadata
    )
    saved = read_network(tmp_path)
    tiny.unload_lora_weights()
    if not with_metadata:
        assert {saved.scale(layer) for layer in saved.layers.values()} == {1.0}
        return
    attach_network(tiny, saved, "b")
    assert_close(draw(tiny), wanted)
    tiny.delete_adapters("b")
    StableDiffusionPipeline.load_lora_weights(tiny, tmp_path, adapter_name="c")
    tiny.set_adapters("c")
    assert_close(draw(tiny)[:1], wanted[:1])


# --- load_lora_weights


def never(*args, **kwargs):
    raise AssertionError("diffusers' own loader was called")


@pytest.mark.goldens
def test_files_folders_and_state_dicts_are_loaded_here(tiny):
    read = network("alpha_ne_rank")
    path = LORA / "alpha_ne_rank.safetensors"
    wanted = drawn_merged(tiny, [(read, 1, 1)])
    sources = [(path, {}), (str(LORA), {"weight_name": path.name}), (load_file(path), {}), (read, {})]
    for i, (source, options) in enumerate(sources):
        load_network_as_adapter(tiny, source, fallback=never, **options)
        assert tiny.get_active_adapters() == [f"default_{i}"]
        assert_close(draw(tiny), wanted)


@pytest.mark.goldens
def test_a_state_dict_in_diffusers_layout_is_loaded_here(tiny):
    read = network("diffusers_peft")
    wanted = drawn_merged(tiny, [(read, 1, 1)])
    load_network_as_adapter(tiny, load_file(read.path), "a", fallback=never)
    assert_close(draw(tiny), wanted)


def test_what_is_no_network_goes_to_diffusers(tiny, tmp_path):
    asked = []
    load_network_as_adapter(tiny, {"weird": torch.ones(2)}, "a", fallback=lambda *a, **k: asked.append((a, k)))
    save_file({"weird.weight": torch.ones(2)}, tmp_path / "x.safetensors")
    load_network_as_adapter(tiny, tmp_path / "x.safetensors", fallback=lambda *a, **k: asked.append((a, k)), token="t")
    assert [k for _, k in asked] == [{"adapter_name": "a"}, {"adapter_name": None, "token": "t"}]


@pytest.mark.goldens
def test_another_network_is_swapped_into_an_adapter_in_place(tiny):
    first, second = network("kohya_locon"), network("kohya_lora")
    wanted, plain = drawn_merged(tiny, [(second, 1, 1)]), draw(tiny)
    load_network_as_adapter(tiny, first, "a", fallback=None)
    held = {name: value.data_ptr() for name, value in tiny.unet.named_parameters() if ".a." in name}
    load_network_as_adapter(tiny, second, "a", fallback=None, hotswap=True)
    assert_close(draw(tiny), wanted)
    load_network_as_adapter(tiny, first, "a", fallback=None, hotswap=True)
    assert_close(draw(tiny), drawn_merged_beside(tiny, first))
    now = {name: value.data_ptr() for name, value in tiny.unet.named_parameters() if ".a." in name}
    assert sum(now[name] == pointer for name, pointer in held.items()) > len(held) / 2  # the same storage
    tiny.unload_lora_weights()
    assert_close(draw(tiny), plain)


def drawn_merged_beside(pipe, read):
    """What the network draws merged, for a pipe with adapters: they are off meanwhile."""
    pipe.disable_lora()
    try:
        return drawn_merged(pipe, [(read, 1, 1)])
    finally:
        pipe.enable_lora()


@pytest.mark.goldens
def test_what_cannot_be_swapped_in_says_so_and_changes_nothing(tiny):
    small, large = network("kohya_lora"), network("kohya_locon")
    with pytest.raises(ValueError, match="no existing adapter by that name"):
        load_network_as_adapter(tiny, small, "a", fallback=None, hotswap=True)
    load_network_as_adapter(tiny, small, "a", fallback=None)
    before = draw(tiny)
    with pytest.raises(NetworkError, match="has nothing at"):  # convolutions that the first file has not
        load_network_as_adapter(tiny, large, "a", fallback=None, hotswap=True)
    assert all(map(torch.equal, draw(tiny), before))


def test_a_scale_for_a_while_leaves_the_adapters_strengths(tiny, tmp_path):
    load_network_as_adapter(tiny, file_of_ones(tmp_path), "a", fallback=None)
    tiny.set_adapters("a", 0.3)
    model = tiny.text_encoder
    before = [dict(layer.scaling) for layer in tuner_layers(model).values()]
    for scale in (0.5, 0.0, 1.0):
        with scaled_adapters([model], scale):
            now = [layer.scaling["a"] for layer in tuner_layers(model).values()]
            assert now == pytest.approx([each["a"] * scale for each in before])
        assert [dict(layer.scaling) for layer in tuner_layers(model).values()] == before
    tiny.unload_lora_weights()


def file_of_ones(folder):
    layer = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    tensors = {f"{layer}.lora_up.weight": torch.ones(64, 2), f"{layer}.lora_down.weight": torch.ones(2, 32)}
    save_file(tensors, folder / "ones.safetensors")
    return folder / "ones.safetensors"


# --- mixes for a while


@pytest.mark.goldens
def test_a_mixer_gives_back_what_it_found(tiny):
    a, b, c = network("fp16_lora"), network("loha"), network("lokr_full")
    attach_network(tiny, a, "mine")
    attach_network(tiny, b, "other")
    tiny.set_adapters(["mine", "other"], [0.4, 0.6])
    before, drawn = state_of(tiny), draw(tiny)
    scales = [dict(m.scaling) for m in tiny.unet.modules() if isinstance(m, BaseTunerLayer)]
    mixer = AdapterMixer(tiny)
    mixer.switch([(c, 1.0, 0.5), (a, 0.2, 0.2)])
    mixed = draw(tiny)
    assert {*tiny.get_active_adapters()} > {"mine", "other"}
    mixer.switch([(c, 1.0, 0.5)])
    mixer.restore()
    assert_same(state_of(tiny), before)
    assert [dict(m.scaling) for m in tiny.unet.modules() if isinstance(m, BaseTunerLayer)] == scales
    assert {*tiny.get_active_adapters()} == {"mine", "other"}  # PEFT 0.18 gives them in any order
    assert_close(draw(tiny), drawn, atol=0)
    tiny.unload_lora_weights()
    assert_close(mixed, drawn_merged(tiny, [(a, 0.6, 0.6), (b, 0.6, 0.6), (c, 1.0, 0.5)]))


@pytest.mark.goldens
def test_adapters_that_are_switched_off_stay_off_beside_a_mix(tiny):
    a, c = network("fp16_lora"), network("lokr_full")
    wanted = drawn_merged(tiny, [(c, 1, 1)])
    attach_network(tiny, a, "mine")
    tiny.disable_lora()
    before = state_of(tiny)
    mixer = AdapterMixer(tiny)
    mixer.switch([(c, 1, 1)])
    assert_close(draw(tiny), wanted)
    mixer.restore()
    assert_same(state_of(tiny), before)
    assert all(m.disable_adapters for m in tiny.unet.modules() if isinstance(m, BaseTunerLayer))


@pytest.mark.goldens
def test_a_mix_knows_dyn_and_block_strengths(tiny):
    read = network("dyn")
    uses = [(read, 0.5, 1.0, 4, {"IN01": 0.0, "M00": 2.0, "BASE": 0.5})]
    wanted = drawn_merged(tiny, uses)
    mixer = AdapterMixer(tiny)
    mixer.switch(uses)
    assert_close(draw(tiny), wanted)
    mixer.restore()


@pytest.mark.goldens
def test_each_row_of_a_batch_has_its_own_mix_in_one_pass(tiny):
    a, b = network("fp16_lora"), network("loha")
    mixes = [[(a, 1.0, 1.0)], []]
    one, two = drawn_merged(tiny, mixes[0]), draw(tiny)
    mixer = AdapterMixer(tiny)
    mixer.switch_images(mixes)
    both = draw(tiny)
    for got, first, second in zip(both, one, two):
        torch.testing.assert_close(got[0], first[0], atol=5e-5, rtol=1e-4)
        torch.testing.assert_close(got[1], second[1], atol=1e-5, rtol=1e-4)
    mixer.switch_images([[(a, 0.3, 0.3), (b, 1, 1)], [(b, 1, 1)], []])
    with pytest.raises(ValueError, match="A batch of 2 rows"):
        draw(tiny)
    mixer.restore()
    assert_close(draw(tiny), two, atol=0)


@pytest.mark.goldens
def test_dora_in_a_mix_is_exact_or_refused(tiny):
    dora, a = network("dora_out"), network("fp16_lora")
    wanted, bare = drawn_merged(tiny, [(dora, 1, 1)]), draw(tiny)
    mixer = AdapterMixer(tiny)
    mixer.switch([(dora, 1, 1)])
    assert_close(draw(tiny), wanted, atol=2e-4)
    assert not mixer.one_pass([[(dora, 1, 1)], []])
    with pytest.raises(NetworkError, match="strength 1 only, and 0.5 is asked for"):
        mixer.switch([(dora, 0.5, 0.5)])
    with pytest.raises(NetworkError, match="DoRA works on"):
        mixer.switch([(a, 1, 1), (dora, 1, 1)])
    assert_close(draw(tiny), wanted, atol=2e-4)  # what was on stays on
    mixer.restore()
    assert_close(draw(tiny), bare, atol=0)


@pytest.mark.goldens
def test_mixes_leave_no_memory_behind(tiny):
    a, c = network("diffusers_peft"), network("lokr_full")
    mixer = AdapterMixer(tiny)
    counts = []
    for _ in range(3):
        mixer.switch([(a, 1, 1)])
        mixer.switch([(c, 1, 1)])
        mixer.restore()
        gc.collect()
        counts.append(sum(type(each) is nn.Parameter for each in gc.get_objects()))
    assert counts[1] == counts[-1]


# --- properties


def family_layer(parts):
    shapes = {part: tuple(value.shape) for part, value in parts.items()}
    return NetworkLayer("x", layer_family(parts)[0], {part: part for part in parts}, shapes)


def lokr_parts(draw, out, inside, kernel):
    r, (a, b), (c, d) = draw(st.integers(1, 3)), out, inside
    parts = {"lokr_w1": (a, c)} if draw(st.booleans()) else {"lokr_w1_a": (a, r), "lokr_w1_b": (r, c)}
    form = draw(st.sampled_from(["whole", "flat", "tucker"] if kernel else ["whole", "flat"]))
    if form == "whole":
        return parts | {"lokr_w2": (b, d, *kernel)}
    if form == "tucker":
        return parts | {"lokr_t2": (r, r, *kernel), "lokr_w2_a": (r, b), "lokr_w2_b": (r, d)}
    return parts | {"lokr_w2_a": (b, r), "lokr_w2_b": (r, d * (9 if kernel else 1))}


def loha_parts(draw, out, row, kernel):
    r, q = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    if kernel and draw(st.booleans()):
        half = {"_a": (r, out), "_b": (r, row)}
        return {f"hada_w{h}{s}": shape for h in "12" for s, shape in half.items()} | {
            "hada_t1": (r, r, *kernel),
            "hada_t2": (r, r, *kernel),
        }
    columns = row * (9 if kernel else 1)
    return {
        "hada_w1_a": (out, r),
        "hada_w1_b": (r, columns),
        "hada_w2_a": (out, q),
        "hada_w2_b": (q, columns),
    }


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_factors_multiply_to_the_change_of_the_family(data):
    kernel = data.draw(st.sampled_from([(), (3, 3)]))
    out, inside = (data.draw(st.tuples(st.integers(1, 4), st.integers(1, 5))) for _ in range(2))
    sizes = out[0] * out[1], inside[0] * inside[1]
    if data.draw(st.booleans()):
        shapes = lokr_parts(data.draw, out, inside, kernel)
    else:
        shapes = loha_parts(data.draw, *sizes, kernel)
    if data.draw(st.booleans()):
        shapes["bias"] = (*sizes, *kernel)
    parts = {part: torch.randn(shape) for part, shape in shapes.items()}
    layer, shape = family_layer(parts), torch.Size([*sizes, *kernel])
    holder = SimpleNamespace(tensor=lambda layer, part: parts[part], scale=lambda layer, reference: 1.0)
    found = adapter_factors(MergeStep(holder, layer, 1.0, None, True), shape)
    wanted = weight_delta(layer.family, parts, torch.zeros(shape), LayerStrength(1.0, 1.0))
    torch.testing.assert_close(found.up @ found.down, wanted.flatten(1), atol=1e-5, rtol=1e-4)
    assert found.rank <= min(sizes[0], wanted[0].numel())


# --- errors


@pytest.mark.goldens
@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("bad_nan.safetensors", "NaN"),
        ("bad_sdxl_on_sd1.safetensors", "another base model"),
        ("bad_shape_mismatch.safetensors", "does not fit"),
        ("norm.safetensors", "cannot be a PEFT adapter"),
    ],
)
def test_a_refused_file_leaves_no_trace(tiny, file, says):
    if not (LORA / file).is_file():
        pytest.skip(f"needs the recording {file}")
    before = state_of(tiny)
    with pytest.raises(NetworkError, match=says):
        load_network_as_adapter(tiny, LORA / file, "a", fallback=never)
    assert_same(state_of(tiny), before)


def test_a_file_of_embeddings_alone_is_no_adapter(tiny, tmp_path):
    save_file({"bundle_emb.word.string_to_param.*": torch.ones(1, 32)}, tmp_path / "words.safetensors")
    with pytest.raises(NetworkError, match="no layers"):
        attach_network(tiny, read_network(tmp_path / "words.safetensors"), "a")


@pytest.mark.goldens
def test_names_that_peft_cannot_use_are_refused(tiny):
    read = network("alpha_ne_rank")
    with pytest.raises(ValueError, match="without dots"):
        attach_network(tiny, read, "v1.5")
    attach_network(tiny, read, "a")
    with pytest.raises(ValueError, match="already in use"):
        attach_network(tiny, read, "a")


@pytest.mark.goldens
def test_a_mix_beside_fused_adapters_is_refused():
    pipe = pipeline_with_copies(StableDiffusionPipeline, "tiny-sd")
    attach_network(pipe, network("alpha_ne_rank"), "a")
    pipe.fuse_lora()
    with pytest.raises(ValueError, match="fused into the weights"):
        AdapterMixer(pipe).switch([(network("loha"), 1, 1)])


def test_an_injection_that_fails_halfway_is_undone(tiny, monkeypatch):
    read = network("alpha_ne_rank")
    before = state_of(tiny)
    monkeypatch.setattr(type(tiny.text_encoder), "load_state_dict", never)
    with pytest.raises(AssertionError):
        attach_network(tiny, read, "a")
    monkeypatch.undo()
    assert_same(state_of(tiny), before)
