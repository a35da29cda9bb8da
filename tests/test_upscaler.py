"""Upscalers as files and as components: labels, paths, folders, saving, precision, wrong files."""

import hashlib
import http.server
import os
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from diffusers import ModelMixin, UNet2DModel
from safetensors.torch import load_file, save_file
from spandrel.architectures.Compact import Compact
from spandrel.architectures.ESRGAN import ESRGAN
from spandrel.architectures.SCUNet import SCUNet
from spandrel.architectures.SwinIR import SwinIR
from webui_diffusers.loaders.downloads import PublishedFile, fetch_published, published_cache_folder
from webui_diffusers.loaders.realesrgan_backend import functional_tensor_shim
from webui_diffusers.loaders.upscaler import UPSCALER_LABELS, ImageUpscaler, load_upscaler
from webui_diffusers.loaders.weight_files import WeightFileError


NETWORKS = {  # name -> (untrained network, scale, side that its padding must survive)
    "Compact x2": (lambda: Compact(num_feat=8, num_conv=2, upscale=2), 2, 7),
    "ESRGAN x4": (lambda: ESRGAN(num_filters=8, num_blocks=1, scale=4), 4, 5),
    "Real-ESRGAN x2": (lambda: ESRGAN(in_nc=12, num_filters=8, num_blocks=1, scale=4, shuffle_factor=2), 2, 7),
    "SwinIR x2": (
        lambda: SwinIR(
            img_size=16, embed_dim=12, depths=[2], num_heads=[2], window_size=8, upscale=2, upsampler="pixelshuffle"
        ),
        2,
        11,
    ),
    "SCUNet x1": (lambda: SCUNet(config=[1, 1, 1, 1, 1, 1, 1], dim=64), 1, 30),
}


@pytest.fixture(scope="module")
def shipped() -> ImageUpscaler:
    return load_upscaler("R-ESRGAN AnimeVideo")


@pytest.fixture
def assets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache: huggingface_hub reads its place when imported, so the constant is what a test can move."""
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets"


def test_the_labels_are_the_webuis():
    assert [*UPSCALER_LABELS] == [
        "R-ESRGAN General 4xV3",
        "R-ESRGAN General WDN 4xV3",
        "R-ESRGAN AnimeVideo",
        "R-ESRGAN 4x+",
        "R-ESRGAN 4x+ Anime6B",
        "R-ESRGAN 2x+",
    ]
    for file in UPSCALER_LABELS.values():
        assert file.url.endswith("/" + file.name) and len(file.sha256) == 64 and file.size > 2e6


def test_the_shipped_upscaler_makes_a_picture_four_times_as_large(shipped: ImageUpscaler):
    assert isinstance(shipped, ModelMixin)
    assert (shipped.scale, shipped.dtype, shipped.training) == (4, torch.float32, False)
    flat = torch.full((2, 3, 20, 17), 0.5)
    large = shipped(flat)
    assert large.shape == (2, 3, 80, 68)
    assert (large[..., 30:50, 30:40] - 0.5).abs().max() < 0.03


@pytest.mark.parametrize("name", NETWORKS)
def test_what_spandrel_reads_is_loaded_from_fresh_weights(name, tmp_path: Path):
    make, scale, side = NETWORKS[name]
    torch.manual_seed(3)
    network = make().eval()
    save_file(network.state_dict(), tmp_path / "upscaler.safetensors")
    upscaler = load_upscaler(tmp_path / "upscaler.safetensors")
    assert upscaler.scale == scale
    large = upscaler(torch.rand(1, 3, side, side + 3))
    assert large.shape == (1, 3, side * scale, (side + 3) * scale)
    assert large.min() >= 0 and large.max() <= 1
    square = torch.rand(1, 3, 40, 40)
    with torch.no_grad():
        assert torch.allclose(upscaler(square), network(square).clamp(0, 1), atol=1e-6)


@pytest.mark.goldens
@pytest.mark.parametrize("file", ["tiny-compact-x2.safetensors", "tiny-rrdb-x4.pth"])
def test_saved_and_reloaded_it_draws_the_same(file, golden: Path, tmp_path: Path):
    upscaler = load_upscaler(golden / "models" / file)
    pixels = torch.rand(1, 3, 12, 9)
    upscaler.save_pretrained(tmp_path / "saved")
    again = ImageUpscaler.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(pixels), upscaler(pixels))
    assert again.config.source == file
    assert torch.equal(load_upscaler(tmp_path / "saved")(pixels), upscaler(pixels))
    (tmp_path / "model").mkdir()
    (tmp_path / "saved").rename(tmp_path / "model" / "upscaler")
    half = ImageUpscaler.from_pretrained(tmp_path / "model", subfolder="upscaler", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16


def test_wrappers_of_training_code_are_taken_off(golden: Path, tmp_path: Path):
    state = load_file(golden / "models" / "tiny-compact-x2.safetensors")
    pixels = torch.rand(1, 3, 8, 8)
    expected = load_upscaler(golden / "models" / "tiny-compact-x2.safetensors")(pixels)
    wrapped = [{"params_ema": state}, {"params": state}, {"model": {f"module.{k}": v for k, v in state.items()}}]
    for i, content in enumerate(wrapped):
        torch.save(content, tmp_path / f"{i}.pth")
        assert torch.equal(load_upscaler(tmp_path / f"{i}.pth")(pixels), expected)


def test_a_folder_with_one_file_is_enough_and_with_two_it_asks(golden: Path, tmp_path: Path):
    source = golden / "models" / "tiny-compact-x2.safetensors"
    (tmp_path / "one.safetensors").write_bytes(source.read_bytes())
    assert load_upscaler(tmp_path).scale == 2
    (tmp_path / "two.safetensors").write_bytes(source.read_bytes())
    with pytest.raises(WeightFileError, match="holds 2 weight files.*`one.safetensors`, `two.safetensors`"):
        load_upscaler(tmp_path)
    assert load_upscaler(tmp_path, weight_name="two.safetensors").config.source == "two.safetensors"


def test_half_precision_where_the_architecture_allows(shipped: ImageUpscaler, tmp_path: Path, caplog):
    pixels = torch.rand(1, 3, 9, 8)
    expected = shipped(pixels)
    half = load_upscaler("R-ESRGAN AnimeVideo", dtype=torch.float16)
    assert half.dtype == torch.float16 and half(pixels).dtype == torch.float32
    assert (half(pixels) - expected).abs().max() < 0.01
    stubborn = load_upscaler("R-ESRGAN AnimeVideo")
    stubborn.parts = stubborn.parts._replace(half=False)
    assert stubborn.to("cpu", torch.float16).dtype == stubborn.half().dtype == torch.float32
    assert stubborn.to(torch.bfloat16).dtype == torch.bfloat16


def test_moving_does_not_need_gradients_and_gradients_still_flow(shipped: ImageUpscaler):
    pixels = torch.rand(1, 3, 6, 6, requires_grad=True)
    shipped(pixels).sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0
    with torch.no_grad():
        assert not shipped(pixels).requires_grad


def test_making_the_network_again_draws_what_loading_it_drew(golden: Path):
    file = golden / "models" / "tiny-compact-x2.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        upscaler = load_upscaler(file)
        drawn = torch.get_rng_state()
    generator = torch.Generator().manual_seed(4)
    upscaler.draw_as_constructed(generator)
    assert torch.equal(generator.get_state(), drawn)


# Downloads, from a server on this machine


@pytest.fixture
def release(tmp_path: Path):
    """A published file behind http, and how often it was fetched."""
    content = b"weights " * 1000
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            found = self.path == "/made-up.pth"
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(content) if found else 0))
            self.end_headers()
            self.wfile.write(content if found else b"")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/made-up.pth"
    yield PublishedFile("made-up.pth", url, len(content), hashlib.sha256(content).hexdigest()), requests
    server.shutdown()


def test_a_published_file_is_fetched_once(release, assets_cache: Path):
    file, requests = release
    first = fetch_published(file, "Upscaler", progress=False)
    assert first == fetch_published(file, "Upscaler", progress=False)
    assert first.stat().st_size == file.size and assets_cache in first.parents
    assert len(requests) == 1
    assert [*first.parent.iterdir()] == [first]


def test_a_download_with_other_content_is_not_kept(release, assets_cache: Path):
    file, _ = release
    with pytest.raises(WeightFileError, match="SHA-256 .*published.*was not kept"):
        fetch_published(file._replace(sha256="0" * 64), "Upscaler", progress=False)
    with pytest.raises(WeightFileError, match="downloading it failed: HTTP Error 404"):
        fetch_published(file._replace(url=file.url + "x"), "Upscaler", progress=False)
    assert [*published_cache_folder().iterdir()] == []


def test_offline_the_error_says_which_file_goes_where(assets_cache: Path):
    with pytest.raises(WeightFileError) as error:
        load_upscaler("R-ESRGAN 4x+", local_files_only=True)
    for fact in ('"R-ESRGAN 4x+"', "RealESRGAN_x4plus.pth", "67.0 MB", "github.com/xinntao", str(assets_cache)):
        assert fact in str(error.value)


def test_the_users_folders_come_before_downloading(golden: Path, tmp_path: Path, assets_cache: Path):
    source = golden / "models" / "tiny-compact-x2.safetensors"
    (tmp_path / "RealESRGAN_x2plus.safetensors").write_bytes(source.read_bytes())
    upscaler = load_upscaler("R-ESRGAN 2x+", folders=(tmp_path / "empty", tmp_path), local_files_only=True)
    assert (upscaler.scale, upscaler.config.source) == (2, "R-ESRGAN 2x+")


# The other backend


@pytest.mark.skipif(find_spec("realesrgan") is None, reason="realesrgan is not installed: see tests/no-deps.txt")
@pytest.mark.parametrize("file", [None, "tiny-rrdb-x4.pth"])
def test_realesrgan_and_spandrel_give_equal_pixels(file, golden: Path, tmp_path: Path):
    if file is None:
        source: str | Path = "R-ESRGAN AnimeVideo"
    else:  # the package reads the newer layout only
        source = tmp_path / "rrdb.safetensors"
        torch.manual_seed(0)
        save_file(newer_layout(ESRGAN(num_filters=16, num_blocks=2, scale=4)), source)
    pixels = torch.rand(1, 3, 24, 19)
    ours, theirs = load_upscaler(source), load_upscaler(source, backend="realesrgan")
    assert theirs.config.architecture in ("SRVGGNetCompact", "RRDBNet") and theirs.scale == 4
    assert torch.allclose(theirs(pixels), ours(pixels), atol=1e-6)
    theirs.save_pretrained(tmp_path / "saved")
    assert torch.equal(load_upscaler(tmp_path / "saved")(pixels), theirs(pixels))


def newer_layout(network: ESRGAN) -> dict[str, torch.Tensor]:
    """An ESRGAN's tensors under the names of Real-ESRGAN's own files."""
    ends = {"model.0": "conv_first", "model.3": "conv_up1", "model.6": "conv_up2", "model.8": "conv_hr"}
    renamed = {}
    for key, value in network.state_dict().items():
        path, kind = key.rsplit(".", 1)
        parts = path.split(".")
        if path in ends:
            path = ends[path]
        elif path == "model.10":
            path = "conv_last"
        elif len(parts) == 4:
            path = "conv_body"
        else:
            path = f"body.{parts[3]}.{parts[4].lower()}.{parts[5]}"
        renamed[f"{path}.{kind}"] = value.clone()
    return renamed


def test_the_shim_is_gone_after_the_import():
    name = "torchvision.transforms.functional_tensor"
    before = sys.modules.get(name)
    with functional_tensor_shim():
        assert callable(sys.modules[name].rgb_to_grayscale)
    assert sys.modules.get(name) is before
    with pytest.raises(RuntimeError), functional_tensor_shim():
        raise RuntimeError
    assert sys.modules.get(name) is before


class NoRealesrgan:
    """A finder of modules, as where the package is not installed."""

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] == "realesrgan":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize(
    "python, told", [((3, 12, 4), r"pip install 'webui-diffusers\[realesrgan\]'"), ((3, 13, 0), 'backend="spandrel"')]
)
def test_without_the_package_the_backend_names_the_extra_or_what_to_use(python, told, monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "realesrgan"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NoRealesrgan(), *sys.meta_path])
    monkeypatch.setattr(sys, "version_info", python)
    with pytest.raises(ImportError, match=told):
        load_upscaler("R-ESRGAN AnimeVideo", backend="realesrgan")


# Wrong files


def test_files_for_something_else_are_refused(tmp_path: Path, tiny_sd: Path):
    UNet2DModel(
        sample_size=8, block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)
    ).save_pretrained(tmp_path / "unet")
    with pytest.raises(WeightFileError, match="describes a UNet2DModel, not an upscaler"):
        load_upscaler(tmp_path / "unet")
    with pytest.raises(WeightFileError, match="fits no upscaler known to spandrel"):
        load_upscaler(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    save_file(
        {"body.0.weight": torch.zeros(8, 3, 3, 3), "body.1.weight": torch.zeros(8)}, tmp_path / "half.safetensors"
    )
    with pytest.raises(WeightFileError, match="tensors do not fit together"):
        load_upscaler(tmp_path / "half.safetensors")
    gray = Compact(num_in_ch=1, num_out_ch=1, num_feat=8, num_conv=1, upscale=2)
    save_file(gray.state_dict(), tmp_path / "gray.safetensors")
    with pytest.raises(WeightFileError, match="takes 1 and gives 1 channels"):
        load_upscaler(tmp_path / "gray.safetensors")


def test_broken_and_hostile_files_are_refused(golden: Path, tmp_path: Path):
    whole = (golden / "models" / "tiny-rrdb-x4.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightFileError, match="truncated or damaged"):
        load_upscaler(tmp_path / "cut.pth")

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was here"),)

    torch.save({"params": Hostile()}, tmp_path / "hostile.pth")
    with pytest.raises(WeightFileError, match="would run code"):
        load_upscaler(tmp_path / "hostile.pth")
    assert not (tmp_path / "was here").exists()


@pytest.mark.parametrize(
    "source, why",
    [
        ("R-ESRGAN 4X+", r'no upscaler.*none of the labels.*"R-ESRGAN 4x\+"'),
        ("/nowhere/4x.pth", "no such file or folder"),
        ("nobody/nothing-there", "could not be had from the Hub"),
    ],
)
def test_a_name_that_leads_nowhere_says_so(source, why):
    with pytest.raises(WeightFileError, match=why):
        load_upscaler(source, local_files_only=True)


def test_arguments_are_checked(shipped: ImageUpscaler):
    with pytest.raises(ValueError, match='`backend` is \'ncnn\'.*"spandrel", "realesrgan"'):
        load_upscaler("R-ESRGAN AnimeVideo", backend="ncnn")
    for wrong in (torch.zeros(3, 8, 8), torch.zeros(1, 4, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"float pixels \(b, 3, h, w\)"):
            shipped(wrong)
