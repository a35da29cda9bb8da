"""Files to models and adapters."""

from importlib import import_module

from .moved import keep_moved_names


_HOME = {
    "WebUIFolder": ".library.folder",
    "missing_files": ".library.missing",
    "wanted_files": ".library.missing",
    "read_network": ".lora.read",
    "merged_networks": ".lora.merge",
    "attach_network": ".lora.peft_adapters",
    "load_upscaler": ".upscaler",
    "load_controlnet": ".controlnet.load",
    "load_face_restorer": ".faces.load",
    "NetworkError": ".weight_files",
    "WeightFileError": ".weight_files",
    "NetworkMerger": ".lora.merge",
    "NetworkLibrary": ".lora.library",
    "read_embedding": ".textual_inversion",
    "read_embedding_folder": ".textual_inversion",
    "describe_checkpoint": ".checkpoint.describe",
    "read_refiner": ".checkpoint.load",
    "load_vae": ".checkpoint.vae",
    "model_hash": ".hashes",
    "ImageUpscaler": ".upscaler",
    "UPSCALER_LABELS": ".upscaler",
    "load_face_detector": ".faces.load",
    "load_face_parser": ".faces.load",
    "block_strengths": ".lora.block_weights",
    "open_weights": ".weight_files",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)


keep_moved_names(__name__.rpartition(".")[0])
