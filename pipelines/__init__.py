"""The pipelines and what they share. Names load when asked for."""

from importlib import import_module

from ..loaders.moved import keep_moved_names


_HOME = {
    "WebUITxt2ImgPipeline": ".txt2img",
    "WebUIImg2ImgPipeline": ".img2img",
    "MultiLoraPipeline": ".multi_lora",
    "MultiLoraXLPipeline": ".multi_lora_xl",
    "FaceRestorePipeline": ".face_restore",
    "DetailerPipeline": ".detailer",
    "PromptEncoder": ".prompt.encode",
    "parse_infotext": ".infotext.read",
    "tidy_infotext": ".infotext.tidy",
    "call_arguments": ".infotext.to_call",
    "call_report": ".infotext.to_call",
    "call_settings": ".infotext.settings",
    "format_infotext": ".infotext.write",
    "read_infotext": ".infotext.files",
    "save_picture": ".infotext.files",
    "save_pictures": ".infotext.files",
    "pipeline_file": ".bundle.build",
    "missing_files": "..loaders.library.missing",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)


keep_moved_names(__name__.rpartition(".")[0])
