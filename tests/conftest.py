"""What many tests share: the recordings' folder, tiny models, and the marks that skip themselves with a reason."""

import gc
import os
import shutil
import sys
from collections.abc import Iterator
from hashlib import sha256
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from prepared import PreparedPython


# One thread per process: two threads that share a busy core spin. The recordings were made with AVX2 kernels; with the
# same kernels latents come out equal to the last bit, with AVX-512 they differ by 1e-5 (adaptive step sizes by more).
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
gc.disable()  # until all is imported
# Where compiling once is switched off, every process compiles everything anew, and diffusers a pipeline twice a load.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def _assembled(kept: Path) -> Path:
    """tests/golden with its slim models put together again (golden/slim.py), in the pack's cache folder."""
    from webui_diffusers.loaders.utils import cache_folder

    state = sha256()
    for path in sorted(p for p in kept.rglob("*") if p.is_file() and p.suffix != ".pyc"):
        state.update(f"{path.relative_to(kept).as_posix()} {sha256(path.read_bytes()).hexdigest()}".encode())
    place = cache_folder() / "test-goldens" / state.hexdigest()[:16]  # one for all clones with these files
    if not place.exists():
        spec = spec_from_file_location("slim", kept / "slim.py")
        slim = module_from_spec(spec)
        spec.loader.exec_module(slim)
        aside = place.with_name(f"{place.name}.{os.getpid()}")
        for entry in kept.iterdir():
            if entry.name not in slim.MODELS:
                shutil.copytree(entry, aside / entry.name, dirs_exist_ok=True) if entry.is_dir() else None
        for model in slim.MODELS:
            slim.whole_model(kept / model, aside / model)
        for name in slim.CONTROLNETS:
            slim.whole_controlnet(kept, aside, name)
        try:
            aside.rename(place)
        except OSError:  # another run was faster
            shutil.rmtree(aside)
    return place


# Test modules read the folder's name from here; a full folder of recordings may be named from outside.
if "WEBUI_GOLDENS" not in os.environ:
    os.environ["WEBUI_GOLDENS"] = str(_assembled(Path(__file__).parent / "golden"))
GOLDEN = Path(os.environ["WEBUI_GOLDENS"])


# The files that take longest begin first, so that none of them is left for the end while other processes have nothing.
LONGEST = (
    "test_hub",
    "test_blocks_hub",
    "test_architecture",
    "test_txt2img_goldens",
    "test_txt2img_sdxl",
    "test_txt2img_loading",
    "test_multi_lora",
    "test_txt2img_networks",
    "test_img2img",
    "test_peft_adapters",
    "test_blocks",
    "test_saving",
    "test_several_callers",
    "test_control_pipelines",
    "test_cli",
    "test_demo_model",
    "test_txt2img_drop_in",
    "test_txt2img_bad_input",
    "test_unet_guidance",
    "test_control_goldens",
)


# Files that go to one process, because of what they share: the Python of `prepared_python`.
TOGETHER = ("test_hub.py", "test_blocks_hub.py", "test_architecture.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """As `--dist loadfile`, but for the files that go together."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return TOGETHER[0] if file.endswith(TOGETHER) else file

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    order = {f"{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow (make slow)"))
        if item.get_closest_marker("gpu") and not _cuda():
            item.add_marker(pytest.mark.skip(reason="gpu: no CUDA device here"))


def pytest_collection_finish() -> None:
    """Thousands of tests and the libraries stay, and models are mostly let go by the last reference: walking through
    all of them as often as Python does takes a sixth of the time."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture
def taking_turns() -> Iterator[None]:
    """Threads take turns in the middle of everything."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.fixture(scope="session")
def prepared_python() -> Iterator[str]:
    """An executable that runs as Python does, in a process of its own that need not import the libraries."""
    python = PreparedPython()
    yield python.executable
    python.close()


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of recordings: tests/golden, or the folder that WEBUI_GOLDENS names."""
    return GOLDEN


@pytest.fixture(scope="session")
def tiny_sd(golden: Path) -> Path:
    """A StableDiffusionPipeline folder at tiny size (SD1-like, draws coloured shapes at 64x64)."""
    return golden / "tiny-sd"


@pytest.fixture(scope="session")
def tiny_sdxl(golden: Path) -> Path:
    """A StableDiffusionXLPipeline folder at tiny size."""
    return golden / "tiny-sdxl-e2e"


@pytest.fixture(scope="session")
def small_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusionPipeline folder that draws noise at 64x64, four times as fast as `tiny_sd` draws shapes."""
    from hub.tiny_model import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("models") / "small-sd")


@pytest.fixture(scope="session")
def small_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of StableDiffusionXLPipeline."""
    from hub.tiny_model import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("models") / "small-sdxl", xl=True)


@pytest.fixture(scope="session")
def tiny_sdxl_refiner(golden: Path) -> Path:
    """A folder with the refiner's UNet for `tiny_sdxl`."""
    return golden / "tiny-sdxl-e2e-refiner"
