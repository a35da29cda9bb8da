"""Text to conditioning. Names load when asked for: only `encode` needs torch."""

from importlib import import_module


_HOME = {
    "parse_attention": ".attention",
    "parse_schedule": ".schedule",
    "split_and": ".composition",
    "split_network_tags": ".network_tags",
    "NetworkTag": ".network_tags",
    "strip_comments": ".comments",
    "split_prompts": ".composition",
    "FragmentTokenizer": ".clip_tokenizer",
    "chunk_tokens": ".chunks",
    "tokenize_fragments": ".chunks",
    "embedding_index": ".chunks",
    "token_limit": ".chunks",
    "read_styles": "..infotext.styles",
    "apply_styles": "..infotext.styles",
    "extract_styles": "..infotext.styles",
    "PromptEncoder": ".encode",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
