"""What many tests share: the recordings' folder, tiny models, and the marks that skip themselves with a reason."""

import os
from pathlib import Path

import pytest


# One thread per process: two threads that share a busy core spin. The recordings were made with AVX2 kernels; with the
# same kernels latents come out equal to the last bit, with AVX-512 they differ by 1e-5 (adaptive step sizes by more).
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")

GOLDEN = Path(os.environ.get("WEBUI_GOLDENS", Path(__file__).parent / "golden"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow (make slow)"))
        if item.get_closest_marker("gpu") and not _cuda():
            item.add_marker(pytest.mark.skip(reason="gpu: no CUDA device here"))


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


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
def tiny_sdxl_refiner(golden: Path) -> Path:
    """A folder with the refiner's UNet for `tiny_sdxl`."""
    return golden / "tiny-sdxl-e2e-refiner"
