"""Presets at a size that tests can afford: one layer a stage, all else as published."""

import torch

from audio import PRESETS, SaShiMi, preset

SMALL = {name: preset(name, layers=1) for name in PRESETS}
LENGTH = {"mamba_youtubemix": 560}
"""Samples that pass through every pool at least twice; others take 70."""


def build(name, **changes):
    torch.manual_seed(0)
    model = SaShiMi(preset(name, layers=1, **changes)).eval()
    with torch.no_grad():  # sure of itself, so that a mistake shows in the logits
        model.head.weight.mul_(3)
    return model


def clip(model, b, l, seed=1):
    return torch.randint(model.config.levels, (b, l), generator=torch.Generator().manual_seed(seed))
