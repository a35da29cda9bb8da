"""Networks in the weights: the webui's numbers and the formats' own, and every bit back afterwards."""

import gc
import json
import random
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import GOLDEN
from safetensors.torch import load_file, save_file
from tiny_models import pipeline_with_copies
from webui_diffusers.loaders import NetworkError
from webui_diffusers.loaders.lora.merge import NetworkMerger, merged_networks
from webui_diffusers.loaders.lora.read import read_network


LORA = GOLDEN / "lora"
CASES = json.loads((LORA / "cases.json").read_text()) if (LORA / "cases.json").is_file() else {"cases": {}}
MODELS = {"sd1": "tiny-sd", "sd2": "tiny-sd", "sdxl": "tiny-sdxl"}  # the recordings house tiny-sd as SD2, too
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")

pytestmark = pytest.mark.skipif(not (GOLDEN / "tiny-sd").is_dir(), reason="needs the tiny model beside the recordings")


@pytest.fixture(scope="module")
def pipes():
    """Tiny SD1 and SDXL with a copy of their weights."""
    found = {}
    for folder, kind in (("tiny-sd", StableDiffusionPipeline), ("tiny-sdxl", StableDiffusionXLPipeline)):
        if (GOLDEN / folder).is_dir():
            pipe = pipeline_with_copies(kind, folder)
            found[folder] = (pipe, weights(pipe))
    return found


@pytest.fixture
def tiny(pipes):
    pipe, before = pipes["tiny-sd"]
    yield pipe
    assert_same(weights(pipe), before)


def weights(pipe):
    """Every parameter, by the recordings' names: text encoders' always with `text_model.`."""
    found = {}
    for component in COMPONENTS:
        model = getattr(pipe, component, None)
        for name, value in model.named_parameters() if model is not None else ():
            if component != "unet" and not name.startswith(("text_model.", "text_projection")):
                name = f"text_model.{name}"
            found[f"{component}.{name}"] = value.detach().clone()
    return found


def assert_same(after, before):
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), name


def probes(delta):
    """The two projections that stand for a large tensor in the recordings."""
    flat = (delta.reshape(len(delta), -1) if delta.ndim > 1 else delta.reshape(1, -1)).double()
    rows, columns = (torch.arange(n).double() for n in flat.shape)
    return {"rprobe": flat @ torch.cos(0.37 * columns + 0.11), "lprobe": torch.cos(0.53 * rows + 0.29) @ flat}


def assert_recorded(pipe, before, file, rtol):
    """What changed is what the recording has, and nothing else did."""
    recorded, seen = load_file(LORA / file), set()
    after = weights(pipe)
    changed = {name for name in after if name not in before or not torch.equal(after[name], before[name])}
    for key, wanted in recorded.items():
        name, _, probe = key.rpartition(".")
        if probe not in ("rprobe", "lprobe"):
            name, probe = key, ""
        seen.add(name)
        delta = after[name] - before[name] if name in before else after[name]
        got = probes(delta)[probe] if probe else delta
        scale = wanted.abs().max().item()
        assert (got.double() - wanted.double()).abs().max() <= rtol * scale, key
    assert changed == seen


def recorded_cases():
    for name, case in CASES["cases"].items():
        for setting, data in case["settings"].items():
            reference = data.get("variants", {}).get("reference", {}).get("delta")
            same = data["delta"] if "reference" in data else None
            for semantics, file in (("webui", data["delta"]), ("reference", reference or same)):
                if file and (LORA / file).is_file() and (LORA / case["file"]).is_file():
                    yield pytest.param(case, data, semantics, file, id=f"{name}-{setting}-{semantics}")


@pytest.mark.goldens
@pytest.mark.parametrize(("case", "setting", "semantics", "file"), list(recorded_cases()))
def test_a_network_changes_the_weights_as_recorded(pipes, case, setting, semantics, file):
    if MODELS[case["base"]] not in pipes:
        pytest.skip(f"needs {MODELS[case['base']]}")
    pipe, before = pipes[MODELS[case["base"]]]
    network = read_network(LORA / case["file"])
    with merged_networks(pipe, [(network, setting["te"], setting["unet"], setting["dyn"])], semantics):
        assert_recorded(pipe, before, file, 1e-4 if case["dtype"] == "float32" else 2e-2)
    assert_same(weights(pipe), before)


def recorded_combos():
    for name, combo in CASES.get("combos", {}).items():
        files = [LORA / CASES["cases"][use["case"]]["file"] for use in combo["sequence"]]
        if (LORA / combo["delta"]).is_file() and all(file.is_file() for file in files):
            yield pytest.param(name, combo, files, id=name)


@pytest.mark.goldens
@pytest.mark.parametrize(("name", "combo", "files"), list(recorded_combos()))
def test_several_networks_work_on_the_weight_that_the_earlier_left(pipes, name, combo, files):
    if MODELS[combo["base"]] not in pipes:
        pytest.skip(f"needs {MODELS[combo['base']]}")
    pipe, before = pipes[MODELS[combo["base"]]]
    uses = [(read_network(file), use["te"], use["unet"], use["dyn"]) for file, use in zip(files, combo["sequence"])]
    if name == "same_twice_different":
        uses[0] = uses[1]  # the last strengths of a name count for both: network_mentions sees to that
    with merged_networks(pipe, uses):
        assert_recorded(pipe, before, combo["delta"], 1e-4)
    assert_same(weights(pipe), before)


@pytest.mark.goldens
@pytest.mark.parametrize("what", ["new_bias", "pickle_ok"])
def test_a_bias_is_made_and_taken_away_and_pickles_are_read(pipes, what):
    data = CASES[what]
    pipe, before = pipes["tiny-sd"]
    with merged_networks(pipe, [(read_network(LORA / data["file"]), 1, 1)]):
        assert_recorded(pipe, before, data["delta"], 1e-4)
    assert_same(weights(pipe), before)


BAD = [name for name in CASES.get("bad", {}) if (LORA / name).is_file()]


@pytest.mark.goldens
@pytest.mark.parametrize("name", [name for name in BAD if name != "bad_unknown_keys.safetensors"])
def test_a_bad_file_says_so_and_leaves_the_weights(tiny, name):
    with pytest.raises(NetworkError, match=name.split(".")[0]):
        with merged_networks(tiny, [(read_network(LORA / name), 1, 1)]):
            pytest.fail("it was applied")


@pytest.mark.goldens
@pytest.mark.skipif("bad_unknown_keys.safetensors" not in BAD, reason="needs the recording")
def test_keys_of_no_layer_are_reported_and_the_rest_applied(tiny):
    with merged_networks(tiny, [(read_network(LORA / "bad_unknown_keys.safetensors"), 1, 1)]) as (report,):
        assert len(report.applied) == CASES["bad"]["bad_unknown_keys.safetensors"]["webui"]["layers_changed"]
        assert report.unknown == ["totally.unknown.key", "lora_unet_no_such_layer"]
        assert "2 not of this model" in str(report)


@pytest.mark.goldens
@pytest.mark.skipif("bad_shape_mismatch.safetensors" not in BAD, reason="needs the recording")
def test_layers_that_do_not_fit_can_be_left_out_as_in_the_webui(tiny):
    network = read_network(LORA / "bad_shape_mismatch.safetensors")
    with merged_networks(tiny, [(network, 1, 1)], strict=False) as (report,):
        assert len(report.applied) == CASES["bad"]["bad_shape_mismatch.safetensors"]["webui"]["layers_changed"]
        assert list(report.errors) == ["lora_unet_down_blocks_0_attentions_0_proj_in"]


# --- made here ---

TO_Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
TO_K = TO_Q.replace("to_q", "to_k")
NORM = "lora_unet_down_blocks_0_attentions_0_norm"
FC1 = "lora_te_text_model_encoder_layers_0_mlp_fc1"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
LAYERS = {TO_Q: (32, 32), TO_K: (32, 32), FC1: (64, 32), CONV: (32, 32, 3, 3)}


def lora(path, layers=(TO_Q, TO_K, FC1, CONV), rank=4, seed=0, dtype=torch.float32, alpha=2.0, size=0.1):
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in layers:
        out, into, *kernel = LAYERS[name]
        tensors[f"{name}.lora_down.weight"] = torch.randn(rank, into, *kernel, generator=draw).mul(size).to(dtype)
        tensors[f"{name}.lora_up.weight"] = torch.randn(out, rank, *[1] * len(kernel), generator=draw).to(dtype)
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    return read_network(path)


def to_q(pipe):
    return pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q


def test_an_error_and_an_interrupt_inside_the_block_restore(tiny, tmp_path):
    network = lora(tmp_path / "a.safetensors")
    for error in (RuntimeError, KeyboardInterrupt, GeneratorExit):
        before = weights(tiny)
        with pytest.raises(error):
            with merged_networks(tiny, [(network, 1, 1)]):
                raise error
        assert_same(weights(tiny), before)


def test_a_layer_that_fails_midway_leaves_the_set_that_was_on(tiny, tmp_path):
    good = lora(tmp_path / "good.safetensors")
    size = {f"{TO_K}.diff": torch.full((32, 32), 3e38)}
    save_file(
        size | {f"{TO_K}.bias": torch.full((32, 32), 3e38), f"{TO_Q}.diff": torch.ones(32, 32)},
        tmp_path / "b.safetensors",
    )
    merger = NetworkMerger(tiny)
    merger.switch([(good, 1, 1)])
    on = weights(tiny)
    with pytest.raises(NetworkError, match="NaN or infinite"):
        merger.switch([(good, 0.5, 0.5), (read_network(tmp_path / "b.safetensors"), 1, 1)])
    assert_same(weights(tiny), on)
    assert merger.reports[0].name == "good"
    merger.restore()


def test_blocks_nest(tiny, tmp_path):
    a, b = lora(tmp_path / "a.safetensors"), lora(tmp_path / "b.safetensors", seed=1)
    with merged_networks(tiny, [(a, 1, 1)]):
        outer = weights(tiny)
        with merged_networks(tiny, [(b, 1, 1)]):
            both = weights(tiny)
        assert_same(weights(tiny), outer)
    with merged_networks(tiny, [(a, 1, 1), (b, 1, 1)]):
        for name, value in weights(tiny).items():
            torch.testing.assert_close(value, both[name], rtol=0, atol=1e-6)


def test_switching_writes_each_weight_once_and_only_where_it_differs(tiny, tmp_path):
    a = lora(tmp_path / "a.safetensors", layers=(TO_Q, FC1))
    b = lora(tmp_path / "b.safetensors", layers=(TO_K, FC1), seed=1)
    block = to_q(tiny)
    attention = tiny.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    watched = [attention.to_q.weight, attention.to_k.weight, encoder_layer(tiny).mlp.fc1.weight]
    merger = NetworkMerger(tiny)

    def writes(uses):
        before = [weight._version for weight in watched]
        merger.switch(uses)
        return [weight._version - old for weight, old in zip(watched, before)]

    assert writes([(a, 1, 1)]) == [1, 0, 1]
    assert writes([(a, 1, 1)]) == [0, 0, 0]
    assert writes([(b, 1, 1)]) == [1, 1, 1]
    assert writes([(b, 0.5, 1)]) == [0, 0, 1]
    assert writes([]) == [0, 1, 1]
    assert not merger.active
    assert block.weight.requires_grad  # nothing about the parameter itself is changed


def encoder_layer(pipe):
    encoder = pipe.text_encoder
    return getattr(encoder, "text_model", encoder).encoder.layers[0]


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """Eight files of different families on overlapping layers."""
    folder, draw = tmp_path_factory.mktemp("eight"), torch.Generator().manual_seed(5)

    def random_of(*shape):
        return torch.randn(*shape, generator=draw) * 0.1

    networks = [lora(folder / f"lora{seed}.safetensors", seed=seed, rank=seed + 1) for seed in range(3)]
    others = {
        "loha": {f"hada_{part}": random_of(*shape) for part, shape in
                 {"w1_a": (32, 2), "w1_b": (2, 32), "w2_a": (32, 2), "w2_b": (2, 32)}.items()},
        "full": {"diff": random_of(32, 32), "diff_b": random_of(32)},
        "oft": {"oft_blocks": random_of(4, 8, 8)},
        "ia3": {"weight": random_of(32), "on_input": torch.tensor(1)},
        "dora": {"lora_up.weight": random_of(32, 2), "lora_down.weight": random_of(2, 32),
                 "dora_scale": random_of(1, 32) + 1},
    }  # fmt: skip
    for name, parts in others.items():
        tensors = {f"{layer}.{part}": value.clone() for layer in (TO_Q, TO_K) for part, value in parts.items()}
        if name == "full":
            tensors |= {f"{NORM}.w_norm": random_of(32), f"{NORM}.b_norm": random_of(32)}
        save_file(tensors, folder / f"{name}.safetensors")
        networks.append(read_network(folder / f"{name}.safetensors"))
    return networks


def random_switches(pipe, networks, count):
    choose, merger, before = random.Random(7), NetworkMerger(pipe), weights(pipe)
    most = 0
    for _ in range(count):
        chosen = choose.sample(networks, choose.randint(0, 4))
        merger.switch([(n, choose.choice((0, 0.5, 1)), choose.choice((-0.7, 0, 1))) for n in chosen])
        most = max(most, len(merger._touched))
    merger.restore()
    gc.collect()
    assert most <= 7  # the modules of the eight files, and no more is kept
    assert_same(weights(pipe), before)


def test_a_hundred_switches_end_where_they_began(tiny, eight):
    random_switches(tiny, eight, 100)


@pytest.mark.slow
def test_a_thousand_switches_end_where_they_began(tiny, eight):
    random_switches(tiny, eight, 1000)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(3)), strength=st.floats(-2, 2, width=16))
def test_low_rank_networks_add_up_in_any_order(pipes, eight, order, strength):
    pipe = pipes["tiny-sd"][0]
    with merged_networks(pipe, [(eight[i], strength, strength) for i in range(3)]):
        expected = to_q(pipe).weight.detach().clone()
    with merged_networks(pipe, [(eight[i], strength, strength) for i in order]):
        torch.testing.assert_close(to_q(pipe).weight.detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_models_are_computed_in_float32_and_cast_once(pipes, tmp_path, dtype):
    network = lora(tmp_path / "a.safetensors", dtype=torch.float16)
    up, down = (network.tensor(network.layers[TO_Q], f"lora_{way}.weight").float() for way in ("up", "down"))
    layer = torch.nn.Linear(32, 32, dtype=dtype)
    expected = (layer.weight.detach().to(torch.promote_types(dtype, torch.float32)) + 0.5 * 0.8 * up @ down).to(dtype)
    before = layer.weight.detach().clone()
    unet = nested(TO_Q, layer)
    with merged_networks(SimpleNamespace(unet=unet), [(network, 0, 0.8)]):
        difference = (layer.weight.detach().double() - expected.double()).abs().max()
        assert difference <= torch.finfo(dtype).eps if dtype != torch.float64 else difference < 1e-7
        assert (layer.weight != before).any()
    assert torch.equal(layer.weight, before)


def nested(name, layer):
    """A UNet of one layer, at the place of `name`."""
    root = module = torch.nn.Module()
    *path, last = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q".split(".")
    assert name.endswith("_".join([*path, last]))
    for step in path:
        module.add_module(step, torch.nn.Module())
        module = getattr(module, step)
    module.add_module(last, layer)
    return root


def test_an_inpainting_unet_takes_a_plain_networks_first_layer(tmp_path):
    conv = torch.nn.Conv2d(9, 8, 3)
    unet = torch.nn.Module()
    unet.conv_in = conv
    before = conv.weight.detach().clone()
    up, down, diff = torch.randn(8, 2, 1, 1), torch.randn(2, 4, 3, 3), torch.randn(8, 4, 3, 3)
    tensors = {"lora_unet_conv_in.lora_up.weight": up, "lora_unet_conv_in.lora_down.weight": down}
    save_file(tensors, tmp_path / "lora.safetensors")
    save_file({"lora_unet_conv_in.diff": diff}, tmp_path / "full.safetensors")
    expected = {"lora": torch.einsum("or, rikl -> oikl", up[:, :, 0, 0], down), "full": diff}
    for name, delta in expected.items():
        network = read_network(tmp_path / f"{name}.safetensors")
        with merged_networks(SimpleNamespace(unet=unet), [(network, 1, 1)]):
            torch.testing.assert_close(conv.weight[:, :4] - before[:, :4], delta, rtol=1e-4, atol=1e-5)
            assert torch.equal(conv.weight[:, 4:], before[:, 4:])
        assert torch.equal(conv.weight, before)


def test_sequential_offloading_keeps_its_weights_elsewhere_and_they_are_changed_there(tmp_path):
    from accelerate import cpu_offload

    tensors = {f"{TO_Q}.diff": torch.ones(32, 32), f"{TO_Q}.diff_b": torch.ones(32)}
    save_file(tensors, tmp_path / "full.safetensors")
    network = read_network(tmp_path / "full.safetensors")
    for bias in (True, False):
        layer = torch.nn.Linear(32, 32, bias=bias)
        unet, x = nested(TO_Q, layer), torch.randn(2, 32)
        plain = layer(x)
        cpu_offload(unet, execution_device=torch.device("cpu"))
        assert layer.weight.device.type == "meta"
        with merged_networks(SimpleNamespace(unet=unet), [(network, 0, 1)]):
            torch.testing.assert_close(layer(x), plain + x.sum(1, keepdim=True) + 1, rtol=1e-4, atol=1e-4)
        assert torch.equal(layer(x), plain)
        assert (layer.bias is None) is not bias


def test_a_model_that_peft_has_wrapped_is_reached_through_the_wrapping(pipes, tmp_path):
    from peft import LoraConfig, inject_adapter_in_model

    network = lora(tmp_path / "a.safetensors", layers=(TO_Q,))
    pipe = SimpleNamespace(unet=nested(TO_Q, torch.nn.Linear(32, 32)))
    inner = pipe.unet.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")
    before = inner.weight.detach().clone()
    inject_adapter_in_model(LoraConfig(target_modules=["to_q"]), pipe.unet, "mine")
    with merged_networks(pipe, [(network, 1, 1)]) as (report,):
        assert report.applied == [TO_Q]
        assert not torch.equal(inner.weight, before)
    assert torch.equal(inner.weight, before)


def test_block_strengths_act_on_their_blocks(tiny, tmp_path):
    network = lora(tmp_path / "a.safetensors", layers=(TO_Q, FC1))
    first = encoder_layer(tiny).mlp.fc1
    plain = to_q(tiny).weight.detach().clone(), first.weight.detach().clone()
    with merged_networks(tiny, [(network, 1, 1)]):
        full = to_q(tiny).weight.detach().clone(), first.weight.detach().clone()
    for use in ((network, 1, 1, {"IN01": 0.5, "BASE": 0}), (network, 1, 1, None, [0, 0.5] + [1] * 15)):
        with merged_networks(tiny, [use]):
            torch.testing.assert_close(to_q(tiny).weight, torch.lerp(plain[0], full[0], 0.5))
            assert torch.equal(first.weight, plain[1])


def test_files_in_a_layout_that_the_webui_ignores_are_applied_by_reference_and_auto(tiny, tmp_path):
    up, down = torch.randn(32, 2), torch.randn(2, 32)
    path = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file({f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}, tmp_path / "peft.safetensors")
    network, before = read_network(tmp_path / "peft.safetensors"), to_q(tiny).weight.detach().clone()
    for semantics, acts in (("webui", False), ("reference", True), ("auto", True)):
        with merged_networks(tiny, [(network, 1, 1)], semantics) as (report,):
            expected = before + up @ down if acts else before
            torch.testing.assert_close(to_q(tiny).weight.detach(), expected)
            assert bool(report.passed_over) is not acts


def test_sd2s_fused_attention_is_had_whole_or_not_at_all(tiny, tmp_path):
    """The tiny model's widths are neither SD1's nor SD2's, so the file's word decides."""
    tensors = {}
    for layer, names in ((0, ("q_proj", "k_proj")), (1, ("q_proj", "k_proj", "v_proj", "out_proj"))):
        for name in names:
            stem = f"lora_te_text_model_encoder_layers_{layer}_self_attn_{name}"
            tensors[f"{stem}.diff"] = torch.ones(32, 32)
    norm = "lora_te_text_model_encoder_layers_0_layer_norm1"
    tensors |= {f"{norm}.w_norm": torch.ones(32), f"{norm}.b_norm": torch.ones(32)}
    save_file(tensors, tmp_path / "a.safetensors", {"ss_v2": "True"})
    network = read_network(tmp_path / "a.safetensors")
    with merged_networks(tiny, [(network, 1, 1)]) as (report,):
        assert len(report.applied) == 4
        assert sorted(report.passed_over.values())[0].startswith("the webui applies this encoder's q, k, v and out")
    with merged_networks(tiny, [(network, 1, 1)], "reference") as (report,):
        assert len(report.applied) == 7
        assert not report.passed_over


WRONG_USES = [
    (lambda n: [(n, float("nan"), 1)], "finite number"),
    (lambda n: [(n, 1, float("inf"))], "finite number"),
    (lambda n: [(n, 1, 1, -1)], "count of components"),
    (lambda n: [(n, 1)], "read_network"),
    (lambda n: [("a.safetensors", 1, 1)], "read_network"),
    (lambda n: [(n, 1, 1, {"IN1": 1})], "IN11|IN01"),
    (lambda n: [(n, 1, 1, [1, 2])], "17 blocks"),
]


@pytest.mark.parametrize(("uses", "says"), WRONG_USES)
def test_uses_that_cannot_be_meant_raise(tiny, tmp_path, uses, says):
    with pytest.raises(ValueError, match=says):
        with merged_networks(tiny, uses(lora(tmp_path / "a.safetensors"))):
            pass


def test_unknown_semantics_raise_with_the_near_one(tiny, tmp_path):
    with pytest.raises(ValueError, match="'webui' is meant"):
        with merged_networks(tiny, [], "webu"):
            pass


def test_a_file_for_another_base_says_so(tiny, tmp_path):
    save_file({"lora_te2_text_model_encoder_layers_0_mlp_fc1.diff": torch.ones(4, 4)}, tmp_path / "xl.safetensors")
    with pytest.raises(NetworkError, match=r"another base model \(SDXL\)"):
        with merged_networks(tiny, [(read_network(tmp_path / "xl.safetensors"), 1, 1)]):
            pass


def test_a_quantised_model_is_refused(tmp_path):
    layer = torch.nn.Linear(32, 32)
    layer.weight = torch.nn.Parameter(torch.zeros(32, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(NetworkError, match="quantised"):
        with merged_networks(SimpleNamespace(unet=nested(TO_Q, layer)), [(lora(tmp_path / "a.safetensors"), 0, 1)]):
            pass
