"""Broken and hostile files end in one error that names them, cost no more than their size, and stop nothing else."""

import base64
import io
import json
import random
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from mutants import mutated_files
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file
from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact
from spandrel.architectures.ESRGAN.__arch.RRDB import RRDBNet
from test_checkpoint import sketch
from torch import Tensor
from webui_diffusers.loaders import read_network
from webui_diffusers.loaders.checkpoint.describe import describe_checkpoint
from webui_diffusers.loaders.faces.load import load_face_detector, load_face_parser, load_face_restorer
from webui_diffusers.loaders.hashes import legacy_model_hash, model_hash
from webui_diffusers.loaders.textual_inversion import read_embedding, read_embedding_folder
from webui_diffusers.loaders.upscaler import load_upscaler
from webui_diffusers.loaders.upscaler_model import upscaler_network
from webui_diffusers.loaders.weight_files import WeightFileError, open_weights, read_pickle


pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of what it meets in some mutants


def read_all(path: Path) -> None:
    with open_weights(path) as file:
        for key in file.keys():
            assert file.shape(key) == tuple(file.tensor(key).shape) and file.dtype(key) == file.tensor(key).dtype


def read_and_hash(path: Path) -> None:
    describe_checkpoint(path), model_hash(path), legacy_model_hash(path)


GFPGAN = {"toRGB.0.weight": torch.ones(3, 4, 1, 1), "stylegan_decoder.style_mlp.1.weight": torch.ones(4, 4)}
ALPHAS = {"alphas_cumprod": torch.linspace(1, 0, 1000), "edm_mean": torch.ones(4), "edm_std": torch.ones(4)}

# reader, a good file's content, endings, mutants in the fast suite
READERS: dict[str, tuple[Callable[[Path], object], Mapping[str, Tensor], tuple[str, str], int]] = {
    "weights": (read_all, {"a.weight": torch.ones(4, 4), "b": torch.ones(3)}, (".pt", ""), 300),
    "embedding": (read_embedding, {"emb_params": torch.ones(2, 8)}, (".pt", ""), 300),
    "SDXL embedding": (read_embedding, {"clip_l": torch.ones(2, 8), "clip_g": torch.ones(2, 9)}, (".bin", ".pt"), 200),
    "SDXL checkpoint": (read_and_hash, sketch("sdxl") | ALPHAS, (".ckpt", ""), 200),
    "SD2 checkpoint": (read_and_hash, sketch("sd2"), (".ckpt", ".ckpt"), 200),
    "compact upscaler": (
        load_upscaler,
        SRVGGNetCompact(num_feat=4, num_conv=2, upscale=2).state_dict(),
        (".pth", ""),
        300,
    ),
    "ESRGAN": (
        load_upscaler,
        RRDBNet(in_nc=3, out_nc=3, num_filters=4, num_blocks=1, scale=4).state_dict(),
        (".pth", ""),
        100,
    ),
    "face restorer": (load_face_restorer, GFPGAN, (".pth", ""), 12),
    "face detector": (load_face_detector, {"pnet.conv1.weight": torch.ones(10, 3, 3, 3)}, (".pth", ""), 60),
    "face parser": (load_face_parser, {"out_mask_conv.conv2d.weight": torch.ones(19, 4, 3, 3)}, (".pth", ""), 12),
}


def survives(reader: str, folder: Path, count: int, seed: int) -> None:
    read, content, suffixes, _ = READERS[reader]
    refused = 0
    for path in mutated_files(content, folder, count=count, seed=seed, suffixes=suffixes):
        try:
            read(path)
        except WeightFileError as error:
            refused += 1
            assert path.stem in str(error) and len(str(error)) < 2000
    assert refused > count // 3, "the mutants are too tame"


@pytest.mark.parametrize("reader", READERS)
def test_mutants_are_read_or_refused_in_words(tmp_path: Path, reader: str) -> None:
    survives(reader, tmp_path, READERS[reader][3], seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_thousands_of_mutants_are_read_or_refused_in_words(tmp_path: Path, reader: str) -> None:
    survives(reader, tmp_path, 10 * READERS[reader][3], seed=2)


# ---- files whose content would cost more than they are long


def branching(depth: int) -> list:
    node: list = [torch.ones(1)]
    for _ in range(depth):
        node = [node, node]
    return node


ONE = torch.ones(1)
COSTLY: dict[str, tuple[object, str]] = {
    "one number, a tera of times": ({"emb": ONE.expand(1 << 20, 1 << 20)}, "claims more numbers than the file holds"),
    "stride 0": ({"emb": ONE.as_strided((9000, 9000), (0, 0))}, "claims more numbers than the file holds"),
    "overlapping rows": ({"emb": torch.ones(2000).as_strided((1900, 100), (1, 1))}, "claims more numbers"),
    "no numbers": ({"emb": torch.ones(3, 4, device="meta")}, "has a shape and no numbers"),
    "sparse": ({"emb": torch.ones(3, 4).to_sparse()}, "sparse, nested or quantised"),
    "hidden deep inside": ({"a": [{"b": (ONE.expand(1 << 40),)}]}, "claims more numbers"),
}


@pytest.mark.parametrize("name", COSTLY)
def test_what_claims_more_than_its_file_holds_is_refused_at_once(tmp_path: Path, name: str) -> None:
    content, says = COSTLY[name]
    torch.save(content, tmp_path / "bomb.pt")
    before = time.process_time()
    for read in (read_pickle, open_weights, read_embedding, describe_checkpoint, load_upscaler):
        with pytest.raises(WeightFileError, match=rf"bomb\.pt`.*{says}"):
            read(tmp_path / "bomb.pt")
    assert time.process_time() - before < 5


def test_numbers_shared_too_often_are_refused_and_tied_weights_are_not(tmp_path: Path) -> None:
    rows = torch.ones(1000)
    torch.save({"a": rows, "b": rows, "c": rows.view(10, 100)}, tmp_path / "tied.pt")
    assert open_weights(tmp_path / "tied.pt").shape("c") == (10, 100)
    torch.save({str(number): rows.view(10, 100) for number in range(2000)}, tmp_path / "bomb.pt")
    with pytest.raises(WeightFileError, match="share their numbers"):
        open_weights(tmp_path / "bomb.pt")


def test_a_packed_archive_is_not_unpacked(tmp_path: Path) -> None:
    torch.save({"emb": torch.zeros(1000, 1000)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain:
        with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as packed:
            for entry in plain.infolist():
                packed.writestr(entry.filename, plain.read(entry))
    assert (tmp_path / "bomb.pt").stat().st_size < 20_000
    with pytest.raises(WeightFileError, match=r"bomb\.pt` is packed.*unpacks to 40\d+ bytes"):
        read_embedding(tmp_path / "bomb.pt")


def test_an_archive_of_several_disks_is_refused(tmp_path: Path) -> None:
    torch.save({"emb": torch.zeros(3, 4)}, tmp_path / "parts.pt")
    content = bytearray((tmp_path / "parts.pt").read_bytes())
    content[content.rindex(b"PK\6\7") + 16] = 7  # how many there are
    (tmp_path / "parts.pt").write_bytes(content)
    for read in (open_weights, read_embedding, describe_checkpoint, load_upscaler):
        with pytest.raises(WeightFileError, match=r"parts\.pt` is packed.*contents is damaged"):
            read(tmp_path / "parts.pt")


def test_what_is_quoted_of_a_file_is_short(tmp_path: Path) -> None:
    save_file({"a" * 50_000: torch.ones(2, 3)}, tmp_path / "long.safetensors")
    torch.save({"state_dict": 1, "a b" * 50_000: 2}, tmp_path / "long.pt")
    for read in (read_network, load_face_detector, load_face_parser, load_face_restorer, load_upscaler):
        with pytest.raises(WeightFileError, match=r"long\.safetensors") as refused:
            read(tmp_path / "long.safetensors")
        assert len(str(refused.value)) < 2000
    with pytest.raises(WeightFileError, match=r"long\.pt`.*… ?b?a ba? ?b") as refused:
        read_embedding(tmp_path / "long.pt")
    assert len(str(refused.value)) < 2000


def test_tables_that_hold_themselves_and_branching_ones_are_walked_once(tmp_path: Path) -> None:
    loop: dict = {}
    loop["state_dict"] = loop
    for content in (loop, {"string_to_param": {"*": branching(60)}}, {"x": branching(60)}):
        torch.save(content, tmp_path / "loop.pt")
        for read in (open_weights, read_embedding, describe_checkpoint, load_upscaler):
            with pytest.raises(WeightFileError, match=r"loop\.pt"):
                read(tmp_path / "loop.pt")


def test_deep_json_in_a_header_is_refused(tmp_path: Path) -> None:
    text = b'{"__metadata__":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001
    (tmp_path / "deep.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(WeightFileError, match=r"deep\.safetensors` is truncated or damaged"):
        open_weights(tmp_path / "deep.safetensors")


@pytest.mark.parametrize(
    "key, value, says",
    [
        ("body.999999999.weight", torch.ones(4, 4, 3, 3), "counts layers"),
        ("body.0.weight", torch.ones(1 << 30, 0, 3, 3), "is empty"),
    ],
)
def test_an_upscaler_is_not_built_larger_than_its_file(tmp_path: Path, key: str, value: Tensor, says: str) -> None:
    state = SRVGGNetCompact(num_feat=4, num_conv=2, upscale=2).state_dict() | {key: value}
    torch.save({"params": state}, tmp_path / "up.pth")
    with pytest.raises(WeightFileError, match=rf"up\.pth` is no upscaler.*{says}"):
        load_upscaler(tmp_path / "up.pth")


def test_shapes_that_disagree_are_seen_before_a_network_is_made(tmp_path: Path) -> None:
    state = SRVGGNetCompact(num_feat=4, num_conv=2, upscale=2).state_dict()
    state["body.0.weight"] = torch.ones(30000, 3, 3, 3)  # 30,000 channels in every layer: 32 GB
    before = time.process_time()
    with pytest.raises(WeightFileError, match="do not fit together.*size mismatch"):
        upscaler_network(state, "up")
    assert time.process_time() - before < 5


def test_one_broken_embedding_does_not_stop_its_folder(tmp_path: Path) -> None:
    save_file({"emb_params": torch.ones(2, 8)}, tmp_path / "good.safetensors")
    broken = list(COSTLY.values())[:3] + [({"string_to_param": {1: 2}}, ""), ([], ""), ({None: torch.ones(2)}, "")]
    for number, (content, _) in enumerate(broken):
        torch.save(content, tmp_path / f"bad{number}.pt")
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n0000")
    loaded, skipped = read_embedding_folder(tmp_path, [8])
    assert list(loaded) == ["good"]
    assert {item.path.name for item in skipped} == {f"bad{n}.pt" for n in range(6)} | {"text.pt", "cut.png"}


# ---- pictures that may hold an embedding


def embedding_card(text: str, size: tuple[int, int] = (16, 16)) -> bytes:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("sd-ti-embedding", text)
    stream = io.BytesIO()
    Image.new("RGB", size).save(stream, "PNG", pnginfo=chunks)
    return stream.getvalue()


def test_broken_pictures_and_their_texts_are_refused_in_words(tmp_path: Path) -> None:
    chance, path = random.Random(3), tmp_path / "card.png"
    good = json.dumps({"string_to_param": {"*": {"TORCHTENSOR": [[0.5] * 8] * 2}}, "name": "card"})
    texts = [good[:number] for number in range(0, len(good), 7)]
    texts += [
        good.replace("0.5", value, 1) for value in ('"x"', "null", "[1]", "1e999", "9" * 400, "{}", "true", "NaN")
    ]
    texts += ["[" * 100_000, '{"string_to_param": 3}', "3", '{"TORCHTENSOR": [[[]]]}', '{"TORCHTENSOR": {}}']
    cards = [embedding_card(base64.b64encode(text.encode()).decode()) for text in texts] + [embedding_card("=é")]
    whole = embedding_card(base64.b64encode(good.encode()).decode())
    for _ in range(150):
        card = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            card[chance.randrange(len(card))] = chance.randrange(256)
        cards.append(bytes(card))
    read = 0
    for card in [whole, *cards]:
        path.write_bytes(card)
        try:
            read += read_embedding(path).name == "card"
        except WeightFileError as error:
            assert "card.png" in str(error)
    assert 0 < read < 60


def test_a_picture_of_more_pixels_than_its_file_could_hide_is_not_unpacked(tmp_path: Path) -> None:
    Image.new("L", (9000, 9000)).save(tmp_path / "flat.png")
    before = time.process_time()
    with pytest.raises(WeightFileError, match=r"flat\.png` is a picture without an embedding"):
        read_embedding(tmp_path / "flat.png")
    assert time.process_time() - before < 0.2
    (tmp_path / "card.png").write_bytes(embedding_card("e30=", (3000, 3000)))
    with pytest.raises(WeightFileError, match=r"card\.png` holds no table of tensors"):
        read_embedding(tmp_path / "card.png")
