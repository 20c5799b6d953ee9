"""One run of `python -m vision.train`: images, network and run folder are made and checked; then it trains."""

import fnmatch
import sys
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from ssmcore.engine import RunSettings, cli, fit, make_run_dir
from ssmcore.engine.folder import is_first_process
from ssmcore.engine.optim import count_parameters

from .classifier import Classifier, build, check_size, resize
from .config import TrainConfig
from .data import prepare_for, score_loader, train_loader
from .errors import DataError
from .sources import open_source
from .task import ClassifyTask

PRECISIONS = {"float16": "16-mixed", "bfloat16": "bf16-mixed"}


class Experiment:
    """Holds the images, the network and the run folder.

    Args:
        config: What to do.
    Raises:
        DataError: The images, the network, the weights or an option cannot be used.
    """

    def __init__(self, config: TrainConfig):
        self.config = config
        self.sources = {"train": open_source(config, "train")}
        classes = self.sources["train"].classes
        self.sources["val"] = open_source(config, "val", classes)
        if is_first_process() and not (self.sources["train"].part or self.sources["val"].part):
            print(f"{config.data_dir} has no parts: the score is that of the training images", file=sys.stderr)
        num_classes = len(classes) if config.num_classes is None else config.num_classes
        if num_classes < len(classes):
            raise DataError(f"--num-classes {num_classes}: the data have {len(classes)} classes")
        torch.manual_seed(config.seed)  # the weights
        model, kwargs = build(config, num_classes, config.img_size, new_head=True)
        self.preparation = prepare_for(model, config, config.in_chans)
        if config.img_size is not None:
            resize(model, self.preparation.img_size)
        self.scored = self.preparation
        if config.val_img_size is not None:
            self.scored = replace(self.preparation, img_size=(config.val_img_size,) * 2)
        for preparation in {self.preparation, self.scored}:
            check_size(model, preparation)
        _check_token_labels(model, config)
        _freeze(model, config.freeze)
        self._compute_as_asked(model)
        names = classes + tuple(f"class {i}" for i in range(len(classes), num_classes))
        self.classifier = Classifier(
            model=model, name=config.model, kwargs=kwargs, classes=names, preparation=self.preparation
        )
        self.run_dir = self._folder()

    def run(self) -> None:
        """Train and score. Raises as `train`."""
        self.train()
        self.report()

    def train(self) -> None:
        """Leave best.safetensors, and all else that a run folder has.

        Raises:
            Interrupted: SIGINT or SIGTERM came; the state is saved.
            NonFiniteError: NaN or infinity came up.
            DataError: An image cannot be read, or the optimiser cannot be made.
        """
        config, model = self.config, self.classifier.model
        ranks = config.num_nodes * _devices(config)
        train = train_loader(config, self.sources["train"], self.preparation, ranks)
        validation = score_loader(config, self.sources["val"], self.scored)
        updates = -(-len(train) // config.grad_accum_steps)
        batch = config.batch_size * config.grad_accum_steps * ranks
        self.task = ClassifyTask(model, config, len(self.classifier.classes), updates, batch)
        self._say(len(train))
        settings = RunSettings(
            epochs=config.epochs,
            seed=config.seed,
            monitor="val_top1",
            mode="max",
            patience=config.patience,
            save_every=config.save_every,
            clip=None,  # the task clips
            accumulate=config.grad_accum_steps,
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy=config.strategy,
            sync_batchnorm=config.sync_bn,
            precision=PRECISIONS[config.amp_dtype] if config.amp else "32-true",
            validate_every=config.val_interval,
            note=self.classifier.note,
        )
        self.outcome = fit(self.task, train, validation, settings, self.run_dir)

    def report(self) -> None:
        """Print the best score and where everything is."""
        if not is_first_process():
            return
        bad = len(self.task.bad)
        if bad:
            print(f"{bad} image{'s' if bad > 1 else ''} could not be read and {'were' if bad > 1 else 'was'} left out")
        outcome = self.outcome
        print(f"best top-1 {outcome.best_score:.2f} % after epoch {outcome.best_epoch + 1} of {outcome.epochs}")
        print(f"{self.run_dir}: {', '.join(sorted(path.name for path in self.run_dir.iterdir()))}")

    def _folder(self) -> Path:
        saved = replace(self.config, resume=None)
        if self.config.resume:
            run_dir = Path(self.config.resume)
            before = yaml.safe_load((run_dir / cli.CONFIG_FILE).read_text()).get("workers", 0)
            if before != self.config.workers:
                raise DataError(f"--workers {self.config.workers}: this run goes on exactly with its {before} alone")
            if is_first_process():
                (run_dir / cli.CONFIG_FILE).write_text(cli.dump(saved))
            return run_dir
        stem = Path(self.config.data_dir).resolve().name.split(".")[0] or "images"
        return make_run_dir(self.config.output, self.config.experiment or f"{stem}-{self.config.model}", saved)

    def _compute_as_asked(self, model: torch.nn.Module) -> None:
        config = self.config
        if config.strategy.startswith("fsdp") and config.model_ema:
            raise DataError("--model-ema keeps whole weights on each device and does not go with --strategy fsdp")
        if config.grad_checkpointing:
            model.set_grad_checkpointing(True)
        if config.channels_last:
            model.to(memory_format=torch.channels_last)
        if config.torchcompile:
            model.compile()  # in place: the weights keep their names

    def _say(self, batches: int) -> None:
        if not is_first_process():
            return
        config, (train, val) = self.config, (self.sources["train"], self.sources["val"])
        size = "x".join(map(str, self.preparation.img_size))
        print(f"{config.data_dir}: {len(train)} images to train, {len(val)} to score, {len(train.classes)} classes")
        count = count_parameters(self.classifier.model.parameters())
        print(
            f"{config.model}: {count:,} parameters to train, images of {size} pixels, "
            f"{batches} batches of {config.batch_size} an epoch, peak learning rate {self.task.lr:.2g}",
            flush=True,
        )


def _devices(config: TrainConfig) -> int:
    """Devices on each machine, as Lightning will count them."""
    if isinstance(config.devices, int):
        return config.devices
    return 1 if config.accelerator == "cpu" else max(1, torch.cuda.device_count())


def _check_token_labels(model: torch.nn.Module, config: TrainConfig) -> None:
    if not config.token_labels:
        return
    if not Path(config.token_labels).is_dir():
        raise DataError(f"--token-labels {config.token_labels}: there is no such folder")
    if getattr(getattr(model, "head", None), "aux", None) is None:
        raise DataError(f"--token-labels: {config.model} has no head for every cell; the models simba_* have one")
    against = {
        "--mixup": config.mixup, "--bce-loss": config.bce_loss, "--no-aug": config.no_aug,
        "--torchcompile": config.torchcompile, "--train-crop-mode": config.train_crop_mode != "rrc",
    }  # fmt: skip
    if found := [flag for flag, value in against.items() if value]:
        raise DataError(f"--token-labels does not go with {', '.join(found)}")


def _freeze(model: torch.nn.Module, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        names = [name for name, _ in model.named_parameters() if fnmatch.fnmatch(name, pattern)]
        if not names:
            near = ", ".join(name for name, _ in list(model.named_parameters())[:3])
            raise DataError(f"--freeze {pattern}: no parameter has such a name; they are {near}, ...")
        for name in names:
            model.get_parameter(name).requires_grad_(False)
    if patterns:
        frozen = sum(not p.requires_grad for p in model.parameters())
        print(f"{frozen} parameters stay as they are", file=sys.stderr)
