"""ControlNets from made-up files of every layout; what is none is refused by name."""

import json
import pickle
import re

import pytest
import torch
from diffusers import ControlNetModel, ControlNetUnionModel, UNet2DConditionModel
from recordings import GOLDEN
from safetensors.torch import load_file, save_file
from webui_diffusers.loaders import load_controlnet
from webui_diffusers.loaders.controlnet.load import check_control_base, controlnet_files, find_controlnet
from webui_diffusers.loaders.hashes import legacy_model_hash
from webui_diffusers.loaders.weight_files import WeightFileError


NETWORK = GOLDEN / "controlnet" / "models" / "tiny-controlnet"
FILE = NETWORK / "diffusion_pytorch_model.safetensors"
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0"}
RESNET |= {"conv2": "out_layers.3", "conv_shortcut": "skip_connection"}


def ldm_name(key: str, layers: int) -> str:
    """The name of a weight in the layout that control networks are trained in."""
    for pattern, name in (
        (r"time_embedding\.linear_([12])", lambda m: f"time_embed.{2 * int(m[1]) - 2}"),
        (r"add_embedding\.linear_([12])", lambda m: f"label_emb.0.{2 * int(m[1]) - 2}"),
        (r"conv_in\b", lambda m: "input_blocks.0.0"),
        (r"controlnet_cond_embedding\.conv_in", lambda m: "input_hint_block.0"),
        (r"controlnet_cond_embedding\.blocks\.(\d+)", lambda m: f"input_hint_block.{2 * int(m[1]) + 2}"),
        (r"controlnet_cond_embedding\.conv_out", lambda m: "input_hint_block.14"),
        (r"controlnet_down_blocks\.(\d+)", lambda m: f"zero_convs.{m[1]}.0"),
        (r"controlnet_mid_block", lambda m: "middle_block_out.0"),
        (
            r"down_blocks\.(\d+)\.downsamplers\.0\.conv",
            lambda m: f"input_blocks.{(int(m[1]) + 1) * (layers + 1)}.0.op",
        ),
        (
            r"down_blocks\.(\d+)\.resnets\.(\d+)\.(\w+)",
            lambda m: f"input_blocks.{int(m[1]) * (layers + 1) + int(m[2]) + 1}.0.{RESNET[m[3]]}",
        ),
        (
            r"down_blocks\.(\d+)\.attentions\.(\d+)",
            lambda m: f"input_blocks.{int(m[1]) * (layers + 1) + int(m[2]) + 1}.1",
        ),
        (r"mid_block\.resnets\.(\d)\.(\w+)", lambda m: f"middle_block.{2 * int(m[1])}.{RESNET[m[2]]}"),
        (r"mid_block\.attentions\.0", lambda m: "middle_block.1"),
    ):
        found = re.match(pattern, key)
        if found:
            return name(found) + key[found.end() :]
    raise AssertionError(key)


@pytest.fixture(scope="module")
def unet():
    return UNet2DConditionModel.from_pretrained(GOLDEN / "tiny-sd" / "unet")


@pytest.fixture(scope="module")
def state():
    return load_file(FILE)


def ldm(state, prefix="", layers=1):
    return {prefix + ldm_name(key, layers): value for key, value in state.items()}


def same(model, state):
    own = model.state_dict()
    return set(own) == set(state) and all(torch.equal(own[key], value) for key, value in state.items())


@pytest.mark.parametrize("prefix", ["", "control_model."])
@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_the_layout_of_the_trainers_is_read(tmp_path, unet, state, prefix, ending):
    path = tmp_path / f"control_tiny_canny{ending}"
    tensors = ldm(state, prefix)
    save_file(tensors, path) if ending == ".safetensors" else torch.save({"state_dict": tensors}, path)
    model = load_controlnet(path, unet=unet)
    assert same(model, state) and not model.training
    assert model.config.attention_head_dim == 4 and not model.config.global_pool_conditions


def test_a_checkpoint_with_a_control_network_in_it_gives_that(tmp_path, unet, state):
    path = tmp_path / "control_sd_tiny.safetensors"
    save_file({**ldm(state, "control_model."), "model.diffusion_model.out.0.weight": torch.ones(3)}, path)
    assert same(load_controlnet(path, unet=unet), state)


def test_differences_are_completed_from_the_unet(tmp_path, unet, state):
    base = unet.state_dict()
    path = tmp_path / "diff_control.safetensors"
    differences = {key: value - base[key] if key in base else value for key, value in state.items()}
    save_file({**ldm(differences), "difference": torch.ones(1)}, path)
    loaded = load_controlnet(path, unet=unet).state_dict()
    for key, value in state.items():
        torch.testing.assert_close(loaded[key], value, atol=1e-6, rtol=1e-5)
    with pytest.raises(WeightFileError, match="difference to its base model"):
        load_controlnet(path)


def factored(state, unet, rank=2):
    """A Control-LoRA as stabilityai/control-lora has it, and the weights that it means."""
    draw, base = torch.Generator().manual_seed(0), unet.state_dict()
    tensors, wanted = {"lora_controlnet": torch.empty(0)}, dict(state)
    for key, value in state.items():
        name = ldm_name(key, 1)
        if key in base and key.endswith(".weight") and value.ndim > 1:
            up = torch.randn(len(value), rank, *[1] * (value.ndim - 2), generator=draw)
            down = torch.randn(rank, *value.shape[1:], generator=draw)
            tensors[name.removesuffix("weight") + "up"], tensors[name.removesuffix("weight") + "down"] = up, down
            wanted[key] = base[key] + (up.flatten(1) @ down.flatten(1)).view(value.shape)
        else:
            tensors[name] = value
    return tensors, wanted


def test_a_control_lora_is_completed_from_the_unet(tmp_path, unet, state):
    path = tmp_path / "control-lora-canny-rank2.safetensors"
    tensors, wanted = factored(state, unet)
    norm = ldm_name("mid_block.resnets.0.norm1.weight", 1)
    save_file({key: value for key, value in tensors.items() if key != norm}, path)
    wanted["mid_block.resnets.0.norm1.weight"] = unet.state_dict()["mid_block.resnets.0.norm1.weight"]
    loaded = load_controlnet(path, unet=unet)
    assert set(loaded.state_dict()) == set(wanted) and loaded.dtype == unet.dtype
    for key, value in loaded.state_dict().items():
        torch.testing.assert_close(value, wanted[key], atol=1e-6, rtol=1e-5)
    with pytest.raises(WeightFileError, match="a Control-LoRA.*unet="):
        load_controlnet(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, key: tensors.pop(f"{key}.down"), "down` is not in it"),
        (lambda tensors, key: tensors.update({f"{key}.down": torch.ones(3, 2)}), "has the shape"),
        (lambda tensors, key: tensors.update({f"{key}.up": torch.ones(7, 2)}), "Control-LoRA for another model"),
    ],
    ids=["one factor", "unlike ranks", "another width"],
)
def test_a_control_lora_that_is_damaged_or_of_another_base_is_refused(tmp_path, unet, state, change, message):
    tensors, _ = factored(state, unet)
    change(tensors, "time_embed.0")
    save_file(tensors, tmp_path / "control.safetensors")
    with pytest.raises(WeightFileError, match=message):
        load_controlnet(tmp_path / "control.safetensors", unet=unet)


def test_a_file_and_a_folder_of_diffusers_are_read(tmp_path, unet, state):
    assert same(load_controlnet(NETWORK), state)
    assert same(load_controlnet(FILE), state)  # its config.json lies beside it
    alone = tmp_path / "alone.safetensors"
    save_file(state, alone)
    assert same(load_controlnet(alone, unet=unet), state)
    with pytest.raises(WeightFileError, match="no published size.*unet"):
        load_controlnet(alone)


@torch.no_grad()
def test_a_network_for_sdxl_works_as_before(tmp_path):
    folder = GOLDEN / "controlnet" / "models" / "tiny-controlnet-xl"
    xl = UNet2DConditionModel.from_pretrained(GOLDEN / "tiny-sdxl-e2e" / "unet")
    before = ControlNetModel.from_pretrained(folder)
    path = tmp_path / "xl.safetensors"
    layers = before.config.layers_per_block
    save_file({ldm_name(key, layers): value for key, value in before.state_dict().items()}, path)
    after = load_controlnet(path, unet=xl)
    width = xl.config.projection_class_embeddings_input_dim - 6 * xl.config.addition_time_embed_dim
    inputs = {
        "encoder_hidden_states": torch.ones(1, 7, xl.config.cross_attention_dim),
        "controlnet_cond": torch.rand(1, 3, 64, 64),
        "added_cond_kwargs": {"text_embeds": torch.ones(1, width), "time_ids": torch.ones(1, 6)},
        "return_dict": False,
    }
    one, other = (model(torch.ones(1, 4, 8, 8), 5, **inputs) for model in (before, after))
    assert all(torch.equal(a, b) for a, b in zip([*one[0], one[1]], [*other[0], other[1]], strict=True))


def test_a_union_network_is_read(tmp_path):
    xl = UNet2DConditionModel.from_pretrained(GOLDEN / "tiny-sdxl-e2e" / "unet")
    torch.manual_seed(0)
    union = ControlNetUnionModel.from_unet(
        xl, conditioning_embedding_out_channels=(8, 8, 16, 16), load_weights_from_unet=False
    )
    path = tmp_path / "union.safetensors"
    save_file(union.state_dict(), path)
    loaded = load_controlnet(path, unet=xl)
    assert isinstance(loaded, ControlNetUnionModel) and same(loaded, union.state_dict())
    union.save_pretrained(tmp_path / "folder")
    assert same(load_controlnet(tmp_path / "folder"), union.state_dict())


def test_shuffle_is_told_by_its_name(tmp_path, unet, state):
    path = tmp_path / "control_v11e_sd15_shuffle.safetensors"
    save_file(ldm(state), path)
    assert load_controlnet(path, unet=unet).config.global_pool_conditions


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (["lora_controlnet", "input_blocks.1.0.in_layers.2.up"], "part of a Control-LoRA"),
        (["lllite_unet_input_blocks_4_1_proj_in.down.0.weight"], "a ControlLLLite"),
        (["adapter.body.0.resnets.0.block1.weight"], "a T2I-Adapter"),
        (["body.0.block1.weight", "conv_in.weight"], "a T2I-Adapter"),
        (["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"], "an IP-Adapter"),
        (["lora_unet_down_blocks_0.lora_up.weight"], "a LoRA"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "a checkpoint"),
        (["transformer_blocks.0.attn.to_k.weight"], "a transformer model"),
        (["something.weight"], "holds no ControlNet"),
    ],
)
def test_files_that_are_no_controlnet_are_refused_by_their_kind(tmp_path, keys, kind):
    path = tmp_path / "given.safetensors"
    save_file({key: torch.ones(2, 2) for key in keys}, path)
    with pytest.raises(WeightFileError, match=kind) as error:
        load_controlnet(path)
    assert "given.safetensors" in str(error.value)


def test_no_pickle_is_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    path = tmp_path / "control.pth"
    path.write_bytes(pickle.dumps({"state_dict": Evil()}))
    with pytest.raises(WeightFileError, match="would run code"):
        load_controlnet(path)
    assert not (tmp_path / "made").exists()


def test_damaged_files_are_refused(tmp_path, unet, state):
    path = tmp_path / "control.safetensors"
    key = "mid_block.resnets.0.conv1.weight"
    for damaged, message in (
        ({k: v for k, v in state.items() if k != key}, "is incomplete"),
        ({**state, key: state[key][:3]}, "has the shape"),
        ({**state, key: state[key] * float("nan")}, "NaN or Inf"),
    ):
        save_file({ldm_name(k, 1): v.contiguous() for k, v in damaged.items()}, path)
        with pytest.raises(WeightFileError, match=message):
            load_controlnet(path, unet=unet)


def test_a_network_for_another_base_is_told(unet):
    with pytest.raises(WeightFileError, match="for another model"):
        load_controlnet(GOLDEN / "controlnet" / "models" / "tiny-controlnet-xl", unet=unet)
    sizes = json.loads((NETWORK / "config.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        real = ControlNetModel(**{k: v for k, v in sizes.items() if k[0] != "_"} | {"cross_attention_dim": 768})
        base = UNet2DConditionModel(
            cross_attention_dim=1024,
            block_out_channels=(32,),
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
        )
    with pytest.raises(WeightFileError, match=r"for Stable Diffusion 1\.x, and the model is Stable Diffusion 2\.x"):
        check_control_base(real, base, "control_sd15")


def test_names_are_found_in_a_folder_as_the_webui_writes_them(tmp_path, unet, state, caplog):
    (tmp_path / "more").mkdir()
    path = tmp_path / "more" / "control_v11p_sd15_canny.safetensors"
    save_file(ldm(state), path)
    ControlNetModel.from_pretrained(NETWORK).save_pretrained(tmp_path / "tile")
    assert set(controlnet_files(tmp_path)) == {"control_v11p_sd15_canny", "tile"}
    assert find_controlnet(f"control_v11p_sd15_canny [{legacy_model_hash(path)}]", tmp_path) == path
    assert find_controlnet("TILE", tmp_path) == tmp_path / "tile"
    assert same(load_controlnet("control_v11p_sd15_canny", folder=tmp_path, unet=unet), state)
    with pytest.raises(WeightFileError, match="Did you mean 'control_v11p_sd15_canny'"):
        find_controlnet("control_v11p_sd15_cany", tmp_path)
    with pytest.raises(WeightFileError, match="does not exist"):
        find_controlnet("control_v11p_sd15_canny")
    assert not caplog.records
    find_controlnet("control_v11p_sd15_canny [00000000]", tmp_path)
    assert "another" in caplog.text
