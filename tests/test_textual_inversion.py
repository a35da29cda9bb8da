"""Embeddings from every kind of file, equal to what the webui loaded; what is no embedding is said, never run."""

import base64
import io
import json
import os
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from recordings import GOLDEN
from safetensors.torch import save_file
from torch import Tensor
from webui_diffusers.loaders.textual_inversion import (
    EmbeddingError,
    TextualInversion,
    read_embedding,
    read_embedding_folder,
)
from webui_diffusers.loaders.weight_files import WeightFileError


VECTORS = torch.linspace(-1.0, 1.0, 3 * 8).reshape(3, 8)
TERM = {"string_to_token": {"*": 265}, "string_to_param": {"*": VECTORS}, "name": "inner", "step": 7}
PAIR = {"clip_l": VECTORS, "clip_g": torch.ones(2, 12)}


def card(text: str | None = None, size: tuple[int, int] = (24, 16)) -> bytes:
    """A PNG file with a gradient, and `text` as its embedding's chunk."""
    info = PngImagePlugin.PngInfo()
    if text is not None:
        info.add_text("sd-ti-embedding", text)
    pixels = np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3) | 1
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


def as_json(table: dict[str, object]) -> bytes:
    return json.dumps(table, default=lambda tensor: {"TORCHTENSOR": tensor.tolist()}).encode()


def hidden(table: dict[str, object], height: int = 40, tail: bytes = b"noise") -> bytes:
    """A PNG file with a table in its margins: the format of `_json_in_the_margins`, written the slow way."""
    data = zlib.compress(as_json(table)) + tail
    width = -(-len(data) // (height * 3))
    data = data.ljust(width * height * 3, b"\x5a")
    x, mask = 0, []
    for _ in data:
        x = (1664525 * x + 1013904223) % 2**32
        mask.append(x % 255 & 15)
    low = [(byte & 15) ^ key | 0x40 for byte, key in zip(data, mask)]
    high = [(byte >> 4) ^ key | 0x60 for byte, key in zip(data, mask)]
    left, right = (np.array(strip, np.uint8).reshape(height, width, 3) for strip in (low, high))
    black, middle = np.zeros((height, 1, 3), np.uint8), np.full((height, 9, 3), 0x77, np.uint8)
    middle[:, 4] = 0  # a dark column inside the picture is not a border
    stream = io.BytesIO()
    Image.fromarray(np.concatenate([left, black, middle, black, right], axis=1)).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, content: object) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


# file name, content, name of the embedding, its vectors
KINDS = [
    ("a.pt", TERM, "a", VECTORS),
    ("a.bin", TERM, "a", VECTORS),
    ("A Word.PT", TERM, "A Word", VECTORS),
    ("param.pt", {"string_to_param": {"*": torch.nn.Parameter(VECTORS)}}, "param", VECTORS),
    ("dict.pt", {"string_to_param": torch.nn.ParameterDict({"x": torch.nn.Parameter(VECTORS)})}, "dict", VECTORS),
    ("half.pt", {"string_to_param": {"*": VECTORS.half()}}, "half", VECTORS.half().float()),
    ("one.bin", {"<word>": VECTORS}, "one", VECTORS),
    ("flat.bin", {"<word>": VECTORS[0]}, "flat", VECTORS[:1]),
    ("xl.pt", PAIR, "xl", PAIR),
    ("emb.safetensors", {"emb_params": VECTORS}, "emb", VECTORS),
    ("xl.safetensors", PAIR, "xl", PAIR),
    ("card.png", card(base64.b64encode(as_json(TERM)).decode()), "inner", VECTORS),
    ("card.PNG", card(base64.b64encode(as_json(PAIR)).decode()), "card", PAIR),
    ("pixels.png", hidden(TERM), "inner", VECTORS),
]


@pytest.mark.parametrize("file, content, name, vectors", KINDS, ids=[kind[0] for kind in KINDS])
def test_every_kind_of_file_is_read(
    tmp_path: Path, file: str, content: object, name: str, vectors: Tensor | dict[str, Tensor]
) -> None:
    found = read_embedding(write(tmp_path / file, content))
    assert found.name == name
    assert isinstance(found.vectors, dict) == isinstance(vectors, dict)
    wanted, actual = vectors if isinstance(vectors, dict) else {"clip_l": vectors}, found.parts
    assert actual.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert actual[key].dtype == torch.float32 and not actual[key].requires_grad
        torch.testing.assert_close(actual[key], tensor.detach(), rtol=0, atol=1e-7)


def test_embeddings_that_diffusers_trains_beside_a_network_are_those_of_sdxl(tmp_path: Path) -> None:
    pair = {"text_encoders_0": PAIR["clip_l"], "text_encoders_1": PAIR["clip_g"]}
    save_file(pair, tmp_path / "pivot.safetensors")
    found = read_embedding(tmp_path / "pivot.safetensors")
    assert all(torch.equal(found.parts[key], PAIR[key]) for key in PAIR) and found.for_encoders([8, 12])


def test_sdxl_counts_the_rows_of_clip_g_and_sums_the_widths(tmp_path: Path) -> None:
    found = read_embedding(write(tmp_path / "xl.safetensors", PAIR))
    assert (found.count, found.width) == (2, 20)
    assert [tuple(part.shape) for part in found.for_encoders((8, 12))] == [(3, 8), (2, 12)]
    assert repr(found).startswith("TextualInversion('xl', 2 x 20, ")


def test_notes_of_a_pt_file_are_kept(tmp_path: Path) -> None:
    found = read_embedding(write(tmp_path / "a.pt", {**TERM, "sd_checkpoint": "abcd1234", "sd_checkpoint_name": "m"}))
    assert (found.step, found.checkpoint, found.checkpoint_name) == (7, "abcd1234", "m")


@pytest.mark.goldens
def test_the_folder_holds_what_the_webui_loaded() -> None:
    meta = json.loads((GOLDEN / "prompt" / "meta.json").read_text(encoding="utf-8"))
    loaded, skipped = read_embedding_folder(GOLDEN / "prompt" / "ti", (32,))
    wanted = meta["ti_loaded_for_sd1_width_32"]
    assert loaded.keys() == wanted.keys()
    for name, found in loaded.items():
        row = wanted[name]
        assert (found.path.name, found.count, found.width) == (row["file"], row["vectors"], row["dim"])
        assert (found.hash, found.step) == (row["shorthash"], row["step"])
        assert float(found.for_encoders((32,))[0].double().sum()) == pytest.approx(row["vec_sum"], abs=1e-6)
    empty = {name.rpartition(".")[0] for name in meta["ti_files"] if not (GOLDEN / "prompt/ti" / name).stat().st_size}
    assert {file.name for file in skipped} == {*meta["ti_skipped"], *empty}


@pytest.mark.goldens
def test_every_embedding_that_a_recorded_prompt_names_has_the_recorded_length() -> None:
    rows = GOLDEN / "prompt" / "chunks.jsonl"
    if not rows.is_file():
        pytest.skip("no recorded chunks in this folder")
    loaded, _ = read_embedding_folder(GOLDEN / "prompt" / "ti", (32,))
    fixes = [
        fix
        for row in map(json.loads, rows.read_text(encoding="utf-8").splitlines())
        for chunk in row["chunks"]
        for fix in chunk["fixes"]
    ]
    assert fixes
    assert {(fix["name"], fix["vectors"]) for fix in fixes} <= {(name, found.count) for name, found in loaded.items()}


def test_a_folder_is_read_recursively_and_each_skip_has_a_reason(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "circle").symlink_to(tmp_path)
    write(tmp_path / "deep" / "er" / "good.pt", TERM)
    write(tmp_path / "good.safetensors", {"emb_params": VECTORS + 1})
    write(tmp_path / "wide.pt", {"x": torch.ones(1, 9)})
    write(tmp_path / "picture.png", card())
    write(tmp_path / "good.preview.png", card(base64.b64encode(as_json(TERM)).decode()))
    write(tmp_path / "broken.png", card()[:60])
    write(tmp_path / "notes.txt", b"not looked at")
    loaded, skipped = read_embedding_folder(tmp_path, (8,))
    assert list(loaded) == ["good"] and loaded["good"].path.name == "good.safetensors"
    reasons = {skip.path.name: skip.reason for skip in skipped}
    assert set(reasons) == {"good.pt", "wide.pt", "broken.png"}
    assert "9 wide" in reasons["wide.pt"] and "taken by" in reasons["good.pt"]


@pytest.mark.parametrize("rows", [1, 75])
def test_what_the_margins_hide_comes_back(tmp_path: Path, rows: int) -> None:
    vectors = torch.randn(rows, 16, generator=torch.Generator().manual_seed(rows))
    found = read_embedding(write(tmp_path / "x.png", hidden({**TERM, "string_to_param": {"*": vectors}})))
    assert torch.equal(found.vectors, vectors)


class Intruder:
    """Would make a folder when unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_a_pt_that_would_run_code_is_not_run(tmp_path: Path, save: Callable[[object, Path], None]) -> None:
    save({"string_to_param": {"*": VECTORS}, "step": Intruder(tmp_path / "made")}, tmp_path / "bad.pt")
    with pytest.raises(WeightFileError, match=r"bad\.pt.*(would run code|damaged)"):
        read_embedding(tmp_path / "bad.pt")
    assert not (tmp_path / "made").exists()


# file name, content, what the message says
REFUSED = [
    ("none.pt", b"", "empty"),
    ("cut.pt", None, "truncated"),
    ("cut.safetensors", None, "truncated"),
    ("lora.safetensors", {"a.lora_up.weight": VECTORS, "a.lora_down.weight": VECTORS + 1}, "2 tensors.*networks"),
    ("two.pt", {"string_to_param": {"*": VECTORS, "+": VECTORS}}, "2 tensors"),
    ("zero.pt", {"string_to_param": {}}, "0 tensors"),
    ("number.pt", {"step": 3}, "`step`.*no embedding"),
    ("list.pt", [VECTORS], "no table"),
    ("cube.pt", {"x": torch.ones(1, 2, 3)}, r"shape \(1, 2, 3\)"),
    ("nothing.pt", {"x": torch.ones(0, 8)}, r"shape \(0, 8\)"),
    ("ints.pt", {"x": torch.ones(2, 8, dtype=torch.int64)}, "no tensor of numbers"),
    ("nan.pt", {"x": torch.full((2, 8), torch.nan)}, "not finite"),
    ("half.pt", {"clip_l": VECTORS, "clip_g": 3}, "`clip_g`"),
    ("plain.png", card(), "without an embedding"),
    ("dark.png", card("!!"), "cannot be read"),
    ("ragged.png", card(base64.b64encode(b'{"x": {"TORCHTENSOR": [[1, 2], [3]]}}').decode()), "cannot be read"),
    ("x.jxl", b"\xff\x0a not a picture here", "cannot be opened"),
    ("a.ckpt", TERM, "ending `.ckpt`"),
]


@pytest.mark.parametrize("file, content, says", REFUSED, ids=[case[0] for case in REFUSED])
def test_what_is_no_embedding_is_said(tmp_path: Path, file: str, content: object, says: str) -> None:
    if content is None:
        whole = write(tmp_path / file, {"emb_params": VECTORS} if "safe" in file else TERM).read_bytes()
        content = whole[: len(whole) // 2]
    path = write(tmp_path / file, content)
    with pytest.raises(WeightFileError, match=says) as error:
        read_embedding(path)
    assert file in str(error.value)


def test_a_parameter_is_not_a_tensor(tmp_path: Path) -> None:
    with pytest.raises(EmbeddingError, match="no embedding"):
        read_embedding(write(tmp_path / "p.bin", {"x": torch.nn.Parameter(VECTORS)}))


def test_the_wrong_width_names_both(tmp_path: Path) -> None:
    found = read_embedding(write(tmp_path / "a.pt", TERM))
    assert isinstance(found, TextualInversion)
    with pytest.raises(EmbeddingError, match=r"a\.pt.*8 wide.*768 \+ 1280 wide"):
        found.for_encoders((768, 1280))
    with pytest.raises(EmbeddingError, match="is no folder"):
        read_embedding_folder(tmp_path / "a.pt")
