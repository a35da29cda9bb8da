"""Layer names of network files against real module trees, at full size on the meta device."""

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from recordings import GOLDEN
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from webui_diffusers.loaders.lora.targets import PipeLayers, original_unet_name


LORA = GOLDEN / "lora"

SDXL_UNET = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": (320, 640, 1280),
    "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "projection_class_embeddings_input_dim": 2816,
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
}
UNETS = {
    "sd1": {"cross_attention_dim": 768},
    "sd2": {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
    "sdxl": SDXL_UNET,
}


def clip(cls, width, layers):
    heads = width // 64
    return cls(
        CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            projection_dim=width,
        )
    )


@pytest.fixture(scope="module")
def pipes():
    """SD1.5, SD2.1 and SDXL without their weights."""
    with torch.device("meta"):
        found = {base: SimpleNamespace(unet=UNet2DConditionModel(**config)) for base, config in UNETS.items()}
        found["sd1"].text_encoder = clip(CLIPTextModel, 768, 12)
        found["sd2"].text_encoder = clip(CLIPTextModel, 1024, 23)
        found["sdxl"].text_encoder = clip(CLIPTextModel, 768, 12)
        found["sdxl"].text_encoder_2 = clip(CLIPTextModelWithProjection, 1280, 32)
    return found


# diffusers' path, the original code's name
ORIGINAL = [
    ("conv_in", "input_blocks_0_0"),
    ("conv_out", "out_2"),
    ("conv_norm_out", "out_0"),
    ("time_embedding.linear_2", "time_embed_2"),
    ("add_embedding.linear_1", "label_emb_0_0"),
    ("down_blocks.0.resnets.1.conv1", "input_blocks_2_0_in_layers_2"),
    ("down_blocks.1.downsamplers.0.conv", "input_blocks_6_0_op"),
    ("mid_block.resnets.1.conv2", "middle_block_2_out_layers_3"),
    ("mid_block.attentions.0.proj_in", "middle_block_1_proj_in"),
    ("up_blocks.0.upsamplers.0.conv", "output_blocks_2_1_conv"),
    ("up_blocks.2.attentions.1.transformer_blocks.0.ff.net.2", "output_blocks_7_1_transformer_blocks_0_ff_net_2"),
]


@pytest.mark.parametrize(("path", "name"), ORIGINAL)
def test_a_module_has_its_name_of_the_original_code(path, name):
    assert original_unet_name(path, up_slot=1) == name


KEYMAP = json.loads((LORA / "keymap.json").read_text()) if (LORA / "keymap.json").is_file() else {}


@pytest.mark.goldens
@pytest.mark.parametrize("base", KEYMAP)
def test_every_name_finds_the_module_that_it_means_and_the_webui_leaves_out_the_same(pipes, base):
    layers = PipeLayers(pipes[base])
    for name, wanted in KEYMAP[base]["map"].items():
        target = layers.target(name)
        meant = wanted or KEYMAP[base]["means"][name]
        assert f"{target.component}.{target.path}" == meant, name
        assert bool(target.passed_over) == (wanted is None), name


@pytest.mark.parametrize("base", ["sd1", "sd2", "sdxl"])
def test_no_module_of_the_unet_goes_without_a_name(pipes, base):
    layers = PipeLayers(pipes[base])
    for component, path in layers.modules:
        dotted = layers.target(f"{component}.{path}")
        assert (dotted.component, dotted.path) == (component, path)
        if component == "unet":
            assert layers.target(f"lora_unet_{path.replace('.', '_')}").path == path


def test_the_base_is_read_off_the_models(pipes):
    assert [PipeLayers(pipes[base]).base for base in ("sd1", "sd2", "sdxl")] == ["SD1", "SD2", "SDXL"]


@pytest.mark.parametrize(
    ("base", "labels"),
    [("sd1", ("IN", range(12), "OUT", range(12))), ("sdxl", ("IN", range(9), "OUT", range(9)))],
)
def test_modules_fall_into_the_blocks_that_users_know(pipes, base, labels):
    layers = PipeLayers(pipes[base])
    down, downs, up, ups = labels
    wanted = {f"{down}{i:02d}" for i in downs} | {f"{up}{i:02d}" for i in ups} | {"M00", "BASE", ""}
    assert {layers.block(layers.target(f"{component}.{path}")) for component, path in layers.modules} == wanted


def test_text_encoders_of_every_transformers_are_the_same(pipes):
    """Before 5.6, CLIPTextModel keeps its layers under `text_model`."""
    encoder = pipes["sd1"].text_encoder
    inner = getattr(encoder, "text_model", encoder)
    old = torch.nn.Module()
    old.text_model = inner
    for model in (old, inner):
        layers = PipeLayers(SimpleNamespace(unet=pipes["sd1"].unet, text_encoder=model))
        target = layers.target("lora_te_text_model_encoder_layers_3_mlp_fc1")
        assert target.path == "text_model.encoder.layers.3.mlp.fc1"


def test_kohyas_oft_is_read_by_original_names_only(pipes):
    layers = PipeLayers(pipes["sdxl"])
    assert not layers.target("oft_unet_input_blocks_4_1_proj_in").passed_over
    assert "original names" in layers.target("oft_unet_down_blocks_1_attentions_0_proj_in").passed_over


def test_names_of_other_models_find_nothing(pipes):
    layers = PipeLayers(pipes["sdxl"])
    for name in ("lora_te_text_model_encoder_layers_0_mlp_fc1", "lora_unet_double_blocks_0_img_attn_qkv", "x", ""):
        assert layers.target(name) is None


def test_lycoris_own_prefix_is_understood_though_the_webui_does_not(pipes):
    target = PipeLayers(pipes["sd1"]).target("lycoris_down_blocks_0_attentions_0_proj_in")
    assert target.path == "down_blocks.0.attentions.0.proj_in"
    assert target.foreign
    assert target.passed_over
