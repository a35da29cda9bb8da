"""A tiny ControlNet for many tasks, with random weights in every layer: diffusers makes the last ones zero."""

from inspect import signature

import torch
from diffusers import ControlNetModel, ControlNetUnionModel
from recordings import GOLDEN


def union_network() -> ControlNetUnionModel:
    config = ControlNetModel.load_config(GOLDEN / "controlnet" / "models" / "tiny-controlnet-xl")
    sizes = {name: value for name, value in config.items() if name in signature(ControlNetUnionModel).parameters}
    torch.manual_seed(0)
    union = ControlNetUnionModel(**sizes, num_trans_channel=16, num_proj_channel=16, num_trans_head=2)
    for parameter in union.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return union.eval()
