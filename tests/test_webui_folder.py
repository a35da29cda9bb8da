"""A webui's folder: files by name, title, hash and alias; what is missing, all at once; quickly the second time."""

import hashlib
import json
import os
import pickle
import sqlite3
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from webui_diffusers.loaders import UPSCALER_LABELS, WebUIFolder, missing_files, wanted_files
from webui_diffusers.loaders.faces.load import FACE_FILES
from webui_diffusers.loaders.hashes import legacy_model_hash, tensor_data_sha256
from webui_diffusers.loaders.library.index import safetensors_metadata
from webui_diffusers.loaders.library.layout import FILE_KINDS
from webui_diffusers.loaders.library.missing import BUILT_IN_UPSCALERS, DOWNLOADED_RESTORERS, DOWNLOADED_UPSCALERS
from webui_diffusers.pipelines.images.hires import LATENT_UPSCALERS
from webui_diffusers.pipelines.images.upscale import PIXEL_FILTERS
from webui_diffusers.pipelines.infotext import parse_infotext


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBUI_DIFFUSERS_CACHE", str(tmp_path / "cache"))


def put(root: Path, place: str, value: float = 0.0, **metadata: str) -> Path:
    """A small weight file; equal values make equal content."""
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".safetensors":
        save_file({"x": torch.full((4,), value)}, path, metadata=metadata or None)
    else:
        torch.save({"x": torch.full((4,), value)}, path)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def webui(tmp_path: Path) -> Path:
    """A webui's folder as people have it."""
    root = tmp_path / "webui"
    put(root, "models/Stable-diffusion/anime/dream_8.safetensors", 1)
    put(root, "models/Stable-diffusion/Photo.CKPT", 2)
    put(root, "models/Stable-diffusion/kl-f8.vae.pt", 3)
    put(root, "models/VAE/vae-ft-mse-840000.SafeTensors", 4)
    put(root, "models/Lora/style/Ink.safetensors", 5, ss_output_name="ink wash", sshs_model_hash="ab" * 32)
    put(root, "models/LyCORIS/lyco.pt", 6)
    put(root, "embeddings/EasyNegative.safetensors", 7)
    put(root, "models/ESRGAN/4x-UltraSharp.pth", 8)
    put(root, "models/DAT/DAT_x4.pth", 9)
    put(root, "models/GFPGAN/GFPGANv1.4.pth", 10)
    put(root, "models/ControlNet/control_v11p_sd15_canny.pth", 11)
    put(root, "models/adetailer/face.onnx", 12)
    put(root, "models/hypernetworks/anime.pt", 13)
    (root / "styles.csv").write_text("name,prompt,negative_prompt\n")
    (root / "models/Stable-diffusion/Put checkpoints here.txt").touch()
    return root


NAMES = [
    ("checkpoint", "dream_8", "dream_8.safetensors"),
    ("checkpoint", "DREAM_8.safetensors", "dream_8.safetensors"),
    ("checkpoint", "anime\\dream_8.safetensors", "dream_8.safetensors"),
    ("checkpoint", "anime/dream_8.safetensors [0123456789]", "dream_8.safetensors"),
    ("checkpoint", "photo", "Photo.CKPT"),
    ("vae", "kl-f8.vae.pt", "kl-f8.vae.pt"),
    ("vae", "kl-f8", "kl-f8.vae.pt"),
    ("vae", "vae-ft-mse-840000.safetensors", "vae-ft-mse-840000.SafeTensors"),
    ("lora", "Ink", "Ink.safetensors"),
    ("lora", "ink wash", "Ink.safetensors"),
    ("lora", "lyco", "lyco.pt"),
    ("embedding", "easynegative", "EasyNegative.safetensors"),
    ("upscaler", "4x-UltraSharp", "4x-UltraSharp.pth"),
    ("upscaler", "DAT x4", "DAT_x4.pth"),
    ("face_restorer", "GFPGANv1.4", "GFPGANv1.4.pth"),
    ("controlnet", "control_v11p_sd15_canny [d14c016b]", "control_v11p_sd15_canny.pth"),
    ("detector", "face", "face.onnx"),
    ("hypernetwork", "anime", "anime.pt"),
    ("checkpoint", "kl-f8", None),
    ("checkpoint", "../../styles.csv", None),
    ("checkpoint", "/etc/passwd", None),
    ("lora", "none", None),
]


@pytest.mark.parametrize("kind, name, file", NAMES)
def test_a_file_is_found_by_what_it_is_called(webui: Path, kind: str, name: str, file: str | None) -> None:
    found = WebUIFolder(webui).find(kind, name)
    assert (found and found.path.name) == file


def test_a_hash_goes_before_a_name(webui: Path) -> None:
    photo = webui / "models/Stable-diffusion/Photo.CKPT"
    library = WebUIFolder(webui)
    for digest in (sha256(photo), sha256(photo)[:10], sha256(photo)[:12].upper()):
        assert library.find("checkpoint", "dream_8", digest).path == photo
        assert library.find("checkpoint", "renamed", digest).path == photo
        assert library.find("checkpoint", None, digest).path == photo
    assert library.find("checkpoint", f"dream_8 [{sha256(photo)[:10]}]").path == photo
    assert library.find("checkpoint", "dream_8", "f" * 10).name == "dream_8"
    assert library.find("checkpoint", "unknown", "f" * 10) is None
    assert library.find("checkpoint", "unknown", "fff") is None
    assert library.find("checkpoint", "photo").title == "Photo.CKPT"
    assert WebUIFolder(webui).find("checkpoint", "photo").title == f"Photo.CKPT [{sha256(photo)[:10]}]"


def test_the_old_hash_of_eight_digits_finds_the_only_file_that_has_it(webui: Path) -> None:
    folder = webui / "models/Stable-diffusion"
    for name, byte in (("old", b"a"), ("older", b"b"), ("copy", b"b")):
        (folder / f"{name}.ckpt").write_bytes(b"x" * 0x100000 + byte * 0x10000 + name.encode())
    library = WebUIFolder(webui)
    assert library.find("checkpoint", "renamed", legacy_model_hash(folder / "old.ckpt")).name == "old"
    shared = legacy_model_hash(folder / "older.ckpt")
    assert library.find("checkpoint", "older", shared).name == "older"
    assert library.find("checkpoint", "renamed", shared) is None


def test_networks_are_found_by_every_hash_that_texts_have(webui: Path) -> None:
    plain = put(webui, "models/Lora/plain.safetensors", 20, note="x")
    put(webui, "models/Lora/old.safetensors", 21, sshs_legacy_hash="0a1b2c3d")
    library = WebUIFolder(webui)
    assert library.find("lora", "renamed", "ab" * 6).name == "Ink"
    assert library.find("lora", "renamed", tensor_data_sha256(plain)[:12]).name == "plain"
    assert library.find("lora", "Ink", sha256(plain)[:10]).name == "plain"
    assert library.find("lora", "renamed", sha256(webui / "models/LyCORIS/lyco.pt")[:12]).name == "lyco"
    assert library.find("lora", "renamed", "0a1b2c3d").name == "old"
    assert library.has_hash(library.find("lora", "Ink"), "ababababab") and not library.has_hash(
        library.find("lora", "Ink"), tensor_data_sha256(plain)[:12]
    )


def test_aliases_that_two_files_have_find_none_and_the_later_of_equal_names_counts(webui: Path) -> None:
    put(webui, "models/Lora/a/twin.safetensors", 30, ss_output_name="shared")
    later = put(webui, "models/Lora/b/twin.safetensors", 31, ss_output_name="Shared")
    library = WebUIFolder(webui)
    assert library.find("lora", "shared") is None
    assert library.find("lora", "twin").path == later


def test_linked_folders_are_followed_and_circles_are_not(webui: Path, tmp_path: Path) -> None:
    put(tmp_path, "disk/far.safetensors", 40)
    (webui / "models/Lora/disk").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/back").symlink_to(webui / "models/Lora")
    (webui / "models/Lora/nowhere.safetensors").symlink_to(tmp_path / "gone")
    assert [file.name for file in WebUIFolder(webui).files("lora")] == ["far", "Ink", "lyco"]


def test_single_folders_go_with_or_without_a_webui(webui: Path, tmp_path: Path) -> None:
    mine = put(tmp_path, "mine/dream_8.safetensors", 50)
    library = WebUIFolder(models_folder=tmp_path / "mine")
    assert library.find("checkpoint", "dream_8").path == mine and library.files("lora") == []
    assert WebUIFolder(webui, models_folder=tmp_path / "mine").find("checkpoint", "dream_8").path == mine
    assert WebUIFolder(webui).styles == webui / "styles.csv" and library.styles is None
    with pytest.raises(ValueError, match="`lora_folder`: `/nope` is no folder"):
        WebUIFolder(lora_folder="/nope")
    with pytest.raises(ValueError, match="'lorafolder' is unknown. Did you mean 'lora_folder'"):
        WebUIFolder(lorafolder=tmp_path)
    with pytest.raises(ValueError, match="holds none of a webui's folders"):
        WebUIFolder(tmp_path / "mine")
    with pytest.raises(ValueError, match="'checkpoints' is unknown. Did you mean 'checkpoint'"):
        library.files("checkpoints")


def test_weights_in_a_folder_of_diffusers_are_called_by_it(webui: Path) -> None:
    path = put(webui, "models/VAE/my-vae/diffusion_pytorch_model.safetensors", 60)
    assert WebUIFolder(webui).find("vae", "my-vae").path == path


# ---- what the webui has worked out


def test_hashes_of_the_webui_are_read_from_its_json(webui: Path) -> None:
    path = webui / "models/Stable-diffusion/anime/dream_8.safetensors"
    told = {"mtime": path.stat().st_mtime, "sha256": "cd" * 32}
    (webui / "cache.json").write_text(json.dumps({"hashes": {"checkpoint/anime/dream_8.safetensors": told}}))
    library = WebUIFolder(webui)
    assert library.find("checkpoint", "renamed", "cdcdcdcdcd").path == path
    assert library.find("checkpoint", "dream_8").title == "anime/dream_8.safetensors [cdcdcdcdcd]"
    path.touch()
    os.utime(path, (path.stat().st_mtime + 10,) * 2)
    assert WebUIFolder(webui).find("checkpoint", "dream_8").sha256 is None


class Intruder:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


def disk_cache(folder: Path, rows: dict[str, object]) -> None:
    """A table as the `diskcache` package leaves it, its journal included."""
    folder.mkdir(parents=True)
    table = sqlite3.connect(folder / "cache.db")
    table.execute("PRAGMA journal_mode = wal")
    table.execute("CREATE TABLE Cache (rowid INTEGER PRIMARY KEY, key BLOB, raw INTEGER, mode INTEGER, value BLOB)")
    for key, value in rows.items():
        table.execute("INSERT INTO Cache (key, raw, mode, value) VALUES (?, 1, 4, ?)", (key, pickle.dumps(value)))
    table.commit()
    table.close()


def test_hashes_of_the_webui_are_read_from_its_table_and_nothing_in_it_is_run(webui: Path, tmp_path: Path) -> None:
    path = webui / "models/Stable-diffusion/Photo.CKPT"
    told = {"mtime": path.stat().st_mtime, "sha256": "EF" * 32}
    rows = {"checkpoint/Photo.CKPT": told, "checkpoint/bad.ckpt": Intruder(tmp_path / "run"), "odd": 3}
    disk_cache(webui / "cache/hashes", rows)
    lora = webui / "models/LyCORIS/lyco.pt"
    disk_cache(webui / "cache/hashes-addnet", {"lora/lyco": {"mtime": lora.stat().st_mtime, "sha256": "12" * 32}})
    before = sorted(file.name for file in (webui / "cache").rglob("*"))
    library = WebUIFolder(webui)
    assert library.find("checkpoint", "x", "efefefefef").path == path
    assert library.find("lora", "x", "121212121212").path == lora
    assert sorted(file.name for file in (webui / "cache").rglob("*")) == before and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"hashes": 3}', '{"hashes": {"checkpoint/Photo.CKPT": {"mtime": 1}}}']
)
def test_a_broken_cache_of_the_webui_is_passed_over(webui: Path, content: str) -> None:
    (webui / "cache.json").write_text(content)
    (webui / "cache/hashes").mkdir(parents=True)
    (webui / "cache/hashes/cache.db").write_bytes(b"SQLite format 3\0" + b"x" * 200)
    assert WebUIFolder(webui).find("checkpoint", "Photo").sha256 is None


# ---- the index


def test_a_file_is_hashed_once_and_again_when_it_changed(webui: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = webui / "models/Stable-diffusion/Photo.CKPT"
    first = sha256(path)
    assert WebUIFolder(webui).find("checkpoint", "x", first[:10]).path == path
    opened = []
    monkeypatch.setattr(
        "webui_diffusers.loaders.library.index.file_sha256", lambda p, **_: opened.append(p) or "0" * 64
    )
    assert WebUIFolder(webui).find("checkpoint", "x", first[:10]).path == path and not opened
    put(webui, "models/Stable-diffusion/Photo.CKPT", 99).touch()
    assert WebUIFolder(webui).find("checkpoint", "Photo", first[:10]).sha256 == "0" * 64
    assert str(path) in opened


def test_files_beyond_the_limit_are_not_hashed_unasked(
    webui: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("webui_diffusers.loaders.library.folder.HASHED_AT_ONCE", 10)
    digest = sha256(webui / "models/Stable-diffusion/Photo.CKPT")[:10]
    library = WebUIFolder(webui)
    caplog.set_level("WARNING", "diffusers")
    monkeypatch.setattr("diffusers.utils.logging._default_handler", None, raising=False)
    assert library.find("checkpoint", "renamed", digest) is None
    library.hash_files("checkpoint")
    library.refresh()
    assert library.find("checkpoint", "renamed", digest).name == "Photo"


def test_an_index_that_cannot_be_read_or_written_is_done_without(webui: Path, tmp_path: Path) -> None:
    WebUIFolder(webui).find("checkpoint", "x", "f" * 10)
    for file in (tmp_path / "cache/library").iterdir():
        file.write_text('{"version": 1, "files": {"x": 3')
    assert WebUIFolder(webui).find("checkpoint", "Photo").name == "Photo"
    (tmp_path / "cache").rename(tmp_path / "gone")
    (tmp_path / "cache").write_text("no folder")
    assert (
        WebUIFolder(webui).find("checkpoint", "x", sha256(webui / "models/Stable-diffusion/Photo.CKPT")).name
        == "Photo"
    )


def test_the_second_look_at_five_thousand_files_is_quick(tmp_path: Path) -> None:
    root = tmp_path / "big"
    one = put(root, "models/Lora/0/first.safetensors", 1, ss_output_name="Alias").read_bytes()
    for number in range(5000):
        folder = root / f"models/Lora/{number % 50}"
        folder.mkdir(exist_ok=True)
        (folder / f"net{number}.safetensors").write_bytes(one.replace(b"Alias", f"A{number:04}".encode()))
    library = WebUIFolder(root)
    assert library.find("lora", "A4321").name == "net4321" and len(library.files("lora")) == 5001
    before = time.process_time()
    library = WebUIFolder(root)
    assert library.find("lora", "net77").name == "net77"
    assert library.find("lora", "A0078").name == "net78"
    looked = time.process_time()
    assert looked - before < 1.0  # 0.2 s where nothing else runs
    for number in range(100):
        assert library.find("lora", f"A{number:04}") is not None and library.find("lora", "nothing") is None
    assert time.process_time() - looked < 1.0


def test_metadata_is_read_without_the_rest(tmp_path: Path) -> None:
    path = put(tmp_path, "a.safetensors", 1, ss_output_name="x")
    assert safetensors_metadata(path) == {"ss_output_name": "x"}
    path.write_bytes(path.read_bytes()[:40])
    assert safetensors_metadata(path) == {}
    (tmp_path / "b.safetensors").write_text("text")
    assert safetensors_metadata(tmp_path / "b.safetensors") == {}
    assert safetensors_metadata(put(tmp_path, "c.pt", 1)) == {}


# ---- what is missing

TEXT = """a cat <lora:ink_a:0.8> <lora:Ink:0.5> <lora:ink_b:0.6:0.2>
Negative prompt: (EasyNegative:1.2), badhandv4
Steps: 4, Sampler: Euler a, CFG scale: 5, Seed: 7, Size: 128x128, Model hash: 0123456789, Model: dream_9, \
VAE: my.vae.pt, VAE hash: 1234567890, Denoising strength: 0.4, Face restoration: GFPGAN, \
ControlNet 0: "Module: canny, Model: control_v11p_sd15_depth [cfd03158], Weight: 1", Hires upscale: 1.5, \
Hires upscaler: 4x-UltraSharpe, Lora hashes: "ink_a: aaaaaaaaaaaa, Ink: abababababab", \
Refiner: r [aaaaaaaaaa], Refiner switch at: 0.8, \
TI hashes: "mine: c74b4e810b03", Version: v1.10.1"""


def test_everything_that_a_text_names_is_listed_with_its_hash() -> None:
    wanted = {(file.kind, file.name, file.hash) for file in wanted_files(parse_infotext(TEXT))}
    assert wanted == {
        ("checkpoint", "dream_9", "0123456789"),
        ("vae", "my.vae.pt", "1234567890"),
        ("checkpoint", "r", "aaaaaaaaaa"),
        ("lora", "ink_a", "aaaaaaaaaaaa"),
        ("lora", "Ink", "abababababab"),
        ("lora", "ink_b", None),
        ("embedding", "mine", "c74b4e810b03"),
        ("embedding", "EasyNegative", None),
        ("embedding", "badhandv4", None),
        ("upscaler", "4x-UltraSharpe", None),
        ("face_restorer", "GFPGAN", None),
        ("controlnet", "control_v11p_sd15_depth", "cfd03158"),
    }


def test_what_is_missing_is_said_all_at_once_with_near_names(webui: Path) -> None:
    missing = missing_files(parse_infotext(TEXT), WebUIFolder(webui))
    assert [(file.kind, file.name) for file in missing] == [
        ("checkpoint", "dream_9"),
        ("vae", "my.vae.pt"),
        ("checkpoint", "r"),
        ("lora", "ink_a"),
        ("lora", "ink_b"),
        ("embedding", "mine"),
        ("upscaler", "4x-UltraSharpe"),
        ("controlnet", "control_v11p_sd15_depth"),
        ("embedding", "badhandv4"),
    ]
    lines = [str(file) for file in missing]
    assert lines[0] == (
        f"Checkpoint `dream_9` [0123456789]: not in {webui}/models/Stable-diffusion. Near: `dream_8`. "
        "Named in `Model`; goes to the model."
    )
    assert "Near: `Ink`" in lines[3] and f"{webui}/models/Lora or {webui}/models/LyCORIS" in lines[3]
    assert "Near: `4x-UltraSharp`." in lines[6] and "goes to `hires_upscaler`" in lines[6]
    everything = missing_files(parse_infotext(TEXT))
    assert len(everything) == 11 and "no folder to look in is named" in str(everything[0])


def test_what_comes_by_itself_is_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*BUILT_IN_UPSCALERS, *DOWNLOADED_UPSCALERS):
        assert missing_files({"prompt": "a cat", "hires_upscaler": name}) == []
    assert missing_files({"prompt": "", "restore_faces": "GFPGAN"}) == []
    monkeypatch.setattr("webui_diffusers.loaders.library.missing.find_spec", lambda name: None)
    (missing,) = missing_files({"prompt": "", "restore_faces": "CodeFormer"})
    assert "pip install 'webui-diffusers[codeformer]'" in str(missing)


def test_the_tables_of_labels_are_those_of_what_loads_them() -> None:
    assert set(BUILT_IN_UPSCALERS) == {"None", *LATENT_UPSCALERS, *PIXEL_FILTERS}
    assert set(DOWNLOADED_UPSCALERS) == set(UPSCALER_LABELS) and set(DOWNLOADED_RESTORERS) < set(FACE_FILES)


def test_a_call_is_asked_like_a_text(webui: Path) -> None:
    call = {
        "prompt": ["a <lora:Ink:1>", "b <lyco:gone>"],
        "negative_prompt": "bad-hands-5",
        "loras": [("lyco", 1.0), ("other", 0.5, 0.5)],
        "hires_upscaler": "4x-UltraSharp",
        "control_units": [{"model": "control_v11p_sd15_canny"}, {"model": "tile [deadbeef]"}, {"model": "None"}],
        "detailers": [{"ad_model": "face.onnx"}, {"ad_model": "hand.onnx"}, {"ad_model": "mediapipe_face_full"}],
    }
    missing = [file.name for file in missing_files(call, WebUIFolder(webui))]
    assert missing == ["gone", "other", "tile", "hand.onnx", "bad-hands-5"]


def test_hashes_of_model_sites_are_read_though_the_webuis_reading_cuts_them_short(webui: Path) -> None:
    photo = sha256(webui / "models/Stable-diffusion/Photo.CKPT")[:10]
    hashes = f'{{"model": "{photo}", "lora:i": "abababab", "embed:e": "0011223344"}}'
    fields = parse_infotext(f"x\nSteps: 4, Sampler: Euler, Seed: 1, Size: 64x64, Hashes: {hashes}")
    assert [(f.kind, f.hash) for f in wanted_files(fields)] == [("checkpoint", photo)]
    assert missing_files(fields, WebUIFolder(webui)) == []
    whole = {"Prompt": "x <lora:i:1>", "Steps": "4", "Hashes": hashes}
    assert [(f.kind, f.name) for f in missing_files(whole, WebUIFolder(webui))] == [("embedding", "e")]


def test_kinds_without_folders_are_empty(tmp_path: Path) -> None:
    (tmp_path / "embeddings").mkdir()
    library = WebUIFolder(tmp_path)
    assert all(library.files(kind) == [] and library.find(kind, "x", "f" * 10) is None for kind in FILE_KINDS)
    assert "webui_diffusers.loaders.library.missing" in sys.modules


def test_a_hypernetwork_is_refused_by_name_whether_its_file_is_there_or_not(webui: Path) -> None:
    put(webui, "models/hypernetworks/anime_3.pt")
    text = "x <hypernet:gone:1>\nSteps: 4, Sampler: Euler, Seed: 1, Hypernet: anime_3, Hypernet strength: 0.5"
    library = WebUIFolder(webui)
    there, gone = sorted(missing_files(parse_infotext(text), library), key=lambda file: file.name)
    assert (there.kind, there.name, gone.name) == ("hypernetwork", "anime_3", "gone")
    assert f"`{webui}/models/hypernetworks/anime_3.pt` is one, but hypernetworks are not applied here" in str(there)
    assert "Take `<hypernet:gone:...>` out of the prompt" in str(gone)
    assert [file.name for file in missing_files({"prompt": "a <hypernet:gone:1>"}, library)] == ["gone"]


def test_taesd_and_the_hires_checkpoint_are_asked_for(webui: Path) -> None:
    text = (
        "x\nSteps: 4, Sampler: Euler, Seed: 1, Model: dream_8, Denoising strength: 0.5, Hires upscale: 2, "
        "Hires checkpoint: late [0123456789], VAE Decoder: TAESD"
    )
    missing = missing_files(parse_infotext(text), WebUIFolder(webui))
    assert [(file.kind, file.name, file.hash) for file in missing] == [
        ("taesd", "TAESD", None),
        ("checkpoint", "late", "0123456789"),
    ]
    put(webui, "models/VAE-taesd/taesdxl_decoder.pth")
    library = WebUIFolder(webui)
    assert [file.kind for file in missing_files(parse_infotext(text), library)] == ["taesd", "checkpoint"]
    assert [file.kind for file in missing_files(parse_infotext(text), library, is_sdxl=True)] == ["checkpoint"]


def test_forges_modules_and_other_labels_of_hashes_are_asked_for(webui: Path) -> None:
    text = (
        "x <lyco:styleA:0.8>\nSteps: 4, Sampler: Euler, Seed: 1, Module 1: sdxl_vae, Module 2: clip_l, "
        'Lyco hashes: "styleA: 1234567890ab", TI: badthing'
    )
    missing = missing_files(parse_infotext(text), WebUIFolder(webui))
    assert [(file.kind, file.name, file.hash) for file in missing] == [
        ("vae", "sdxl_vae", None),
        ("lora", "styleA", "1234567890ab"),
        ("embedding", "badthing", None),
    ]
