"""Blocks for Modular Diffusers. Names load when asked for."""

from importlib import import_module


_HOME = {
    "WebUIXLBlocks": ".xl",
    "WebUISDBlocks": ".sd",
    "WebUISDTextEncoderStep": ".sd",
    "WebUISDLoraStep": ".sd",
    "WebUISDDenoiseStep": ".sd",
    "WebUISDHiresStep": ".sd",
    "WebUISDDecodeStep": ".sd",
    "WebUITextEncoderStep": ".text_step",
    "WebUILoraStep": ".whole",
    "WebUIDenoiseStep": ".denoise_steps",
    "WebUIHiresStep": ".denoise_steps",
    "WebUIDecodeStep": ".decode_step",
    "WebUIFiles": ".files",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
