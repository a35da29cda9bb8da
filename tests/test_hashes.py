"""Hashes of model files: known values, and a cache that never lies."""

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from webui_diffusers.loaders.hashes import (
    cache_folder,
    file_sha256,
    legacy_model_hash,
    model_hash,
    tensor_data_sha256,
)
from webui_diffusers.loaders.weight_files import WeightFileError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WEBUI_DIFFUSERS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_known_values(tmp_path: Path) -> None:
    file = tmp_path / "abc.ckpt"
    file.write_bytes(b"abc")
    assert file_sha256(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert model_hash(file) == "ba7816bf8f"
    assert legacy_model_hash(file) == "e3b0c442"  # a file that ends before the part that is hashed


def test_legacy_hash_reads_64_kib_after_the_first_mib(tmp_path: Path) -> None:
    block = bytes(range(256)) * 256
    file = tmp_path / "old.ckpt"
    file.write_bytes(b"\1" * 0x100000 + block + b"\2" * 999)
    assert legacy_model_hash(file) == hashlib.sha256(block).hexdigest()[:8]


def test_tensor_data_hash_ignores_the_metadata(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3)}
    save_file(tensors, tmp_path / "plain.safetensors")
    save_file(tensors, tmp_path / "titled.safetensors", metadata={"modelspec.title": "x"})
    plain, titled = (tensor_data_sha256(tmp_path / f"{name}.safetensors") for name in ("plain", "titled"))
    assert plain == titled == hashlib.sha256(tensors["a"].numpy().tobytes()).hexdigest()
    assert file_sha256(tmp_path / "plain.safetensors") != file_sha256(tmp_path / "titled.safetensors")


def test_a_kept_sum_is_not_computed_again(tmp_path: Path, own_cache: Path) -> None:
    file = tmp_path / "big.safetensors"
    file.write_bytes(os.urandom(9_000_000))
    calls: list[tuple[int, int]] = []
    first = file_sha256(file, on_bytes=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (9_000_000, 9_000_000) and len(calls) == 3
    assert file_sha256(file, on_bytes=lambda done, total: calls.append((done, total))) == first
    assert len(calls) == 3 and len(list((own_cache / "hashes").iterdir())) == 1


def test_a_changed_file_is_hashed_again(tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"
    file.write_bytes(b"first")
    stat = file.stat()
    assert file_sha256(file) == hashlib.sha256(b"first").hexdigest()
    file.write_bytes(b"other")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert file_sha256(file) == hashlib.sha256(b"other").hexdigest()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"sha256": 3}'])
def test_a_damaged_cache_is_done_without(tmp_path: Path, own_cache: Path, damage: bytes) -> None:
    file = tmp_path / "model.ckpt"
    file.write_bytes(b"abc")
    file_sha256(file)
    for entry in (own_cache / "hashes").iterdir():
        entry.write_bytes(damage)
    assert model_hash(file) == "ba7816bf8f"


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "occupied").write_text("a file where the folder should be")
    monkeypatch.setenv("WEBUI_DIFFUSERS_CACHE", str(tmp_path / "occupied"))
    (tmp_path / "model.ckpt").write_bytes(b"abc")
    assert model_hash(tmp_path / "model.ckpt") == "ba7816bf8f"


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("WEBUI_DIFFUSERS_CACHE")
    assert cache_folder().name == "webui-diffusers"


def test_what_cannot_be_hashed_is_said(tmp_path: Path) -> None:
    with pytest.raises(WeightFileError, match=r"nowhere\.ckpt.*no such file"):
        file_sha256(tmp_path / "nowhere.ckpt")
    (tmp_path / "a.ckpt").write_bytes(b"\xff" * 40)
    with pytest.raises(WeightFileError, match="no .safetensors file"):
        tensor_data_sha256(tmp_path / "a.ckpt")
