"""Optimiser and schedule. Which parameters decay, and at what pace they learn, is said by the modules themselves."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


def parameter_groups(model: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Partition the trainable parameters by what their modules ask for.

    A module may define `param_spec() -> {name: ParamSpec(decay, lr_scale)}` for its own or nested parameters; where two
    modules speak about one parameter the inner one is heard. Parameters nobody speaks about decay if they are matrices.

    Args:
        model: Any module.
        lr: Learning rate at lr_scale 1.
        weight_decay: Decay of those parameters that decay.
    Returns:
        Groups for a torch optimiser, with `names` beside `params`; every trainable parameter is in exactly one.
    Raises:
        ValueError: A `param_spec` names a parameter that its module does not have.
    """
    wanted: dict[int, tuple[bool, float]] = {}
    for path, module in model.named_modules():  # outer modules first, so that inner ones overwrite
        param_spec: Any = getattr(module, "param_spec", None)
        if param_spec is None:
            continue
        own = dict(module.named_parameters(remove_duplicate=False))
        for name, spec in param_spec().items():
            if name not in own:
                where = f"{path or 'the model'} ({type(module).__name__})"
                raise ValueError(f"parameter_groups: param_spec of {where} names {name!r}; it has {', '.join(own)}")
            wanted[id(own[name])] = (bool(spec.decay), float(spec.lr_scale))
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay, lr_scale = wanted.get(id(parameter), (parameter.ndim >= 2, 1.0))
        group = groups.setdefault(
            (decay, lr_scale),
            {"params": [], "names": [], "lr": lr * lr_scale, "weight_decay": weight_decay if decay else 0.0},
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return [groups[key] for key in sorted(groups, reverse=True)]


def make_optimizer(
    model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`; betas are the decay rates of its two averages.

    Raises:
        ValueError: As `parameter_groups`, or the model has nothing to train.
    """
    groups = parameter_groups(model, lr, weight_decay)
    if not groups:
        raise ValueError(f"make_optimizer: {type(model).__name__} has no trainable parameter")
    for group in groups:
        del group["names"]
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, betas=betas)


def cosine_schedule(optimizer: torch.optim.Optimizer, steps: int, warmup: int = 0) -> LambdaLR:
    """Rise linearly for `warmup` steps, then fall to zero along a half cosine; every group keeps its own scale.

    Args:
        optimizer: Its groups' learning rates are the peaks.
        steps: Optimiser steps in all. Give the number: asking the Trainer for it before `fit` would spoil a resume.
        warmup: Steps of the rise.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        share = (step - warmup) / max(1, steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    return LambdaLR(optimizer, factor)


def count_parameters(parameters: Iterable[nn.Parameter]) -> int:
    """Trainable numbers."""
    return sum(p.numel() for p in parameters if p.requires_grad)
