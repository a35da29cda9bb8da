"""What each family of network does to a weight, one module per family and one table. Names load when asked for.

    family   parts                                   dW, of a weight W (out, in[, kh, kw])
    lora     lora_up U, lora_down D [, lora_mid]     U D
    loha     hada_w1_a, _b, hada_w2_a, _b            (w1a w1b) * (w2a w2b)
    lokr     lokr_w1 or its _a _b; the same for w2   kron(w1, w2)
    full     diff [, diff_b]                         diff
    norm     w_norm, b_norm                          w_norm
    ia3      weight v, on_input                      W * v, along the input or the output axis
    glora    a1, a2, b1, b2                          W a2 a1 + b2 b1, or W a1 a2 + b1 b2 (today's LyCORIS)
    oft      oft_blocks or oft_diag [, rescale]      R^T W - W, or the butterfly's (BOFT)

Any of them may come with `alpha`, `scale`, `bias` (dense, of the weight's shape) and `dora_scale`. The formulas are
LyCORIS' (github.com/KohakuBlueleaf/LyCORIS, lycoris/functional and lycoris/modules, 4.1.3, Apache-2.0) and
sd-scripts' (networks/oft.py); where the webui differs, both are here and `reference` chooses.
"""

from importlib import import_module


_HOME = {
    "Family": ".family",
    "LayerStrength": ".family",
    "FAMILIES": ".table",
    "layer_family": ".table",
    "changed_weight": ".table",
    "weight_delta": ".table",
    "low_rank_factors": ".lora",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
