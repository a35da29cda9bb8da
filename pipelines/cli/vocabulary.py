"""CLIP's vocabulary and merges from a pipeline's folder, for `FragmentTokenizer`, without importing transformers."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models


_START, _END = "<|startoftext|>", "<|endoftext|>"


class ClipVocabulary:
    """What `FragmentTokenizer` asks of a tokenizer, from the files in a folder `tokenizer`.

    folder: with tokenizer.json, or vocab.json and merges.txt; tokenizer_config.json names the special tokens. Raises
    ValueError where they are not there or cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self.backend_tokenizer = _rust_tokenizer(folder)
            config = _table(folder / "tokenizer_config.json")
            self._added = {
                token.content: id_ for id_, token in self.backend_tokenizer.get_added_tokens_decoder().items()
            }
            self._added |= _table(folder / "added_tokens.json")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"`{folder}` holds no CLIP tokenizer that can be read ({error}). Name another model."
            ) from error
        except Exception as error:  # the Rust reader has no class of its own
            raise ValueError(f"`{folder}` is damaged ({error}). Fetch the model's tokenizer again.") from error
        names = {name: _content(config.get(f"{name}_token"), usual) for name, usual in _SPECIALS.items()}
        self.all_special_tokens = list(dict.fromkeys(names.values()))
        self._vocabulary = self.backend_tokenizer.get_vocab() | self._added
        self.bos_token_id, self.eos_token_id, self.pad_token_id = (
            self._vocabulary.get(names[name]) for name in ("bos", "eos", "pad")
        )

    def __len__(self) -> int:
        """How many tokens there are, added ones too."""
        return len(self._vocabulary)

    def get_vocab(self) -> dict[str, int]:
        """Token -> id, words that were added included."""
        return self._vocabulary

    def get_added_vocab(self) -> dict[str, int]:
        """The words that were added."""
        return self._added

    def convert_ids_to_tokens(self, id_: int) -> str:
        """The token of an id, as the vocabulary writes it."""
        return self.backend_tokenizer.id_to_token(id_) or next(word for word, own in self._added.items() if own == id_)


_SPECIALS = {"bos": _START, "eos": _END, "pad": _END, "unk": _END}


def _rust_tokenizer(folder: Path) -> Tokenizer:
    if (folder / "tokenizer.json").is_file():
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    vocabulary, merges = (str(folder / name) for name in ("vocab.json", "merges.txt"))
    for path in (vocabulary, merges):
        if not Path(path).is_file():
            raise ValueError(f"{Path(path).name} is missing")
    return Tokenizer(models.BPE.from_file(vocabulary, merges, end_of_word_suffix="</w>", unk_token=_END))


def _table(path: Path) -> dict[str, Any]:
    """A JSON table; an empty one where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _content(token: Any, usual: str) -> str:
    """A special token, written as text or as a table."""
    return token.get("content", usual) if isinstance(token, dict) else token or usual
