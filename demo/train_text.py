"""The text side of the demo model: CLIP's own tokenizer and a small CLIPTextModel."""

import gzip
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from train_common import Recipe, fit
from train_data import caption, captioned_placement, captioned_words
from train_subjects import COLOURS, SUBJECTS
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


WIDTH = 64
VOCABULARY_PACKAGE = "open_clip_torch==2.32.0"
VOCABULARY_FILE = "open_clip/bpe_simple_vocab_16e6.txt.gz"
_END = "<|endoftext|>"


def build_tokenizer(cache: Path) -> CLIPTokenizer:
    """CLIP's tokenizer (49,408 tokens), from the vocabulary inside a PyPI package (MIT); kept in `cache/tokenizer`."""
    folder = cache / "tokenizer"
    if not (folder / "tokenizer_config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write_vocabulary(_fetch_merges(cache), folder)
    return CLIPTokenizer.from_pretrained(folder)


def _fetch_merges(cache: Path) -> list[str]:
    wheels = cache / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels)]
    subprocess.run([*command, VOCABULARY_PACKAGE], check=True)
    with zipfile.ZipFile(next(wheels.glob("open_clip_torch-*.whl"))) as wheel:
        lines = gzip.decompress(wheel.read(VOCABULARY_FILE)).decode().split("\n")
    return lines[1 : 49152 - 256 - 2 + 1]


def _write_vocabulary(merges: list[str], folder: Path) -> None:
    """vocab.json and merges.txt as CLIP numbers them: 256 bytes, the bytes that end a word, merges, two marks."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    tokens = letters + [letter + "</w>" for letter in letters]
    tokens += ["".join(merge.split()) for merge in merges] + ["<|startoftext|>", _END]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": _END,
        "unk_token": _END,
        "pad_token": _END,
        "do_lower_case": True,
        "errors": "replace",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def build_text_encoder(tokenizer: CLIPTokenizer, seed: int = 0) -> CLIPTextModel:
    """3 layers of width 64. Words that no caption holds get a zero embedding, so that they say nothing."""
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModel(config)
    table = encoder.get_input_embeddings().weight
    known = sorted(set(tokenizer(captioned_words(), add_special_tokens=True).input_ids))
    with torch.no_grad():
        table.zero_()
        table[known] = 0.1 * torch.randn(len(known), WIDTH)
    return encoder


def caption_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """(n, 77) token ids, padded as Stable Diffusion pads."""
    return tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids


def train_text(tokenizer: CLIPTokenizer, folder: Path, steps: int, seed: int = 0) -> CLIPTextModel:
    """Teach the encoder, alone, to say subject, size and background at every token after a caption's end.

    A denoiser that starts on such an encoder finds what to draw wherever it looks; on a fresh encoder it draws
    blots for thousands of steps until it has found the words.
    """
    encoder = build_text_encoder(tokenizer, seed)
    answers = {"subject": list(SUBJECTS), "size": ["", "small", "big"], "colour": list(COLOURS)}
    heads = nn.ModuleDict({name: nn.Linear(WIDTH, len(values)) for name, values in answers.items()})

    def losses_at(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((seed, step))
        facts = [(str(rng.choice(answers["subject"])), *captioned_placement(rng)[1:]) for _ in range(32)]
        ids = caption_ids(tokenizer, [caption(*fact, rng) for fact in facts])
        hidden = encoder(ids).last_hidden_state[:, rng.integers(20, 77, size=4)]
        loss = torch.zeros(())
        for number, (name, values) in enumerate(answers.items()):
            wanted = torch.tensor([values.index(fact[number]) for fact in facts])
            loss = loss + F.cross_entropy(heads[name](hidden).flatten(0, 1), wanted.repeat_interleave(4))
        return {"loss": loss}

    parameters = [*encoder.parameters(), *heads.parameters()]
    recipe = Recipe(2e-3, warmup=20, decay=0.98, save_every=steps)
    fit({"text_encoder": encoder, "heads": heads}, parameters, losses_at, folder, steps, recipe)
    return encoder
