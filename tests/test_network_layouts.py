"""Layouts of other tools, merged and as adapters, on SD1, SD2 and SDXL; and files that this model cannot use."""

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file
from tiny_models import pipeline_with_copies
from webui_diffusers.loaders import NetworkError
from webui_diffusers.loaders.lora.merge import merged_networks
from webui_diffusers.loaders.lora.peft_adapters import attach_network
from webui_diffusers.loaders.lora.read import read_network


@pytest.fixture(scope="module")
def pipes():
    return {
        "sd": pipeline_with_copies(StableDiffusionPipeline, "tiny-sd"),
        "xl": pipeline_with_copies(StableDiffusionXLPipeline, "tiny-sdxl-e2e"),
    }


DOWN = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
DOWN_SD = DOWN.replace(".1.", ".0.", 1)
ORIGINAL = "input_blocks.4.1.transformer_blocks.0.attn1.to_q"
ORIGINAL_SD = ORIGINAL.replace(".4.", ".1.", 1)
OUT = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"
UP_DOWN, AB = ("lora_up.weight", "lora_down.weight"), ("lora_B.weight", "lora_A.weight")

# who writes it, model, layer in the file, names of the factors, component, module
LAYOUTS = [
    ("OneTrainer", "sd", f"unet.{ORIGINAL_SD}", UP_DOWN, "unet", DOWN_SD),
    ("OneTrainer", "xl", f"unet.{ORIGINAL}", UP_DOWN, "unet", DOWN),
    ("OneTrainer", "xl", "unet.label_emb.0.0", UP_DOWN, "unet", "add_embedding.linear_1"),
    ("OneTrainer", "xl", "unet.output_blocks.2.2.conv", UP_DOWN, "unet", "up_blocks.0.upsamplers.0.conv"),
    ("OneTrainer", "sd", f"clip_l.{TEXT}", UP_DOWN, "text_encoder", TEXT),
    ("OneTrainer", "xl", f"clip_g.{TEXT}", UP_DOWN, "text_encoder_2", TEXT),
    ("OneTrainer", "xl", "clip_g.text_projection", UP_DOWN, "text_encoder_2", "text_projection"),
    ("ComfyUI", "sd", f"diffusion_model.{ORIGINAL_SD}", UP_DOWN, "unet", DOWN_SD),
    ("ComfyUI", "xl", f"diffusion_model.{ORIGINAL}", AB, "unet", DOWN),
    ("ComfyUI", "sd", f"text_encoders.clip_h.transformer.{TEXT}", UP_DOWN, "text_encoder", TEXT),
    ("ComfyUI", "xl", f"text_encoders.clip_l.transformer.{TEXT}", UP_DOWN, "text_encoder", TEXT),
    ("ComfyUI", "xl", f"text_encoders.clip_g.transformer.{TEXT}", AB, "text_encoder_2", TEXT),
    ("SimpleTuner", "sd", f"unet.base_model.model.{DOWN_SD}", AB, "unet", DOWN_SD),
    ("SimpleTuner", "xl", f"unet.base_model.model.{DOWN}", ("lora.up.weight", "lora.down.weight"), "unet", DOWN),
    ("diffusers", "xl", f"text_encoder_2.{TEXT}", AB, "text_encoder_2", TEXT),
    ("diffusers", "sd", f"text_encoder.{TEXT.removeprefix('text_model.')}", AB, "text_encoder", TEXT),
    ("PEFT", "sd", f"unet.{DOWN_SD}", ("lora_B.style.weight", "lora_A.style.weight"), "unet", DOWN_SD),
    ("PEFT", "xl", f"unet.{DOWN}", ("lora_B.default_0.weight", "lora_A.default_0.weight"), "unet", DOWN),
    ("diffusers 0.18", "sd", f"unet.{OUT.removesuffix('.to_out.0')}.processor.to_out_lora",
     ("up.weight", "down.weight"), "unet", OUT),
]  # fmt: skip


def module(pipe, component, path):
    model = getattr(pipe, component)
    bare = component != "unet" and not hasattr(model, "text_model")
    return model.get_submodule(path.removeprefix("text_model.") if bare else path)


def factors(weight, seed=0):
    draw = torch.Generator().manual_seed(seed)
    up = torch.randn(len(weight), 4, *[1] * (weight.ndim - 2), generator=draw)
    return up, torch.randn(4, *weight.shape[1:], generator=draw) * 0.1


@pytest.mark.parametrize(
    ("kind", "layer", "parts", "component", "path"),
    [row[1:] for row in LAYOUTS],
    ids=[f"{row[0]}-{row[1]}-{row[4]}" for row in LAYOUTS],
)
def test_a_layout_means_the_same_merged_and_as_an_adapter(pipes, tmp_path, kind, layer, parts, component, path):
    pipe, place = pipes[kind], module(pipes[kind], component, path)
    before = place.weight.detach().clone()
    up, down = factors(before)
    tensors = {f"{layer}.{parts[0]}": up, f"{layer}.{parts[1]}": down, f"{layer}.alpha": torch.tensor(2.0)}
    save_file(tensors, tmp_path / "a.safetensors")
    network = read_network(tmp_path / "a.safetensors")
    wanted = before + 0.4 * (up.flatten(1) @ down.flatten(1)).view(before.shape)
    with merged_networks(pipe, [(network, 0.8, 0.8)], "auto"):
        torch.testing.assert_close(place.weight.detach(), wanted)
    assert torch.equal(place.weight, before)
    attach_network(pipe, network, "x")
    try:
        tuner = module(pipe, component, path)
        delta = tuner.get_delta_weight("x")
        torch.testing.assert_close(before + 0.8 * delta.detach(), wanted)
    finally:
        pipe.unload_lora_weights()


def test_dora_of_onetrainer_has_the_rule_of_its_shape_and_pefts_has_pefts(pipes, tmp_path):
    pipe, place = pipes["sd"], module(pipes["sd"], "unet", DOWN_SD)
    before, (up, down) = place.weight.detach().clone(), factors(place.weight)
    lengths = torch.rand(before.shape[1], generator=torch.Generator().manual_seed(1)) + 0.5
    whole = before + up @ down
    cases = {
        "dora_scale": (lengths[None], whole * lengths / whole.norm(dim=0, keepdim=True)),
        "lora_magnitude_vector.default": (lengths, whole * lengths[:, None] / whole.norm(dim=1, keepdim=True)),
    }
    for part, (value, wanted) in cases.items():
        tensors = {f"unet.{DOWN_SD}.lora_up.weight": up, f"unet.{DOWN_SD}.lora_down.weight": down}
        save_file({**tensors, f"unet.{DOWN_SD}.{part}": value}, tmp_path / "a.safetensors")
        with merged_networks(pipe, [(read_network(tmp_path / "a.safetensors"), 1, 1)], "auto"):
            torch.testing.assert_close(place.weight.detach(), wanted)


def lora_file(path, layers, metadata=None, rank=4):
    tensors = {}
    for name, (out, into) in layers.items():
        tensors[f"{name}.lora_up.weight"] = torch.ones(out, rank)
        tensors[f"{name}.lora_down.weight"] = torch.ones(rank, into)
    save_file(tensors, path, metadata)
    return read_network(path)


CLIP_L = f"lora_te1_{TEXT.replace('.', '_')}"
CLIP_G = CLIP_L.replace("te1", "te2")
UNET = "lora_unet_" + DOWN_SD.replace(".", "_")

# what it is, layers beside CLIP-L's, metadata, what the message says
FOREIGN = [
    ("Flux by metadata", {"lora_unet_blocks_0_qkv": (8, 8)}, {"ss_base_model_version": "flux1"}, "network for Flux"),
    ("Flux by keys", {"lora_unet_double_blocks_0_img_attn_qkv": (8, 8)}, {}, "network for Flux"),
    ("Flux in diffusers' layout", {"transformer.single_transformer_blocks.0.attn.to_q": (8, 8)}, {}, "for Flux"),
    ("SD3", {"lora_unet_joint_blocks_0_x": (8, 8)}, {}, "network for SD3"),
    ("another one", {"lora_transformer_blocks_0_x": (8, 8)}, {}, "another architecture"),
    ("another one with dots", {"diffusion_model.blocks.0.x": (8, 8)}, {}, "another architecture"),
    ("SDXL, text only", {CLIP_G: (8, 8)}, {}, "network for SDXL"),
]


@pytest.mark.parametrize(("layers", "metadata", "says"), [row[1:] for row in FOREIGN], ids=[row[0] for row in FOREIGN])
def test_a_network_of_which_only_a_foreign_part_fits_is_refused(pipes, tmp_path, layers, metadata, says):
    network = lora_file(tmp_path / "a.safetensors", {CLIP_L: (32, 32), **layers}, metadata)
    before = module(pipes["sd"], "text_encoder", TEXT).weight.detach().clone()
    for semantics in ("webui", "auto", "reference"):
        with pytest.raises(NetworkError, match=says):
            with merged_networks(pipes["sd"], [(network, 1, 1)], semantics):
                pytest.fail("it was applied")
    with pytest.raises(NetworkError, match=says):
        attach_network(pipes["sd"], network, "x")
    assert torch.equal(module(pipes["sd"], "text_encoder", TEXT).weight, before)


def test_a_network_that_the_webui_passes_over_whole_names_what_would_apply_it(pipes, tmp_path):
    layers = {f"lora_te2_text_model_encoder_layers_0_self_attn_{part}_proj": (48, 48) for part in "qv"}
    width = pipes["xl"].text_encoder_2.config.hidden_size
    network = lora_file(tmp_path / "a.safetensors", dict.fromkeys(layers, (width, width)))
    with pytest.raises(NetworkError, match='all four or not at all.*lora_backend="reference"'):
        with merged_networks(pipes["xl"], [(network, 1, 1)], "auto"):
            pytest.fail("it was applied")
    with merged_networks(pipes["xl"], [(network, 0, 0)], "auto") as (report,):  # asked for at no strength
        assert not report.applied
    with merged_networks(pipes["xl"], [(network, 1, 1)], "reference") as (report,):
        assert len(report.applied) == 2
    with merged_networks(pipes["xl"], [(network, 1, 1)], "webui") as (report,):  # its rules, asked for by name
        assert len(report.passed_over) == 2


def test_a_layer_of_rank_0_costs_itself_and_a_file_of_such_layers_is_refused(pipes, tmp_path):
    tensors = {f"{UNET}.lora_up.weight": torch.ones(32, 0), f"{UNET}.lora_down.weight": torch.ones(0, 32)}
    save_file(tensors, tmp_path / "none.safetensors")
    other = UNET.replace("to_q", "to_k")
    more = {f"{other}.lora_up.weight": torch.ones(32, 1), f"{other}.lora_down.weight": torch.ones(1, 32)}
    save_file({**tensors, **more}, tmp_path / "one.safetensors")
    with merged_networks(pipes["sd"], [(read_network(tmp_path / "one.safetensors"), 1, 1)]) as (report,):
        assert report.applied == [other]
        assert "rank of 0" in report.passed_over[UNET]
    with pytest.raises(NetworkError, match="none of its 1 layers is applied"):
        with merged_networks(pipes["sd"], [(read_network(tmp_path / "none.safetensors"), 1, 1)], "auto"):
            pytest.fail("it was applied")


def test_a_pipeline_without_a_unet_takes_what_is_for_its_text_encoder(pipes, tmp_path):
    network = lora_file(tmp_path / "a.safetensors", {CLIP_L: (32, 32), UNET: (32, 32)})
    part = SimpleNamespace(text_encoder=pipes["sd"].text_encoder)
    with merged_networks(part, [(network, 1, 1)]) as (report,):
        assert report.applied == [CLIP_L]


# --- networks for a ControlNet


def unet_width(pipes):
    return tuple(module(pipes["sd"], "unet", DOWN_SD).weight.shape)


@pytest.mark.parametrize(
    "name",
    [f"lora_controlnet_{DOWN_SD.replace('.', '_')}", f"controlnet.{DOWN_SD}", "control_model.zero_convs.0.0"],
)
def test_layers_for_a_controlnet_beside_others_are_told_and_the_others_applied(pipes, tmp_path, caplog, name):
    network = lora_file(tmp_path / "both.safetensors", {UNET: unet_width(pipes), name: (8, 8)})
    place = module(pipes["sd"], "unet", DOWN_SD)
    before = place.weight.detach().clone()
    with merged_networks(pipes["sd"], [(network, 1, 1)]) as (report,):
        assert not torch.equal(place.weight, before)
    (told,) = report.passed_over
    assert report.applied == [UNET] and "ControlNet" in report.passed_over[told] and told in caplog.text


@pytest.mark.parametrize(
    "layers",
    [
        {f"lora_controlnet_{DOWN_SD.replace('.', '_')}": (8, 8)},
        {f"controlnet.{DOWN_SD}": (8, 8)},
        {"controlnet_down_blocks.0": (8, 8), DOWN_SD: (8, 8)},  # of a ControlNet alone: no component is named
        {"lycoris_controlnet_mid_block": (8, 8), f"lycoris_{DOWN_SD.replace('.', '_')}": (8, 8)},
    ],
    ids=["kohya", "dotted", "peft", "lycoris"],
)
def test_a_file_for_a_controlnet_alone_is_refused_and_nothing_applied(pipes, tmp_path, layers):
    network = lora_file(tmp_path / "control.safetensors", layers)
    before = module(pipes["sd"], "unet", DOWN_SD).weight.detach().clone()
    for apply in (lambda: merged_networks(pipes["sd"], [(network, 1, 1)]).__enter__(),
                  lambda: attach_network(pipes["sd"], network, "x")):  # fmt: skip
        with pytest.raises(NetworkError, match="control.safetensors.*network for a ControlNet.*add_controlnet"):
            apply()
    assert torch.equal(module(pipes["sd"], "unet", DOWN_SD).weight, before)


def test_an_adapter_that_peft_wrote_for_a_controlnet_is_told_by_its_configuration(pipes, tmp_path):
    out, into = unet_width(pipes)
    tensors = {f"base_model.model.{DOWN_SD}.lora_A.weight": torch.ones(2, into)}
    tensors[f"base_model.model.{DOWN_SD}.lora_B.weight"] = torch.ones(out, 2)
    mapping = {"base_model_class": "ControlNetModel", "parent_library": "diffusers.models.controlnets.controlnet"}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "auto_mapping": mapping}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(NetworkError, match="adapter of a ControlNetModel"):
        read_network(tmp_path)
    for component in ("unet", "controlnet"):
        folder = tmp_path / "both" / component
        folder.mkdir(parents=True)
        save_file(tensors, folder / "adapter_model.safetensors")
        mapped = {**config, "auto_mapping": mapping if component == "controlnet" else None}
        (folder / "adapter_config.json").write_text(json.dumps(mapped), encoding="utf-8")
    with merged_networks(pipes["sd"], [(read_network(tmp_path / "both"), 1, 1)], "auto") as (report,):
        assert report.applied == [f"unet.{DOWN_SD}"] and list(report.passed_over) == [f"controlnet.{DOWN_SD}"]


@pytest.mark.parametrize(
    ("key", "kind"), [("lllite_unet_x.down.0.weight", "a ControlLLLite"), ("lora_controlnet", "a Control-LoRA")]
)
def test_what_reads_a_control_image_is_no_network(tmp_path, key, kind):
    save_file({key: torch.ones(2)}, tmp_path / "control.safetensors")
    with pytest.raises(NetworkError, match=kind):
        read_network(tmp_path / "control.safetensors")
