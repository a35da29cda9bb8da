"""Originals of merged weights: where they are meanwhile, and that nothing loses them."""

import dis
import random
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny_models import pipeline_with_copies
from webui_diffusers.loaders import NetworkError
from webui_diffusers.loaders.lora import merge
from webui_diffusers.loaders.lora.merge import NetworkMerger, merged_networks
from webui_diffusers.loaders.lora.originals import KeptOriginal
from webui_diffusers.loaders.lora.peft_adapters import attach_network
from webui_diffusers.loaders.lora.read import read_network


ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
LAYER = f"lora_unet_{ATTENTION.replace('.', '_')}"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"


def load(folder, dtype=torch.float32):
    return StableDiffusionPipeline.from_pretrained(folder, dtype=dtype, safety_checker=None)


def copied():
    """The same with weights that were copied: where they come from does not matter, or they still say it."""
    return pipeline_with_copies(StableDiffusionPipeline, "tiny-sd")


@pytest.fixture(scope="module")
def pipe():
    return copied()


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Three that share modules: low-rank, dense, a bias where there was none, a text encoder's layer."""
    folder, draw = tmp_path_factory.mktemp("networks"), torch.Generator().manual_seed(0)
    square = {part: torch.randn(32, 32, generator=draw) * 0.1 for part in ("q", "k", "out_0", "conv")}
    files = [
        {f"{LAYER}_to_q.lora_up.weight": square["q"], f"{LAYER}_to_q.lora_down.weight": square["k"],
         f"{LAYER}_to_out_0.diff": square["out_0"], f"{LAYER}_to_out_0.diff_b": torch.ones(32),
         f"{LAYER}_to_k.diff": square["conv"], f"{LAYER}_to_k.diff_b": torch.ones(32)},
        {f"{LAYER}_to_q.lora_up.weight": square["k"], f"{LAYER}_to_q.lora_down.weight": square["q"],
         f"{LAYER}_to_k.diff_b": torch.ones(32), f"{TEXT}.diff": torch.ones(64, 32)},
        {f"{LAYER}_to_out_0.diff_b": torch.ones(32), f"{LAYER}_to_q.diff_b": torch.ones(32)},
    ]  # fmt: skip
    for number, tensors in enumerate(files):
        save_file({key: value.clone() for key, value in tensors.items()}, folder / f"{number}.safetensors")
    return [read_network(folder / f"{number}.safetensors") for number in range(3)]


def state(pipe):
    return {
        f"{name}.{key}": value.clone()
        for name in ("unet", "text_encoder")
        for key, value in getattr(pipe, name).state_dict().items()
    }


def assert_same(pipe, before):
    after = state(pipe)
    assert after.keys() == before.keys()
    assert not [key for key in before if not torch.equal(before[key], after[key])]


def attention(pipe):
    return pipe.unet.get_submodule(ATTENTION)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_model_that_was_read_from_a_folder_needs_no_copies(tiny_sd, networks, dtype):
    pipe = load(tiny_sd, dtype)
    before, merger = state(pipe), NetworkMerger(pipe)
    merger.switch([(network, 1, 1) for network in networks], "reference")
    assert merger.active
    assert merger.bytes_held == 0
    merger.restore()
    assert_same(pipe, before)


def test_a_single_file_by_original_names_serves_as_well(tiny_sd, networks, tmp_path):
    pipe = copied()
    weight = attention(pipe).to_q.weight.detach()
    fc1 = next(
        value
        for key, value in pipe.text_encoder.state_dict().items()
        if key.endswith("encoder.layers.0.mlp.fc1.weight")
    )
    tensors = {
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": weight.clone(),
        "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight": fc1.clone(),
    }
    save_file(tensors, tmp_path / "one.safetensors")
    shutil.copytree(tiny_sd, tmp_path / "folder")
    moved = load(tmp_path / "folder")
    shutil.rmtree(tmp_path / "folder")  # the folder that it names is no more; the single file is
    config = {"_name_or_path": str(tmp_path / "one.safetensors")}
    parts = SimpleNamespace(unet=moved.unet, text_encoder=moved.text_encoder, config=config)
    before, merger = state(moved), NetworkMerger(parts)
    merger.switch([(networks[1], 1, 1)], "reference")
    assert merger.bytes_held == 0
    merger.restore()
    assert_same(moved, before)


def test_a_model_that_was_read_by_itself_from_a_path_needs_no_copies(tiny_sd, networks):
    parts = SimpleNamespace(unet=UNet2DConditionModel.from_pretrained(Path(tiny_sd) / "unet"))
    merger = NetworkMerger(parts)
    merger.switch([(networks[0], 1, 1)], "reference")
    assert merger.bytes_held == 0
    merger.restore()


def test_what_no_file_has_is_kept_in_as_few_bits_as_say_it(networks):
    pipe = copied()
    with torch.no_grad():
        attention(pipe).to_q.weight.add_(1)  # trained further, say
        attention(pipe).to_out[0].weight.copy_(torch.ones(32, 32))
    before, merger = state(pipe), NetworkMerger(pipe)
    merger.switch([(networks[0], 1, 1)], "reference")
    assert merger.bytes_held == 32 * 32 * 4 + 32 * 32 * 2  # a whole copy, and one in half precision
    merger.restore()
    assert_same(pipe, before)


@pytest.mark.parametrize(
    "value",
    [torch.tensor([1.0, -0.0, 2**-14]), torch.tensor([1e30, 3e38]), torch.tensor([0.1, torch.nan, torch.inf])],
)
def test_a_kept_original_is_equal_to_the_last_bit(value):
    kept = KeptOriginal(value, torch.device("cpu"))
    assert torch.equal(kept.read().view(torch.int32), value.view(torch.int32))


def test_a_file_that_is_deleted_or_replaced_meanwhile_takes_nothing_away(tiny_sd, networks, tmp_path):
    for happening in ("deleted", "replaced"):
        folder = tmp_path / happening
        shutil.copytree(tiny_sd, folder)
        pipe = load(folder)
        before, merger = state(pipe), NetworkMerger(pipe)
        merger.switch([(networks[0], 1, 1)], "reference")
        assert merger.bytes_held == 0
        for file in folder.rglob("*.safetensors"):
            zeros = {key: torch.zeros_like(value) for key, value in load_file(file).items()}
            save_file(zeros, tmp_path / "other.safetensors")
            file.unlink() if happening == "deleted" else (tmp_path / "other.safetensors").replace(file)
        merger.switch([(networks[1], 1, 0.5)], "reference")
        merger.restore()
        assert_same(pipe, before)


def write_over(folder):
    """Zeros in place of every weight, in the very files."""
    for file in folder.rglob("*.safetensors"):
        header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
        with file.open("r+b") as stream:
            stream.seek(header)
            stream.write(bytes(file.stat().st_size - header))


@pytest.mark.slow
def test_a_thousand_switches_come_back_to_the_last_bit_whatever_becomes_of_the_file(tiny_sd, networks, tmp_path):
    """Read again from the file; it is replaced and deleted while networks are on, then they are copies."""
    shutil.copytree(tiny_sd, tmp_path / "model")
    pipe, choose = load(tmp_path / "model"), random.Random(3)
    before, merger = state(pipe), NetworkMerger(pipe)
    file = next((tmp_path / "model" / "unet").glob("*.safetensors"))
    held = set()
    for turn in range(1000):
        chosen = choose.sample(networks, choose.randint(1, 3))
        merger.switch(
            [(network, choose.choice((0.5, 1)), choose.choice((-0.7, 1))) for network in chosen], "reference"
        )
        held.add(merger.bytes_held)
        if turn == 300:
            assert held == {0}
            save_file({key: value + 1 for key, value in load_file(file).items()}, tmp_path / "other.safetensors")
            (tmp_path / "other.safetensors").replace(file)
        if turn == 600:
            file.unlink()
        if turn % 100 == 99:
            merger.restore()
            assert_same(pipe, before)
    assert max(held) > 0  # the other file's numbers were not taken for the model's


def test_a_file_that_was_written_over_before_merging_is_not_relied_on(tiny_sd, networks, tmp_path):
    shutil.copytree(tiny_sd, tmp_path / "model")
    pipe = load(tmp_path / "model")
    before, merger = state(pipe), NetworkMerger(pipe)
    write_over(tmp_path / "model")
    merger.switch([(networks[0], 1, 1)], "reference")
    assert merger.bytes_held > 0
    merger.restore()
    assert_same(pipe, before)


def test_a_file_that_is_written_over_while_networks_are_on_is_an_error_before_anything_is_lost(
    tiny_sd, networks, tmp_path
):
    shutil.copytree(tiny_sd, tmp_path / "model")
    pipe = load(tmp_path / "model")
    with torch.no_grad():
        attention(pipe).to_q.weight.add_(1)  # no file has it
    before, merger = state(pipe), NetworkMerger(pipe)
    merger.switch([(networks[0], 1, 1)], "reference")
    on = state(pipe)
    write_over(tmp_path / "model")
    with pytest.raises(NetworkError, match="written over while networks were merged"):
        merger.switch([(networks[1], 1, 1)], "reference")
    assert_same(pipe, on)
    with pytest.raises(NetworkError, match="Load the model again"):
        merger.restore()
    assert torch.equal(
        attention(pipe).to_q.weight, before[f"unet.{ATTENTION}.to_q.weight"]
    )  # what is not lost is back


def test_a_set_of_networks_may_be_let_go(networks):
    pipe = copied()
    before, merger = state(pipe), NetworkMerger(pipe)
    merger.switch([(networks[0], 1, 1)], "reference")
    del merger
    assert_same(pipe, before)


# --- fused projections ---


def test_fused_projections_get_what_their_parts_get(networks):
    plain, fused = copied(), copied()
    fused.unet.fuse_qkv_projections()
    before = state(fused)
    sample, texts = torch.randn(1, 4, 8, 8), torch.randn(1, 7, plain.unet.config.cross_attention_dim)
    uses = [(networks[1], 0, 1)]
    with torch.no_grad(), merged_networks(plain, uses, "reference"):
        assert attention(plain).to_k.bias is not None
    save = {f"{LAYER}_to_{part}.diff": torch.randn(32, 32) for part in "qkv"}
    cross = LAYER.replace("attn1", "attn2")
    save |= {f"{cross}_to_v.diff": torch.randn(attention(plain).to_q.weight.shape[0], texts.shape[-1])}
    path = networks[0].path.with_name("fused.safetensors")
    save_file(save, path)
    with torch.no_grad():
        with merged_networks(plain, [(read_network(path), 1, 1)]):
            wanted = plain.unet(sample, 5, texts).sample
        with merged_networks(fused, [(read_network(path), 1, 1)]):
            torch.testing.assert_close(fused.unet(sample, 5, texts).sample, wanted, rtol=1e-4, atol=1e-5)
        assert (wanted - plain.unet(sample, 5, texts).sample).abs().max() > 0.01
    assert_same(fused, before)
    with pytest.raises(NetworkError, match="fused without one"):  # a new bias for k
        with merged_networks(fused, uses, "reference"):
            pytest.fail("it was applied")
    assert_same(fused, before)


# --- weights that cannot be written as they are ---


class Packed(torch.nn.Parameter):
    """As the quantisers' own: a parameter that is no plain one."""


def test_a_quantised_model_is_refused_before_anything_is_written(networks):
    pipe = copied()
    before = state(pipe)
    layer = attention(pipe).to_out[0]
    layer.weight = Packed(layer.weight.detach(), requires_grad=False)
    with pytest.raises(NetworkError, match=r"quantised \(Packed\).*lora_backend='peft'"):
        with merged_networks(pipe, [(networks[0], 1, 1)], "reference"):
            pytest.fail("it was applied")
    assert_same(pipe, before)


def test_a_quantised_linear_layer_takes_an_adapter_and_a_quantised_convolution_is_refused(networks, tmp_path):
    pipe = copied()
    layer, x = attention(pipe).to_q, torch.randn(2, 32)
    plain = layer(x)
    layer.weight = Packed(layer.weight.detach(), requires_grad=False)
    parts = ("up", "down")
    up, down = (load_file(networks[0].path)[f"{LAYER}_to_q.lora_{way}.weight"] for way in parts)
    save_file({f"{LAYER}_to_q.lora_{way}.weight": v for way, v in zip(parts, (up, down))}, tmp_path / "a.safetensors")
    attach_network(pipe, tmp_path / "a.safetensors", "x")
    torch.testing.assert_close(attention(pipe).to_q(x), plain + x @ down.T @ up.T, rtol=1e-4, atol=1e-4)
    pipe.unload_lora_weights()
    pipe.unet.conv_in.weight = Packed(pipe.unet.conv_in.weight.detach(), requires_grad=False)
    save_file({"lora_unet_conv_in.diff": torch.ones_like(pipe.unet.conv_in.weight)}, tmp_path / "b.safetensors")
    with pytest.raises(NetworkError, match="quantised convolution"):
        attach_network(pipe, tmp_path / "b.safetensors", "x")


def test_fused_projections_take_no_adapter(networks):
    pipe = copied()
    pipe.unet.fuse_qkv_projections()
    with pytest.raises(NetworkError, match="unfuse_qkv_projections"):
        attach_network(pipe, networks[1], "x")


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")  # what it is about is still in use
def test_a_model_quantised_by_torch_itself_is_refused_by_name(networks):
    unet = parent = torch.nn.Module()
    for step in ATTENTION.split("."):
        parent.add_module(step, torch.nn.Module())
        parent = getattr(parent, step)
    parent.to_q = torch.nn.Linear(32, 32)
    torch.ao.quantization.quantize_dynamic(parent, {torch.nn.Linear}, inplace=True)
    with pytest.raises(NetworkError, match="quantised"):
        with merged_networks(SimpleNamespace(unet=unet), [(networks[1], 1, 1)], "reference"):
            pytest.fail("it was applied")


def test_weights_stored_in_float8_are_changed_through_float32(networks):
    pipe = copied()
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    weight = attention(pipe).to_q.weight
    assert weight.dtype == torch.float8_e4m3fn
    before = weight.detach().clone()
    up, down = (load_file(networks[0].path)[f"{LAYER}_to_q.lora_{way}.weight"] for way in ("up", "down"))
    with merged_networks(pipe, [(networks[0], 1, 1)], "reference"):
        wanted = (before.float() + up @ down).to(torch.float8_e4m3fn)
        assert torch.equal(weight.view(torch.int8), wanted.view(torch.int8))
    assert torch.equal(weight.view(torch.int8), before.view(torch.int8))


HUGE = {
    "alpha": {".alpha": torch.tensor(3e38), ".lora_up.weight": torch.ones(32, 1),
              ".lora_down.weight": 100 * torch.ones(1, 32)},
    "float64": {".lora_up.weight": torch.full((32, 1), 1e300, dtype=torch.float64),
                ".lora_down.weight": torch.ones(1, 32, dtype=torch.float64)},
    "dense": {".diff": torch.full((32, 32), 3e38), ".bias": torch.full((32, 32), 3e38)},
    "bias": {".diff": torch.ones(32, 32), ".diff_b": torch.full((32,), 1e300, dtype=torch.float64)},
    "scale": {".diff": torch.ones(32, 32), ".scale": torch.tensor(1e300, dtype=torch.float64)},
    "only when cast": {".diff": torch.full((32, 32), 1e5)},
    "no inverse": {".oft_blocks": torch.full((4, 8, 8), 3e38).triu()},
}  # fmt: skip


@pytest.mark.parametrize("what", list(HUGE))
def test_a_product_that_is_not_finite_is_refused_and_nothing_is_written(tmp_path, what):
    pipe = copied().to(torch.float16 if what == "only when cast" else torch.float32)
    save_file({f"{LAYER}_to_k.diff": torch.ones(32, 32)} | {f"{LAYER}_to_q{key}": v for key, v in HUGE[what].items()},
              tmp_path / "a.safetensors")  # fmt: skip
    before = state(pipe)
    with pytest.raises(NetworkError, match="a.safetensors"):
        network = read_network(tmp_path / "a.safetensors")
        with merged_networks(pipe, [(network, 1, 1)], "reference"):
            pytest.fail("it was applied")
    assert_same(pipe, before)


# --- interrupts ---

FILES = {str(Path(merge.__file__).with_name(f"{name}.py")) for name in ("merge", "touched", "originals", "arithmetic")}
CALLS = ("CALL", "CALL_FUNCTION_EX", "PRECALL", "RESUME", "JUMP_BACKWARD", "POP_JUMP_BACKWARD")


class Interrupts:
    """Raises KeyboardInterrupt where Python could deliver one: after a call, at a function's start, on looping."""

    def __init__(self, *at):
        self.at, self.seen, self.codes = at, 0, {}

    def __call__(self, frame, event, argument):
        if frame.f_code.co_filename not in FILES:
            return None
        frame.f_trace_opcodes = True
        return self.inside

    def inside(self, frame, event, argument):
        if event == "opcode" and self.places(frame.f_code).get(frame.f_lasti):
            self.seen += 1
            if self.seen in self.at:
                raise KeyboardInterrupt
        return self.inside

    def places(self, code):
        if code not in self.codes:
            names = ["", *(instruction.opname for instruction in dis.get_instructions(code))]
            offsets = [instruction.offset for instruction in dis.get_instructions(code)]
            self.codes[code] = {offset: name.startswith(CALLS) for offset, name in zip(offsets, names)}
        return self.codes[code]


def run(pipe, networks, interrupts):
    sys.settrace(interrupts)
    try:
        with merged_networks(pipe, [(networks[0], 1, 1)], "reference"):
            pass
        merger = NetworkMerger(pipe)
        try:
            for uses in ([(networks[1], 1, 1)], [(networks[0], 1, 0.5), (networks[2], 1, 1)], []):
                merger.switch(uses, "reference")
        finally:
            merger.restore()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)


def interrupted(pipe, networks, count):
    before, counted, choose = state(pipe), Interrupts(), random.Random(3)
    run(pipe, networks, counted)
    assert counted.seen > 300
    places = range(1, counted.seen + 1)
    for at in choose.sample(places, min(count, counted.seen)):
        run(pipe, networks, Interrupts(at, at + choose.randint(20, 200)) if at % 4 == 0 else Interrupts(at))
        assert_same(pipe, before)


NEEDS_OPCODES = pytest.mark.skipif(
    sys.version_info[:2] == (3, 12), reason="Python 3.12 tells a trace of no instructions that it asks for in a call"
)


@NEEDS_OPCODES
def test_an_interrupt_anywhere_loses_no_original(pipe, networks):
    interrupted(pipe, networks, 40)


@NEEDS_OPCODES
@pytest.mark.slow
def test_an_interrupt_at_every_place_loses_no_original(pipe, networks):
    interrupted(pipe, networks, 10**6)
