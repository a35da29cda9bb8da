"""The pipelines and what they share. Names load when asked for."""

from importlib import import_module


_HOME = {
    "WebUITxt2ImgPipeline": ".txt2img",
    "WebUIImg2ImgPipeline": ".img2img",
    "MultiLoraPipeline": ".multi_lora",
    "MultiLoraXLPipeline": ".multi_lora_xl",
    "FaceRestorePipeline": ".face_restore",
    "PromptEncoder": ".prompt.encode",
    "parse_infotext": ".infotext",
    "call_arguments": ".infotext",
    "call_report": ".infotext",
    "call_settings": ".infotext",
    "format_infotext": ".infotext",
    "read_infotext": ".picture_info",
    "save_picture": ".picture_info",
    "save_pictures": ".picture_info",
    "pipeline_file": ".bundle",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
