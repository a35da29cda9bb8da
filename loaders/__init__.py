"""Files to models and adapters."""

from importlib import import_module


_HOME = {
    "read_network": ".network_file",
    "merged_networks": ".merge",
    "attach_network": ".peft_adapters",
    "load_upscaler": ".upscaler",
    "load_face_restorer": ".face_models",
    "NetworkError": ".files",
    "WeightFileError": ".files",
    "NetworkMerger": ".merge",
    "NetworkLibrary": ".network_library",
    "read_embedding": ".textual_inversion",
    "read_embedding_folder": ".textual_inversion",
    "describe_checkpoint": ".checkpoint",
    "read_refiner": ".single_file",
    "model_hash": ".hashes",
    "ImageUpscaler": ".upscaler",
    "UPSCALER_LABELS": ".upscaler",
    "load_face_detector": ".face_models",
    "load_face_parser": ".face_models",
    "block_strengths": ".blocks",
    "open_weights": ".files",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
