"""Embeddings by name: each file read once, each name tokenized once, and again only when something changed."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from webui_diffusers.loaders.textual_inversion import read_embedding_folder
from webui_diffusers.pipelines import WebUITxt2ImgPipeline, registry
from webui_diffusers.pipelines.prompt import text_encoder


CALL = {"num_inference_steps": 1, "height": 64, "width": 64, "seed": 1, "sampler": "Euler", "output_type": "latent"}


@pytest.fixture(scope="module")
def pipe(tiny_sd: Path) -> WebUITxt2ImgPipeline:
    pipe = WebUITxt2ImgPipeline.from_pretrained(tiny_sd, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """How often a folder was read, and how often names were read as tokens."""
    counts = {"folder": 0, "names": 0}
    index = text_encoder.embedding_index

    def read(*given: object) -> tuple:
        counts["folder"] += 1
        return read_embedding_folder(*given)

    def tokenize(*given: object) -> dict:
        counts["names"] += 1
        return index(*given)

    monkeypatch.setattr(registry, "read_embedding_folder", read)
    monkeypatch.setattr(text_encoder, "embedding_index", tokenize)
    yield counts


def put(folder: Path, name: str, width: int, value: float = 1.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"emb_params": torch.full((2, width), value)}, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


def test_a_folder_is_read_again_only_when_its_files_changed(
    pipe: WebUITxt2ImgPipeline, tmp_path: Path, reads: dict[str, int]
) -> None:
    width = pipe.text_encoder.config.hidden_size
    for number in range(5):
        put(tmp_path, f"word{number}", width)
    put(tmp_path, "wide", width + 1)  # for another model: its name stays text
    (tmp_path / "notes.txt").touch()
    pipe.attached.embeddings_folder = tmp_path
    first = pipe("a word3 (circle:1.1)", **CALL)
    assert "TI hashes: " in first.infotexts[0]
    for prompt in ("a (red:1.1) circle", "[word1|word2|word3] circle", "wide"):
        pipe(prompt, **CALL)
    assert reads == {"folder": 2, "names": 1}  # those that fit, and once all of them for the hashes
    changed = put(tmp_path, "word3", width, -1.0)
    os.utime(changed, ns=(0, changed.stat().st_mtime_ns + 10**9))
    assert not torch.equal(pipe("a word3 (circle:1.1)", **CALL).images, first.images)
    assert reads["folder"] == 4 and reads["names"] == 1  # the names and their lengths are the same
    put(tmp_path / "inner", "longer word", width)
    pipe("a (longer word:1.2)", **CALL)
    assert reads["names"] == 2
    pipe.attached.embeddings_folder = None


def test_an_embedding_that_was_added_goes_before_the_folders(
    pipe: WebUITxt2ImgPipeline, tmp_path: Path, reads: dict[str, int]
) -> None:
    width = pipe.text_encoder.config.hidden_size
    put(tmp_path / "folder", "word", width, 1.0)
    pipe.attached.embeddings_folder = tmp_path / "folder"
    before = pipe("a (word:1.1)", **CALL).images
    pipe.add_embedding(put(tmp_path / "added", "word", width, -1.0))
    assert not torch.equal(pipe("a (word:1.1)", **CALL).images, before)
    del pipe.attached.embeddings["word"]
    assert torch.equal(pipe("a (word:1.1)", **CALL).images, before)
    pipe.attached.embeddings_folder = None
