"""Weight files are told apart by their content, alike for every reader."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from webui_diffusers.loaders.checkpoint.describe import describe_checkpoint
from webui_diffusers.loaders.lora.library import NetworkLibrary
from webui_diffusers.loaders.lora.read import read_network
from webui_diffusers.loaders.textual_inversion import read_embedding
from webui_diffusers.loaders.upscaler_model import read_upscaler_state
from webui_diffusers.loaders.weight_files import WeightFileError, open_weights, read_pickle, weight_file_kind


LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
NETWORK = {f"{LAYER}.lora_up.weight": torch.ones(32, 4), f"{LAYER}.lora_down.weight": torch.ones(4, 32)}
UNET = "model.diffusion_model.input_blocks"
CHECKPOINT = {
    f"{UNET}.0.0.weight": torch.ones(8, 4, 3, 3),
    f"{UNET}.1.1.transformer_blocks.0.attn2.to_k.weight": torch.ones(8, 768),
}


def save_with_low_byte(path: Path, tensors: dict, low: int, metadata: Mapping[str, str] = {}) -> Path:
    """A .safetensors file whose first byte, the low one of its header's length, is `low`."""
    for count in range(64):
        save_file(tensors, path, metadata={**metadata, "pad": "x" * 8 * count})
        if path.read_bytes()[0] == low:
            return path
    raise AssertionError("no header of that length")


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch):
    """Opens a file as where nobody has imported torch yet."""

    def open_one(path: Path):
        with monkeypatch.context() as patched:
            patched.delitem(sys.modules, "torch")
            return open_weights(path)

    return open_one


WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.mark.parametrize("dtype", FLOATS + WHOLE)
def test_bytes_tell_of_a_tensor_what_torch_tells(tmp_path: Path, without_torch, dtype: torch.dtype) -> None:
    numbers = torch.randint(0, 2, (3, 700_000)).double() * 2 - 1  # more than a block of bytes
    if dtype in FLOATS:
        spoilt = [float("nan")] * 3 if dtype == torch.float8_e4m3fn else [float("nan"), float("inf"), -float("inf")]
        numbers[0, 5], numbers[1, 699_999], numbers[2, 350_000] = spoilt
    save_file({"x": numbers.to(dtype), "y": torch.ones(2, 4).to(dtype)}, tmp_path / "a.safetensors")
    file, loaded = without_torch(tmp_path / "a.safetensors"), open_weights(tmp_path / "a.safetensors")
    value = loaded.tensor("x")
    assert file.not_finite("x") == (int((~value.float().isfinite()).sum()) if dtype in FLOATS else 0)
    assert file.not_finite("y") == 0 and loaded.not_finite("x") is None
    assert file.number("x") in (float(value[0, 0]), None if dtype in FLOATS[4:] else float(value[0, 0]))
    assert torch.equal(file.tensor("x").double().nan_to_num(), value.double().nan_to_num())
    assert file.dtype("x") == dtype and file.not_finite("x") is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives a mapping's pages back")
def test_what_was_read_of_a_file_takes_no_memory_when_it_is_forgotten(tmp_path: Path) -> None:
    def mapped() -> int:
        """KiB of the file in memory."""
        maps = Path("/proc/self/smaps").read_text().split("VmFlags")
        sizes = [each.split("\nRss:")[1].split()[0] for each in maps if "forgotten.safetensors" in each]
        return sum(map(int, sizes))

    path = tmp_path / "forgotten.safetensors"
    save_file({"x": torch.full((1 << 20,), 2.0), "empty": torch.zeros(0), "y": torch.ones(1 << 20)}, path)
    file = open_weights(path)
    kept = file.tensor("x")
    assert kept.sum() == 2 << 20 and file.tensor("y").sum() == 1 << 20
    before = mapped()
    path.unlink()
    file.forget_pages()
    assert mapped() < before // 8
    assert kept.sum() == 2 << 20 and file.tensor("y").sum() == 1 << 20  # and is read again from the file that it was


def test_bytes_of_another_file_in_its_place_are_not_read(tmp_path: Path, without_torch) -> None:
    save_file({"x": torch.ones(4)}, tmp_path / "a.safetensors")
    file = without_torch(tmp_path / "a.safetensors")
    assert file.number("x") == 1
    save_file({"x": torch.full((4, 2), 3.0)}, tmp_path / "b.safetensors")
    (tmp_path / "b.safetensors").replace(tmp_path / "a.safetensors")
    for read in (file.number, file.not_finite, file.tensor):
        with pytest.raises(WeightFileError, match="another file is there"):
            read("x")
    file.close()
    with pytest.raises(WeightFileError, match="was closed"):
        file.number("x")


@pytest.mark.parametrize("low", range(0, 256, 8))
def test_the_length_of_a_header_does_not_make_a_file_a_pickle(tmp_path: Path, low: int) -> None:
    path = save_with_low_byte(tmp_path / "a.bin", {"x": torch.ones(2)}, low)
    assert weight_file_kind(path) == "safetensors"
    assert open_weights(path).tensor("x").tolist() == [1.0, 1.0]


def test_metadata_is_read_where_the_first_byte_is_that_of_a_pickle(tmp_path: Path) -> None:
    notes = {"ss_output_name": "MyStyle", "sshs_model_hash": "ab" * 32}
    network = read_network(save_with_low_byte(tmp_path / "net.safetensors", NETWORK, 0x80, notes))
    assert (network.metadata["ss_output_name"], network.short_hash) == ("MyStyle", "ab" * 6)
    assert NetworkLibrary(tmp_path).find("MyStyle").path == network.path
    notes = {"modelspec.prediction_type": "v"}
    checkpoint = save_with_low_byte(tmp_path / "ck.safetensors", CHECKPOINT, 0x80, notes)
    assert describe_checkpoint(checkpoint).prediction_type == "v_prediction"


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_named_safetensors_is_read_as_what_it_is(tmp_path: Path, zipped: bool) -> None:
    def save(content: object, name: str) -> Path:
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
        return tmp_path / name

    network = read_network(save(NETWORK, "net.safetensors"))
    assert network.tensor(network.layers[LAYER], "lora_up.weight").shape == (32, 4)
    assert len(network.short_hash) == 12
    vectors = torch.full((2, 768), 0.5)
    table = {"string_to_param": {"*": vectors}, "step": 7}
    embedding = read_embedding(save(table, "word.safetensors"))
    assert torch.equal(embedding.vectors, vectors) and embedding.step == 7
    assert describe_checkpoint(save({"state_dict": CHECKPOINT}, "ck.safetensors")).base == "sd1"
    state = read_upscaler_state(save({"params_ema": {"body.0.weight": torch.ones(1)}}, "up.safetensors"))
    assert list(state) == ["body.0.weight"]


def test_a_safetensors_file_named_pt_is_read_as_what_it_is(tmp_path: Path) -> None:
    save_file({"emb_params": torch.full((2, 768), 0.5)}, tmp_path / "word.pt")
    assert read_embedding(tmp_path / "word.pt").count == 2
    save_file({"body.0.weight": torch.ones(1)}, tmp_path / "up.pth")
    assert list(read_upscaler_state(tmp_path / "up.pth")) == ["body.0.weight"]
    with pytest.raises(WeightFileError, match=r"word\.pt` is a \.safetensors file.*open_weights"):
        read_pickle(tmp_path / "word.pt")


def test_a_cut_header_is_still_one_of_safetensors(tmp_path: Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(0x80)
    (tmp_path / "cut.bin").write_bytes(len(header).to_bytes(8, "little") + header[:40])
    assert weight_file_kind(tmp_path / "cut.bin") == "safetensors"
    with pytest.raises(WeightFileError, match="promise a header of 128 bytes, and 40 follow"):
        open_weights(tmp_path / "cut.bin")
