"""Families of networks: the formulas, against the libraries that define them."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from webui_diffusers.loaders.lora.families import LayerStrength, changed_weight, low_rank_factors, weight_delta
from webui_diffusers.loaders.lora.merge import merged_networks
from webui_diffusers.loaders.lora.read import read_network


ONE = LayerStrength(strength=1.0, scale=1.0)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


# family, parts, weight, the change at strength 1 and scale 1
W = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
V = torch.tensor([10.0, 100.0])
FORMULAS = [
    ("lora", {"lora_up.weight": V[:, None], "lora_down.weight": V[None]}, V[:, None] * V),
    ("loha", {"hada_w1_a": W, "hada_w1_b": torch.eye(2), "hada_w2_a": torch.eye(2), "hada_w2_b": W}, W * W),
    ("lokr", {"lokr_w1": torch.tensor([[2.0]]), "lokr_w2": W}, 2 * W),
    ("full", {"diff": W}, W),
    ("ia3", {"weight": V, "on_input": torch.tensor(1)}, torch.tensor([[10.0, 200.0], [30.0, 400.0]])),
    ("ia3", {"weight": V, "on_input": torch.tensor(0)}, torch.tensor([[10.0, 20.0], [300.0, 400.0]])),
    ("oft", {"oft_diag": torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])}, W.flip(0) - W),
    ("full", {"diff": W, "bias": W}, 2 * W),
]


@pytest.mark.parametrize(("family", "parts", "delta"), FORMULAS)
def test_a_family_changes_a_weight_by_its_formula(family, parts, delta):
    assert torch.equal(weight_delta(family, parts, W, ONE), delta)
    half = LayerStrength(strength=0.5, scale=0.5)
    torch.testing.assert_close(changed_weight(family, parts, W, half), W + 0.25 * delta)


def test_a_norm_is_a_weight_of_one_axis():
    assert torch.equal(changed_weight("norm", {"w_norm": V}, torch.ones(2), ONE), V + 1)


def test_glora_of_both_generations_is_told_by_its_shapes():
    weight, a, b, c, d = randn(5, 7), randn(7, 3), randn(3, 7), randn(5, 3), randn(3, 7, seed=1)
    new = {"a1.weight": a, "a2.weight": b, "b1.weight": c, "b2.weight": d}
    old = {"a1.weight": b, "a2.weight": a, "b1.weight": d, "b2.weight": c}
    for parts in (new, old):
        torch.testing.assert_close(weight_delta("glora", parts, weight, ONE), weight @ a @ b + c @ d)


def test_dora_in_the_webui_is_normalised_over_its_input_axis():
    weight, delta, d = randn(4, 3), randn(4, 3, seed=1), randn(1, 3).abs()
    how = LayerStrength(strength=0.7, scale=0.5)
    whole = weight + 0.5 * delta
    expected = weight + 0.7 * (whole * d / whole.norm(dim=0, keepdim=True) - weight)
    torch.testing.assert_close(changed_weight("full", {"diff": delta, "dora_scale": d}, weight, how), expected)


def test_dora_of_the_reference_is_normalised_over_the_axis_that_the_file_has():
    weight, delta = randn(4, 4), randn(4, 4, seed=1)
    how = LayerStrength(strength=0.7, scale=0.5, reference=True)
    whole = weight + 0.5 * delta
    for shape, axis in (((1, 4), 0), ((4, 1), 1)):
        d = randn(*shape).abs()
        expected = whole * (0.7 * (d / whole.norm(dim=axis, keepdim=True) - 1) + 1)
        torch.testing.assert_close(changed_weight("full", {"diff": delta, "dora_scale": d}, weight, how), expected)


def test_dyn_keeps_the_first_components_and_leaves_a_tucker_core_alone():
    parts = {"lora_up.weight": randn(6, 4), "lora_down.weight": randn(4, 5)}
    up, down = low_rank_factors(parts, ONE._replace(dyn=2))
    assert torch.equal(up @ down, parts["lora_up.weight"][:, :2] @ parts["lora_down.weight"][:2])
    parts |= {"lora_mid.weight": randn(4, 4, 3, 3)}
    assert torch.equal(*(math.prod(low_rank_factors(parts, how)[1:]) for how in (ONE, ONE._replace(dyn=2))))


# --- against LyCORIS: its own modules, its own forward ---

TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.0.resnets.0.conv1"
LYCORIS = [
    ("lora", {}),
    ("lora", {"use_tucker": True}),
    ("lora", {"weight_decompose": True, "wd_on_out": True}),
    ("lora", {"weight_decompose": True, "wd_on_out": False}),
    ("loha", {}),
    ("loha", {"use_tucker": True}),
    ("loha", {"weight_decompose": True}),
    ("lokr", {"factor": 4}),
    ("lokr", {"factor": 4, "decompose_both": True}),
    ("lokr", {"factor": 4, "use_tucker": True}),
    ("lokr", {"factor": 4, "full_matrix": True}),
    ("lokr", {"factor": 4, "weight_decompose": True}),
    ("full", {}),
    ("glora", {}),
    ("diag-oft", {}),
    ("diag-oft", {"constraint": 0.01, "rescaled": True}),
    ("boft", {}),
    ("boft", {"rescaled": True}),
    ("ia3", {"train_on_input": True}),
    ("ia3", {"train_on_input": False}),
]


def _lycoris_wrapper():
    try:
        return pytest.importorskip("lycoris.wrapper")
    except ValueError as error:  # of today's LyCORIS with torch 2.6
        pytest.skip(f"this LyCORIS does not work with this torch: {error}")


def lycoris_module(algo, options, layer, name):
    """A LyCORIS module in the place of `layer`, every parameter random."""
    wrapper = _lycoris_wrapper()
    arguments = {"alpha": 2} if algo not in ("diag-oft", "boft") else {}
    if "constraint" in options:
        options = options | {"alpha": 0}
    torch.manual_seed(3)
    module = wrapper.network_module_dict[algo](name, layer, 1.0, lora_dim=4, **arguments, **options)
    module.apply_to()
    for key, value in module.named_parameters():
        about_zero = algo != "full" and "dora" not in key
        value.data = (0 if about_zero else value.data) + 0.2 * torch.randn_like(value)
    return module


def nested(path, layer):
    root = module = torch.nn.Module()
    *steps, last = path.split(".")
    for step in steps:
        module.add_module(step, torch.nn.Module())
        module = getattr(module, step)
    module.add_module(last, layer)
    return root


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("path", [TO_Q, CONV])
@pytest.mark.parametrize(("algo", "options"), LYCORIS, ids=lambda value: str(value))
def test_a_file_that_lycoris_writes_acts_as_it_acts_there(tmp_path, algo, options, path, strength):
    torch.manual_seed(1)
    layer = torch.nn.Linear(32, 64) if path == TO_Q else torch.nn.Conv2d(32, 64, 3, padding=1)
    name = f"lora_unet_{path.replace('.', '_')}"
    x = torch.randn(2, 32) if path == TO_Q else torch.randn(1, 32, 8, 8)
    plain = layer(x).detach()
    module = lycoris_module(algo, options, layer, name)
    parts = module.custom_state_dict() or module.state_dict()
    state = {f"{name}.{part}": value.detach().clone().contiguous() for part, value in parts.items()}
    save_file(state, tmp_path / "a.safetensors", {"ss_network_module": "lycoris.kohya"})
    module.multiplier = strength
    expected = layer(x).detach()
    module.restore()
    assert not torch.allclose(expected, plain, atol=1e-3)
    network = read_network(tmp_path / "a.safetensors")
    with merged_networks(SimpleNamespace(unet=nested(path, layer)), [(network, 0, strength)], "reference"):
        torch.testing.assert_close(layer(x).detach(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(layer(x), plain)


# --- properties ---


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), strength=st.floats(0, 2), stages=st.integers(0, 3))
def test_a_rotation_keeps_every_columns_length(seed, strength, stages):
    """At strength 1 for the webui; the reference blends the rotation instead and need not."""
    torch.manual_seed(seed)
    weight = torch.randn(16, 5)
    blocks = torch.randn(stages, 4, 4, 4) if stages else torch.randn(4, 4, 4)
    turned = changed_weight("oft", {"oft_blocks": blocks}, weight, ONE)
    torch.testing.assert_close(turned.norm(dim=0), weight.norm(dim=0), rtol=1e-3, atol=1e-3)
    blended = changed_weight("oft", {"oft_blocks": blocks}, weight, ONE._replace(strength=strength))
    torch.testing.assert_close(blended, torch.lerp(weight, turned, strength), rtol=1e-3, atol=1e-3)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), limit=st.floats(1e-3, 1e-1))
def test_the_constraint_bounds_the_rotation(seed, limit):
    torch.manual_seed(seed)
    weight, parts = torch.randn(8, 3), {"oft_blocks": torch.randn(2, 4, 4)}
    small = changed_weight("oft", parts, weight, ONE._replace(alpha=limit))
    # |R - I| <= 2 |Q| (1 + ...) for small Q, |Q| <= alpha * out
    assert (small - weight).norm() <= 2.5 * limit * 8 * weight.norm()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), strength=st.floats(-2, 2), reference=st.booleans())
@pytest.mark.parametrize("family", ["lora", "loha", "lokr", "full"])
def test_additive_families_are_linear_in_the_strength(family, seed, strength, reference):
    torch.manual_seed(seed)
    parts = {
        "lora": {"lora_up.weight": torch.randn(6, 2), "lora_down.weight": torch.randn(2, 4)},
        "loha": {f"hada_w{h}_{s}": torch.randn(*((6, 2) if s == "a" else (2, 4))) for h in "12" for s in "ab"},
        "lokr": {"lokr_w1": torch.randn(2, 2), "lokr_w2": torch.randn(3, 2)},
        "full": {"diff": torch.randn(6, 4)},
    }[family]  # fmt: skip
    weight, how = torch.randn(6, 4), LayerStrength(1.0, 0.5, reference=reference)
    once = changed_weight(family, parts, weight, how) - weight
    times = changed_weight(family, parts, weight, how._replace(strength=strength)) - weight
    torch.testing.assert_close(times, strength * once, rtol=1e-4, atol=1e-4)
