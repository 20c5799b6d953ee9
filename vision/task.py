"""The classification task: what a training step and a validation step of an image classifier are."""

import fnmatch
from typing import Any

import lightning.pytorch as pl
import torch
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn

from ssmcore.engine import parameter_groups

from .bad import note_bad
from .config import AugmentOptions, OptimizerOptions, TrainConfig
from .data import Batch
from .errors import DataError
from .metrics import Tally
from .token_labels import CellMix, TokenLabels, targets, token_loss


class ClassifyTask(pl.LightningModule):
    """Train `model(images) -> logits`; log val_top1, val_top5 (percent) and val_loss.

    Args:
        model: (b, in_chans, height, width) to (b, num_classes).
        config: Losses, mixing, optimiser, schedule, averaging.
        num_classes: Of the head.
        updates_per_epoch: Optimiser steps an epoch, for the schedule.
        batch: Images an optimiser step, over all devices.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, num_classes: int, updates_per_epoch: int, batch: int):
        super().__init__()
        self.model, self.config, self.num_classes = model, config, num_classes
        self.updates_per_epoch = updates_per_epoch
        self.lr = config.lr if config.lr is not None else config.lr_base * batch / config.lr_base_size
        self.mixing = _mixing(config, num_classes)
        self.loss = _loss(config, self.mixing is not None)
        self.plain_loss = _loss(config, mixed=False)
        self.cell_mix = CellMix(config.cutmix, config.mixup_prob)
        self.groups = named_groups(model, config)
        self.ema = None
        if config.model_ema:
            self.ema = ModelEmaV3(model, decay=config.model_ema_decay, use_warmup=config.model_ema_warmup)
            self.ema.requires_grad_(False)
        self.bad: dict[str, None] = {}

    @property
    def weights_prefix(self) -> str:
        """Which weights are the result of the run."""
        return "model." if self.ema is None else "ema.module."

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss of a batch of images (b, in_chans, height, width), mixed if the options say so."""
        images, labels = self._readable(batch)
        if batch.tokens is not None:
            return self._token_loss(images, batch.tokens)
        targets, loss = labels, self.plain_loss
        off = self.config.mixup_off_epoch
        if self.mixing is not None and len(images) > 1 and not (off and self.current_epoch >= off):
            even = len(images) // 2 * 2  # timm mixes in pairs
            images, targets = self.mixing(images[:even], labels[:even])
            loss = self.loss
        return loss(self.model(images), targets)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """A step, and the average after it."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.model, step=self.global_step)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Lightning clips by norm and by value; timm by unit."""
        if self.config.clip_grad is None:
            return
        if self.config.clip_mode == "agc":
            classifier = self.model.get_classifier()
            heads = classifier if isinstance(classifier, tuple) else (classifier,)
            outside = {id(p) for head in heads for p in head.parameters()}
            body = [p for p in self.model.parameters() if id(p) not in outside]
            dispatch_clip_grad(body, self.config.clip_grad, mode="agc")
        else:
            self.clip_gradients(optimizer, self.config.clip_grad, self.config.clip_mode)

    def on_validation_epoch_start(self) -> None:
        """Nothing counted yet."""
        self.tally = Tally(self.num_classes, self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count what the averaged weights, if there are any, name rightly."""
        images, labels = self._readable(batch)
        network = self.model if self.ema is None else self.ema.module
        self.tally.update(network(images), labels)

    def on_validation_epoch_end(self) -> None:
        """Log the scores."""
        sums = self.tally.sums()
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        scores = Tally.scores(sums)
        self.log_dict({"val_top1": scores.top1, "val_top5": scores.top5, "val_loss": scores.loss})

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """timm's schedules are functions of the number of updates."""
        scheduler.step_update(self.global_step)

    def configure_optimizers(self) -> Any:
        """timm's optimiser over our groups, and timm's schedule by update."""
        config = self.config
        found = {name.replace("_fsdp_wrapped_module.", ""): p for name, p in self.model.named_parameters()}
        groups = [{**group, "params": [found[name] for name in group["params"]]} for group in self.groups]
        try:
            optimizer = create_optimizer_v2(
                groups, opt=config.opt, lr=self.lr, weight_decay=config.weight_decay, momentum=config.momentum,
                **config.opt_kwargs,
            )  # fmt: skip
            schedule, _ = create_scheduler_v2(
                optimizer,
                sched=config.sched,
                num_epochs=config.epochs,
                warmup_epochs=config.warmup_epochs,
                warmup_lr=config.warmup_lr,
                min_lr=config.min_lr,
                decay_epochs=config.decay_epochs,
                decay_milestones=list(config.decay_milestones),
                decay_rate=config.decay_rate,
                step_on_epochs=False,
                updates_per_epoch=self.updates_per_epoch,
            )
        except (ValueError, AssertionError, TypeError) as error:
            raise DataError(f"--opt {config.opt} or --sched {config.sched}: cannot be made: {error}") from None
        if schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _token_loss(self, images: Tensor, labels: TokenLabels) -> Tensor:
        last = self.model.feature_info[-1]["reduction"]
        grid = (-(-images.shape[2] // last), -(-images.shape[3] // last))
        mixed, whole, cells = self.cell_mix(images, *targets(labels, self.num_classes, grid))
        outputs = self.model.forward_token_labels(mixed)
        return token_loss(outputs, whole, cells, self.config.token_weight, self.config.smoothing)

    def _readable(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images and labels of a batch; names those that are missing, or stops."""
        note_bad(batch.bad, self.bad, self.config.bad_images)
        images = batch.images
        if self.config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, batch.labels


def named_groups(model: nn.Module, options: OptimizerOptions) -> list[dict[str, Any]]:
    """Which parameters decay, and how fast each learns, by name.

    What the mixers ask for (`param_spec`), what a timm model asks for (`no_weight_decay`), one-dimensional ones, and
    the layer's own factor are put together; names, because a sharded parameter has lost its shape by the time the
    optimiser is made.

    Args:
        model: Any timm model.
        options: weight_decay, layer_decay.
    Returns:
        Groups for timm's optimiser factory, with names in place of the parameters.
    """
    exempt = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    layer: dict[int, float] = {}
    if options.layer_decay is not None:
        by_layer = param_groups_layer_decay(
            model, layer_decay=options.layer_decay, min_scale=options.layer_decay_min_scale
        )
        layer = {id(p): group["lr_scale"] for group in by_layer for p in group["params"]}
    parameters = dict(model.named_parameters())
    groups: dict[tuple[float, float], list[str]] = {}
    for group in parameter_groups(model, 1.0, 1.0):
        for name in group["names"]:
            free = name.endswith(".bias") or any(fnmatch.fnmatch(name, pattern) for pattern in exempt)
            decay = 0.0 if free else group["weight_decay"] * options.weight_decay
            scale = group["lr"] * layer.get(id(parameters[name]), 1.0)
            groups.setdefault((decay, scale), []).append(name)
    return [
        {"params": names, "weight_decay": decay, "lr_scale": scale} for (decay, scale), names in sorted(groups.items())
    ]


def _mixing(options: AugmentOptions, num_classes: int) -> Mixup | None:
    if not (options.mixup or options.cutmix) or options.token_labels:
        return None
    return Mixup(
        mixup_alpha=options.mixup,
        cutmix_alpha=options.cutmix,
        prob=options.mixup_prob,
        switch_prob=options.mixup_switch_prob,
        mode=options.mixup_mode,
        label_smoothing=options.smoothing,
        num_classes=num_classes,
    )


def _loss(options: AugmentOptions, mixed: bool) -> nn.Module:
    """Mixed targets are smoothed already."""
    if options.bce_loss:
        smoothing = 0.0 if mixed else options.smoothing
        return BinaryCrossEntropy(smoothing=smoothing, target_threshold=options.bce_target_thresh)
    if mixed:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(options.smoothing) if options.smoothing else nn.CrossEntropyLoss()
