"""read_network: every naming and every layout, as one description; broken files as one exception."""

import json
import os
import pickle
import struct
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import GOLDEN
from safetensors.torch import save, save_file
from webui_diffusers.loaders import NetworkError
from webui_diffusers.loaders.lora.adapter_config import AdapterConfig, pattern_names
from webui_diffusers.loaders.lora.families.table import layer_family
from webui_diffusers.loaders.lora.keys import split_network_key
from webui_diffusers.loaders.lora.merge import merged_networks
from webui_diffusers.loaders.lora.read import read_network
from webui_diffusers.loaders.weight_files import WeightFileError, open_weights, read_pickle


LORA = GOLDEN / "lora"
TO_Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
PATH = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


# key -> layer, part
KEYS = [
    (f"{TO_Q}.lora_up.weight", TO_Q, "lora_up.weight"),
    (f"{TO_Q}.hada_w1_a", TO_Q, "hada_w1_a"),
    ("lora_te1_text_projection.alpha", "lora_te1_text_projection", "alpha"),
    (f"unet.{PATH}.lora_A.weight", f"unet.{PATH}", "lora_down.weight"),
    (f"unet.{PATH}.lora_B.weight", f"unet.{PATH}", "lora_up.weight"),
    (f"unet.{PATH}.lora_magnitude_vector", f"unet.{PATH}", "dora_scale"),
    (f"unet.{PATH}.lora.up.weight", f"unet.{PATH}", "lora_up.weight"),
    (f"base_model.model.{PATH}.lora_A.weight", f"unet.{PATH}", "lora_down.weight"),
    ("base_model.model.text_model.a.lora_B.weight", "text_encoder.text_model.a", "lora_up.weight"),
    ("text_encoder_2.text_model.a.lora_linear_layer.down.weight", "text_encoder_2.text_model.a", "lora_down.weight"),
    ("unet.mid_block.attn1.processor.to_q_lora.down.weight", "unet.mid_block.attn1.to_q", "lora_down.weight"),
    ("mid_block.attn1.processor.to_out_lora.up.weight", "unet.mid_block.attn1.to_out.0", "lora_up.weight"),
    (f"unet.base_model.model.{PATH}.lora_A.weight", f"unet.{PATH}", "lora_down.weight"),
    (f"base_model.model.unet.{PATH}.lora_B.style.weight", f"unet.{PATH}", "lora_up.weight"),
    (f"unet.{PATH}.lora_B.style.bias", f"unet.{PATH}", "lora_up.bias"),
    (f"unet.{PATH}.lora_magnitude_vector.style", f"unet.{PATH}", "dora_scale"),
    (f"unet.{PATH}.lora_magnitude_vector.style.weight", f"unet.{PATH}", "dora_scale"),
    (f"base_model.model.{PATH}.lokr_w2_a.style", f"unet.{PATH}", "lokr_w2_a"),
    (f"base_model.model.{PATH}.hada_t1.style", f"unet.{PATH}", "hada_t1"),
    ("unet.mid_block.attn1.processor.to_q_lora.alpha", "unet.mid_block.attn1.to_q", "alpha"),
    ("diffusion_model.out.2.diff_b", "unet.out.2", "diff_b"),
    ("model.diffusion_model.input_blocks.0.0.alpha", "unet.input_blocks.0.0", "alpha"),
    ("middle_block.1.proj_in.lora_up.weight", "unet.middle_block.1.proj_in", "lora_up.weight"),
    ("clip_l.text_model.a.dora_scale", "text_encoder.text_model.a", "dora_scale"),
    ("clip_g.text_projection.lora_down.weight", "text_encoder_2.text_projection", "lora_down.weight"),
    ("text_encoders.clip_g.transformer.text_model.a.lora_A.weight", "text_encoder_2.text_model.a", "lora_down.weight"),
    ("transformer.single_blocks.0.lora_A.weight", "transformer", "single_blocks.0.lora_A.weight"),
    ("totally.unknown.key", "totally", "unknown.key"),
]


@pytest.mark.parametrize(("key", "layer", "part"), KEYS)
def test_a_key_is_a_layer_and_a_part(key, layer, part):
    assert split_network_key(key) == (layer, part)


# parts -> family, whether the webui refuses the file
FAMILIES = [
    ("lora_up.weight lora_down.weight alpha", "lora", False),
    ("lora_up.weight lora_down.weight lora_mid.weight dora_scale", "lora", False),
    ("hada_w1_a hada_w1_b hada_w2_a hada_w2_b hada_t1 hada_t2", "loha", False),
    ("weight on_input", "ia3", False),
    ("lokr_w1 lokr_w2", "lokr", False),
    ("lokr_w1_a lokr_w1_b lokr_w2_a lokr_w2_b lokr_t2", "lokr", False),
    ("diff diff_b", "full", False),
    ("diff_b", "full", True),
    ("w_norm b_norm", "norm", False),
    ("w_norm", "norm", True),
    ("a1.weight a2.weight b1.weight b2.weight alpha", "glora", False),
    ("a1.weight a2.weight b1.weight b2.weight", "glora", True),
    ("oft_blocks alpha rescale", "oft", False),
    ("oft_diag", "oft", False),
]


@pytest.mark.parametrize(("parts", "family", "refused"), FAMILIES)
def test_the_parts_make_the_family(parts, family, refused):
    found, why = layer_family(parts.split())
    assert (found, bool(why)) == (family, refused)


@pytest.mark.parametrize(
    "parts", ["lora_up.weight alpha", "weight", "lokr_w1 lokr_w2_a", "alpha dora_scale", "mystery"]
)
def test_parts_that_are_no_family_make_none(parts):
    assert layer_family(parts.split()) is None


def pair(out=32, into=32, rank=4, **more):
    return {"lora_up.weight": torch.randn(out, rank), "lora_down.weight": torch.randn(rank, into), **more}


def write(path, layers, metadata=None):
    tensors = {f"{layer}.{part}": value for layer, parts in layers.items() for part, value in parts.items()}
    save_file(tensors, path, metadata)
    return path


def test_a_network_describes_itself(tmp_path):
    metadata = {
        "ss_base_model_version": "sd_v1",
        "ss_output_name": "moxin",
        "ss_tag_frequency": json.dumps({"a": {"ink": 3, "bird": 9}, "b": {"ink": 8}}),
    }
    layers = {TO_Q: pair(alpha=torch.tensor(2.0)), "lora_te_text_model_encoder_layers_0_mlp_fc1": pair(64, 32, rank=8)}
    layers["lora_unet_conv_norm_out"] = {"w_norm": torch.ones(32), "b_norm": torch.ones(32)}
    network = read_network(write(tmp_path / "moxin.safetensors", layers, metadata))
    assert network.name == "moxin"
    assert network.base == "SD1"
    assert network.families == {"lora": 2, "norm": 1}
    assert network.ranks == {4: 1, 8: 1}
    assert network.trigger_words == ["ink", "bird"]
    assert network.scale(network.layers[TO_Q]) == 0.5
    assert len(network.short_hash) == 12
    assert repr(network) == "<moxin: SD1, 3 layers, lora, norm ranks 4-8>"
    for line in ("text encoder    lora               1  8", "unet            norm               1  -", "ink, bird"):
        assert line in network.table()


# parts, metadata -> base
BASES = [
    ("lora_unet_double_blocks_0_img_attn_qkv", {}, "Flux"),
    ("lora_te2_text_model_encoder_layers_0_mlp_fc1", {}, "SDXL"),
    (TO_Q, {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "SDXL"),
    (TO_Q, {"ss_v2": "True"}, "SD2"),
    (TO_Q, {}, "unknown"),
    (TO_Q.replace("attn1_to_q", "attn2_to_k"), {}, "SD1"),
]


@pytest.mark.parametrize(("layer", "metadata", "base"), BASES)
def test_the_base_is_told_by_metadata_names_or_widths(tmp_path, layer, metadata, base):
    assert read_network(write(tmp_path / "a.safetensors", {layer: pair(320, 768)}, metadata)).base == base


def test_a_phrase_of_the_author_goes_before_tags_and_broken_tags_are_none(tmp_path):
    metadata = {"modelspec.trigger_phrase": "ink wash, bird", "ss_tag_frequency": '{"a": {"cat": 1}}'}
    assert read_network(write(tmp_path / "a.safetensors", {TO_Q: pair()}, metadata)).trigger_words == [
        "ink wash",
        "bird",
    ]
    for broken in ("{", "[1]", '{"a": 3}', '{"a": {"b": "c"}}'):
        file = write(tmp_path / "b.safetensors", {TO_Q: pair()}, {"ss_tag_frequency": broken})
        assert read_network(file).trigger_words == []


# the strength that stands for alpha / rank
SCALES = [
    ({"alpha": torch.tensor(2.0)}, 0.5),
    ({}, 1.0),
    ({"alpha": torch.tensor(0.0)}, 0.0),
    ({"alpha": torch.tensor([8.0])}, 2.0),
    ({"alpha": torch.tensor(2.0), "scale": torch.tensor(3.0)}, 3.0),
]


@pytest.mark.parametrize(("more", "scale"), SCALES)
def test_scale_is_the_part_of_that_name_or_alpha_over_rank(tmp_path, more, scale):
    network = read_network(write(tmp_path / "a.safetensors", {TO_Q: pair(**more)}))
    assert network.scale(network.layers[TO_Q]) == scale


def test_lokr_of_two_full_factors_ignores_alpha(tmp_path):
    parts = {"lokr_w1": torch.ones(4, 4), "lokr_w2": torch.ones(8, 8), "alpha": torch.tensor(3.0)}
    network = read_network(write(tmp_path / "a.safetensors", {TO_Q: parts}))
    assert network.scale(network.layers[TO_Q]) == 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_any_number_format_is_read(tmp_path, dtype):
    parts = {part: (value * 10).to(dtype) for part, value in pair().items()}
    network = read_network(write(tmp_path / "a.safetensors", {TO_Q: parts}))
    assert network.tensor(network.layers[TO_Q], "lora_up.weight").dtype == dtype


def test_a_pickle_reads_as_its_safetensors_do_with_state_dict_or_without(tmp_path):
    tensors = {f"{TO_Q}.{part}": value for part, value in pair(alpha=torch.tensor(2.0)).items()}
    for number, content in enumerate((tensors, {"state_dict": tensors, "epoch": 3})):
        torch.save(content, tmp_path / f"{number}.pt")
        network = read_network(tmp_path / f"{number}.pt")
        assert network.scale(network.layers[TO_Q]) == 0.5
        assert torch.equal(network.tensor(network.layers[TO_Q], "lora_up.weight"), tensors[f"{TO_Q}.lora_up.weight"])


def test_bundled_embeddings_are_there_by_name(tmp_path):
    tensors = {f"{TO_Q}.{part}": value for part, value in pair().items()}
    tensors |= {
        "bundle_emb.one.string_to_param.*": torch.ones(3, 32),
        "bundle_emb.two.emb_params": torch.ones(16).half(),
    }
    tensors |= {"bundle_emb.xl.clip_l": torch.ones(2, 8), "bundle_emb.xl.clip_g": torch.ones(2, 12)}
    save_file(tensors, tmp_path / "a.safetensors")
    found = read_network(tmp_path / "a.safetensors").embeddings
    assert {name: tuple(found[name].shape) for name in ("one", "two")} == {"one": (3, 32), "two": (1, 16)}
    assert found["two"].dtype == torch.float32
    assert {part: tuple(value.shape) for part, value in found["xl"].items()} == {"clip_l": (2, 8), "clip_g": (2, 12)}


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 32)])
def test_a_bundled_embedding_without_vectors_is_refused(tmp_path, shape):
    tensors = {
        **{f"{TO_Q}.{part}": value for part, value in pair().items()},
        "bundle_emb.a.emb_params": torch.ones(shape),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(NetworkError, match="an embedding is a table of vectors"):
        read_network(tmp_path / "a.safetensors").embeddings  # noqa: B018


def test_large_files_are_looked_at_layer_by_layer(tmp_path, monkeypatch):
    monkeypatch.setattr("webui_diffusers.loaders.lora.read.CHECKED_AT_ONCE", 10)
    bad = pair()
    bad["lora_up.weight"][0, 0] = torch.nan
    network = read_network(write(tmp_path / "a.safetensors", {TO_Q: bad, "lora_unet_conv_out": pair()}))
    network.tensor(network.layers["lora_unet_conv_out"], "lora_up.weight")
    with pytest.raises(NetworkError, match="NaN"):
        network.tensor(network.layers[TO_Q], "lora_up.weight")


# --- other tools' files ---


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def outputs(unet):
    draw = torch.Generator().manual_seed(1)
    x, context = torch.randn(1, 4, 8, 8, generator=draw), torch.randn(1, 3, 16, generator=draw)
    with torch.no_grad():
        return unet(x, 10, context).sample


def adapted(unet, config):
    """The same UNet with a random PEFT adapter."""
    from peft import get_peft_model

    copy = UNet2DConditionModel.from_config(unet.config)
    copy.load_state_dict(unet.state_dict())
    torch.manual_seed(2)
    model = get_peft_model(copy, config)
    for name, value in model.named_parameters():
        if "lora_" in name or "hada_" in name or "lokr_" in name:
            value.data = (value.data if "magnitude" in name else 0) + 0.3 * torch.randn_like(value)
    return model


def peft_configs():
    from peft import LoHaConfig, LoKrConfig, LoraConfig

    attention, convolutions = ["to_q", "to_v", "to_out.0"], ["conv1", "to_k"]
    return {
        "lora": LoraConfig(r=4, lora_alpha=2, target_modules=attention),
        "patterns": LoraConfig(
            r=4, lora_alpha=2, rank_pattern={"to_q": 2}, alpha_pattern={"attn1.to_v": 6}, target_modules=attention
        ),
        "rslora": LoraConfig(r=4, lora_alpha=2, use_rslora=True, target_modules=attention),
        "dora": LoraConfig(r=4, lora_alpha=2, use_dora=True, target_modules=attention + convolutions),
        "convolutions": LoraConfig(r=4, lora_alpha=2, target_modules=convolutions),
        "loha": LoHaConfig(r=2, alpha=3, target_modules=attention + convolutions),
        "lokr": LoKrConfig(r=2, alpha=3, decompose_factor=4, target_modules=attention),
    }


@pytest.mark.parametrize("kind", ["lora", "patterns", "rslora", "dora", "convolutions", "loha", "lokr"])
def test_a_folder_that_peft_saves_acts_as_it_acts_there(unet, tmp_path, kind):
    model = adapted(unet, peft_configs()[kind])
    model.save_pretrained(tmp_path)
    expected, plain = outputs(model), outputs(unet)
    assert (expected - plain).abs().max() > 1e-3
    with merged_networks(SimpleNamespace(unet=unet), [(read_network(tmp_path), 1, 1)], "reference") as (report,):
        assert not (report.passed_over or report.unknown)
        torch.testing.assert_close(outputs(unet), expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(outputs(unet), plain)


def test_a_peft_folder_per_component_is_one_network(unet, tmp_path):
    adapted(unet, peft_configs()["lora"]).save_pretrained(tmp_path / "unet")
    network = read_network(tmp_path)
    assert len(network.layers) == 24
    assert set(network.families) == {"lora"}
    assert len(network.short_hash) == 12


def test_pefts_own_file_without_its_configuration_is_refused(unet, tmp_path):
    adapted(unet, peft_configs()["lora"]).save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(NetworkError, match="adapter_config.json"):
        read_network(tmp_path / "adapter_model.safetensors")


def test_another_kind_of_peft_adapter_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "VERA"}')
    save_file({"base_model.model.a.vera_lambda_b": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(NetworkError, match="VERA"):
        read_network(tmp_path)


@pytest.mark.parametrize("metadata", [False, True])
def test_a_file_that_diffusers_saves_acts_as_it_acts_there(unet, tmp_path, metadata):
    from peft.utils import get_peft_model_state_dict

    model = adapted(unet, peft_configs()["lora"])
    layers = {key.removeprefix("base_model.model."): value for key, value in get_peft_model_state_dict(model).items()}
    kept = {"r": 4, "lora_alpha": 2} if metadata else None
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers, unet_lora_adapter_metadata=kept)
    network = read_network(tmp_path)  # the folder holds one file
    with merged_networks(SimpleNamespace(unet=unet), [(network, 1, 1 if metadata else 0.5)], "reference"):
        torch.testing.assert_close(outputs(unet), outputs(model), rtol=1e-3, atol=1e-4)


def test_the_first_attention_processors_files_are_read(unet, tmp_path):
    tensors, weights = {}, {}
    torch.manual_seed(4)
    for path in (
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1",
        "mid_block.attentions.0.transformer_blocks.0.attn2",
    ):
        into = 16 if "attn2" in path else 32
        for name in ("to_q", "to_k", "to_out"):
            down, up = torch.randn(2, into if name == "to_k" else 32), torch.randn(32, 2)
            tensors |= {
                f"{path}.processor.{name}_lora.down.weight": down,
                f"{path}.processor.{name}_lora.up.weight": up,
            }
            module = f"{path}.to_out.0" if name == "to_out" else f"{path}.{name}"
            weights[module] = unet.get_submodule(module).weight.detach() + up @ down
    torch.save(tensors, tmp_path / "pytorch_lora_weights.bin")
    with merged_networks(SimpleNamespace(unet=unet), [(read_network(tmp_path), 1, 1)], "reference"):
        for module, weight in weights.items():
            torch.testing.assert_close(unet.get_submodule(module).weight.detach(), weight)


# --- errors ---


def test_files_that_are_none_say_what_they_are(tmp_path):
    contents = {
        "empty": (b"", "is empty"),
        "page": (b"<!DOCTYPE html><html>", "web page"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        "text": (b"hello", "it is text"),
        "gguf": (b"GGUF\x03\x00\x00\x00", "GGUF"),
        "bytes": (b"\x00\x01\x02\x03" * 8, "no format|truncated"),
    }
    for name, (content, says) in contents.items():
        (tmp_path / f"{name}.safetensors").write_bytes(content)
        with pytest.raises(NetworkError, match=says) as caught:
            read_network(tmp_path / f"{name}.safetensors")
        assert name in str(caught.value)
    with pytest.raises(NetworkError, match="does not exist"):
        read_network(tmp_path / "nowhere.safetensors")
    with pytest.raises(NetworkError, match="0 weight files"):
        (tmp_path / "folder").mkdir()
        read_network(tmp_path / "folder")
    with pytest.raises(WeightFileError, match="is a folder"):
        open_weights(tmp_path)


def test_a_pickle_that_would_run_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"a": Evil()}))
    torch.save({"a": Evil()}, tmp_path / "evil.ckpt")
    for name in ("evil.pt", "evil.ckpt"):
        with pytest.raises(NetworkError, match="would run code"):
            read_network(tmp_path / name)
        with pytest.raises(WeightFileError, match="safetensors"):
            read_pickle(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), pickled=st.booleans())
def test_a_file_cut_anywhere_is_one_exception(tmp_path, where, pickled):
    tensors = {f"{TO_Q}.{part}": value for part, value in pair().items()}
    path = tmp_path / "a.safetensors"
    if pickled:
        torch.save(tensors, path)
    else:
        path.write_bytes(save(tensors))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(where * len(whole))])
    with pytest.raises(NetworkError, match="a.safetensors"):
        read_network(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_header_with_a_wrong_byte_is_one_exception_or_reads(tmp_path, at, byte):
    content = bytearray(save({f"{TO_Q}.{part}": value for part, value in pair().items()}))
    header = 8 + struct.unpack("<Q", content[:8])[0]
    content[int(at * header)] = byte
    (tmp_path / "a.safetensors").write_bytes(bytes(content))
    try:
        read_network(tmp_path / "a.safetensors")
    except NetworkError as error:
        assert "a.safetensors" in str(error)


MALFORMED = [
    (pair() | {"lora_up.weight": torch.ones(32, 5)}, "disagree about the rank"),
    (pair(alpha=torch.ones(3)), "`alpha` holds 3 values"),
    (pair() | {"lora_up.weight": torch.ones(32)}, "no factor"),
    (pair() | {"lora_up.weight": torch.full((32, 4), torch.inf)}, "infinite"),
    (pair(alpha=torch.tensor(torch.nan)), "NaN"),
    ({"lora_down.weight": torch.ones(4, 32)}, "no known family"),
    ({"hada_w1_a": torch.ones(4, 2)}, "no known family"),
    ({"oft_blocks": torch.ones(4, 8, 7)}, "not square"),
    ({"lokr_w1_a": torch.ones(4, 2), "lokr_w1_b": torch.ones(3, 4), "lokr_w2": torch.ones(8, 8)}, "disagree"),
]


@pytest.mark.parametrize(("parts", "says"), MALFORMED)
def test_a_malformed_layer_is_named_with_what_is_wrong(tmp_path, parts, says):
    file = write(tmp_path / "a.safetensors", {TO_Q: parts, "lora_unet_conv_out": pair()})
    with pytest.raises(NetworkError, match=says) as caught:
        read_network(file)
    assert TO_Q in str(caught.value)
    assert "a.safetensors" in str(caught.value)


def test_no_rank_is_too_high_and_an_unread_alpha_may_be_anything(tmp_path):
    layers = {TO_Q: pair(rank=3000), "lora_unet_conv_in": {"diff": torch.ones(2, 2), "alpha": torch.tensor(torch.inf)}}
    network = read_network(write(tmp_path / "a.safetensors", layers))
    assert network.ranks == {3000: 1}
    assert network.scale(network.layers["lora_unet_conv_in"]) == 1


def test_two_adapters_in_one_file_are_not_mixed(tmp_path):
    layers = {f"unet.{PATH}.lora_{way}.{name}": torch.ones(4, 4) for way in "AB" for name in ("a", "b")}
    save_file({f"{key}.weight": value for key, value in layers.items()}, tmp_path / "two.safetensors")
    with pytest.raises(NetworkError, match="two adapters"):
        read_network(tmp_path / "two.safetensors")


# pattern -> names it lists, "^" before whole paths
PATTERNS = [
    ("to_q", ["to_q"]),
    (r"attn1\.to_q$", ["attn1.to_q"]),
    (r"^(?:mid_block\.a|conv_in)", ["^mid_block.a", "^conv_in"]),
    ("a|b", ["a", "b"]),
    (r".*\.to_q", None),
    (r"blocks\.\d+", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "names"), PATTERNS)
def test_a_pattern_of_names_is_compared_as_names(text, names):
    assert pattern_names(text) == names


def test_pefts_patterns_decide_the_strength_of_a_layer(tmp_path):
    config = {"r": 4, "lora_alpha": 8, "alpha_pattern": {"to_q": 2, r"^mid.*\.to_k": 1}, "rank_pattern": {"conv": 16}}
    found = AdapterConfig(tmp_path, config)
    assert [found.scale(path, 4) for path in ("a.to_v", "a.to_q", "mid_block.x.to_k", "up.to_k", "conv")] == [
        2, 0.5, 0.25, 2, 0.5
    ]  # fmt: skip
    assert AdapterConfig(tmp_path, {**config, "use_rslora": True}).scale("a.to_v", 4) == 4
    assert AdapterConfig(tmp_path, {}).scale("a", 16) == 1


BAD_CONFIGS = [
    {"r": "x"}, {"r": 0}, {"r": -4}, {"r": 10**400}, {"lora_alpha": [1]}, {"alpha": True}, {"rank_pattern": [1]},
    {"rank_pattern": {"(": 4}}, {"rank_pattern": {"to_q": 0}}, {"alpha_pattern": {"a": None}},
    {"alpha_pattern": {"(" * 900: 1}}, {"alpha_pattern": {f"a*{i}": 1 for i in range(65)}},
]  # fmt: skip


@pytest.mark.parametrize("config", BAD_CONFIGS, ids=lambda config: str(config)[:30])
def test_a_configuration_that_gives_no_strength_is_one_exception(tmp_path, config):
    with pytest.raises(NetworkError, match="configuration"):
        AdapterConfig(tmp_path, config).scale("a", 4)


def test_a_pattern_that_never_ends_is_cut_short(tmp_path, monkeypatch):
    monkeypatch.setattr("webui_diffusers.loaders.lora.adapter_config._PATTERN_SECONDS", 0.05)
    config = AdapterConfig(tmp_path, {"r": 4, "alpha_pattern": {".*" * 10 + "[^a]": 1}})
    with pytest.raises(NetworkError, match="too long"):
        config.scale("a" * 3000, 4)


def test_metadata_that_says_null_is_none(tmp_path):
    file = write(tmp_path / "a.safetensors", {f"unet.{PATH}": pair()}, {"lora_adapter_metadata": "null"})
    assert read_network(file).scale(next(iter(read_network(file).layers.values()))) == 1


def test_rank_stabilised_lycoris_files_say_so_in_their_arguments(tmp_path):
    whole = {"lokr_w1": torch.ones(4, 4), "lokr_w2": torch.ones(8, 8), "alpha": torch.tensor(16**1.5)}
    glora = {f"{part}.weight": torch.ones(16, 16) for part in ("a1", "a2", "b1", "b2")} | {"alpha": torch.tensor(8.0)}
    layers = {TO_Q: whole, "lora_unet_conv_in": glora}
    for args, lokr, second in (("{}", 1, 0.5), ('{"rs_lora": "True"}', 4, 2), ("[" * 99999, 1, 0.5)):
        network = read_network(write(tmp_path / "a.safetensors", layers, {"ss_network_args": args}))
        assert network.scale(network.layers[TO_Q], reference=True) == pytest.approx(lokr)
        assert network.scale(network.layers["lora_unet_conv_in"], reference=True) == second
        assert network.scale(network.layers[TO_Q]) == network.scale(network.layers["lora_unet_conv_in"]) == 1


def test_a_file_of_another_kind_is_named(tmp_path):
    save_file({"first_stage_model.decoder.conv_in.weight": torch.ones(2)}, tmp_path / "vae.safetensors")
    with pytest.raises(NetworkError, match="checkpoint"):
        read_network(tmp_path / "vae.safetensors")


def test_a_network_for_another_architecture_says_so(tmp_path):
    key = "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"
    save_file({key: torch.ones(2)}, tmp_path / "f.safetensors")
    with pytest.raises(NetworkError, match="Flux"):
        read_network(tmp_path / "f.safetensors")


def test_a_sum_that_overflows_in_half_precision_is_no_damage(tmp_path):
    parts = {part: torch.full_like(value, 3e4).half() for part, value in pair().items()}
    assert read_network(write(tmp_path / "a.safetensors", {TO_Q: parts})).values_checked


@pytest.mark.parametrize("layer", [{"diff_b": torch.ones(32)}, {"w_norm": torch.ones(32)}])
def test_what_the_webui_refuses_is_refused_there_and_read_by_the_reference(tmp_path, layer):
    unet = torch.nn.Module()
    unet.conv_norm_out = torch.nn.GroupNorm(4, 32)
    network = read_network(write(tmp_path / "a.safetensors", {"lora_unet_out_0": layer}))
    with pytest.raises(NetworkError, match="refuses the whole file"):
        with merged_networks(SimpleNamespace(unet=unet), [(network, 1, 1)]):
            pass
    with merged_networks(SimpleNamespace(unet=unet), [(network, 1, 1)], "reference"):
        changed = unet.conv_norm_out.bias if "diff_b" in layer else unet.conv_norm_out.weight
        assert torch.equal(changed.detach(), torch.ones(32) * (1 if "diff_b" in layer else 2))


def test_a_hub_id_that_cannot_be_fetched_says_so(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("org/repo", "org/repo/a.safetensors"):
        with pytest.raises(NetworkError, match="Hub"):
            read_network(name)
    with pytest.raises(NetworkError, match="does not exist"):
        read_network("org/a.safetensors")
