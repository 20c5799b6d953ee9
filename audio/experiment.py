"""One run of `python -m audio.train`, once the recordings are found: decode, train, score beside baselines, save."""

import csv
import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch

from ssmcore.engine import RunSettings, cli, fit, make_loader, make_run_dir

from .baselines import baselines
from .checkpoint import Checkpoint
from .chunks import Pieces, Streams, first
from .config import DiffWaveConfig, SaShiMiConfig
from .data import PARTS, Collection, Recording, waves_to_tokens
from .errors import AudioError
from .likelihood import bits_per_sample, whole_recordings
from .models.sashimi import UNKNOWN, SaShiMi
from .quantize import Quantizer
from .samples import write_samples
from .smooth_start import start_smooth
from .task import SampleTask
from .train_config import TrainConfig

SCORING_BATCH = 16


class Experiment:
    """A run of SaShiMi. Holds the recordings as levels and the run folder.

    Args:
        config: What to do.
        collection: The recordings by part.
    Raises:
        AudioError: A recording cannot be decoded, or the options do not fit the recordings.
    """

    unit = "bits a sample"

    def __init__(self, config: TrainConfig, collection: Collection):
        self.config, self.collection = config, collection
        options = config.recordings
        self.quantizer = Quantizer(options.quantizer, options.bits)
        self.rate = options.sample_rate or collection.sample_rate
        self.names = _label_names(collection, options.condition)
        self.multiple = math.prod(self.sizes().pool)
        self.length = -(-round(options.chunk_seconds * self.rate) // self.multiple) * self.multiple
        self.labels = {part: _label_numbers(getattr(collection, part), self.names) for part in PARTS}
        self.sounds = {part: self.decode(getattr(collection, part)) for part in PARTS}
        for part in PARTS:
            if not sum(map(len, self.sounds[part])):
                raise AudioError(f"{config.data}: the {part} part holds no samples; give longer or more recordings")
        saved = replace(config, resume=None)
        if config.resume:
            self.run_dir = Path(config.resume)
            (self.run_dir / cli.CONFIG_FILE).write_text(cli.dump(saved))
        else:
            held = f"-without-{options.leave_out}" if options.leave_out else ""
            self.run_dir = make_run_dir(config.output, f"{collection.name}{held}", saved)

    def run(self) -> None:
        """Train and score. Raises as `train`."""
        self.train()
        self.report()

    def train(self) -> None:
        """Leave best.safetensors in the run folder.

        Raises:
            Interrupted: SIGINT or SIGTERM came; the state is saved.
            NonFiniteError: NaN or infinity came up.
        """
        config = self.config
        torch.manual_seed(config.seed)
        model = self.build()
        checkpoint = self._checkpoint(model)
        train, validation = self.loaders()
        self._say(model, len(train))
        draw = functools.partial(self._draw, checkpoint) if config.samples else None
        task = self.task(model, config.epochs * len(train), draw)
        outcome = fit(task, train, validation, self._settings(checkpoint, task.monitor), self.run_dir)
        print(f"best validation score {outcome.best_score:.4f} {self.unit}, epoch {outcome.best_epoch + 1}")

    # ---- what another kind of model does in its own way ----

    def sizes(self) -> SaShiMiConfig | DiffWaveConfig:
        """The network's configuration, for these recordings."""
        labels = tuple(len(values) for values in self.names.values())
        return replace(self.config.model, levels=self.quantizer.levels, labels=labels)

    def decode(self, recordings: tuple[Recording, ...]) -> list[torch.Tensor]:
        """What the model sees of each recording, (t,): levels."""
        return waves_to_tokens(recordings, self.quantizer.encode, self.rate, self.config.recordings.normalize)

    def build(self) -> torch.nn.Module:
        """The network before its first step."""
        model = SaShiMi(self.sizes())
        if self.config.optim.smooth_start:
            start_smooth(model)
        return model

    def task(self, model: torch.nn.Module, steps: int, draw: Callable[[torch.nn.Module, int], None] | None):
        """What a step is; `steps` in all, `draw` after each epoch."""
        return SampleTask(model, self.config.optim, steps, self.config.recordings.hide_labels, draw)

    def loaders(self) -> tuple[Iterable, Iterable]:
        """Training and validation batches."""
        config, carry = self.config, self.config.recordings.carry
        options = {"length": self.length, "batch_size": config.batch_size, "silence": self.quantizer.zero}
        tokens, labels = self.sounds["train"], self.labels["train"]
        if carry:
            batches = Streams(tokens, labels, **options)
        else:
            batches = Pieces(tokens, labels, **options, multiple=self.multiple, seed=config.seed)
        limit = config.steps_per_epoch
        train = make_loader(batches, 1, seed=config.seed, shuffle=not carry, steps_per_epoch=limit, collate_fn=first)
        return train, make_loader(self._whole("validation"), 1, seed=0, shuffle=False, collate_fn=first)

    def report(self) -> dict[str, float]:
        """Print and write the test scores beside the baselines.

        Returns:
            Bits a sample by model, the trained one first.
        """
        best = Checkpoint.load(self.run_dir)
        scores = {"sashimi": bits_per_sample(best.model, self._whole("test"))}
        if self.names and self.config.recordings.hide_labels:
            scores["sashimi, labels hidden"] = bits_per_sample(best.model, self._whole("test", hidden=True))
        decode, encode = self.quantizer.decode, self.quantizer.encode
        scores |= baselines(self.sounds["train"], self.sounds["test"], self.quantizer.levels, decode, encode)
        self.show(scores, "bits_per_sample")
        return scores

    def show(self, scores: dict[str, float], column: str) -> None:
        """Print scores of the test part, and write them to scores.csv under the name of a column."""
        samples, count = sum(map(len, self.sounds["test"])), len(self.sounds["test"])
        level = "each scaled to peak 1" if self.config.recordings.normalize else "at their own level"
        print(f"test part, all {samples} samples of {count} recordings ({level}), {self.unit}:")
        for name, score in scores.items():
            print(f"  {name:32}{score:8.4f}")
        with (self.run_dir / "scores.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["model", "recordings", "samples", column])
            writer.writerows([name, count, samples, score] for name, score in scores.items())
        print(f"{self.run_dir}: {', '.join(sorted(path.name for path in self.run_dir.iterdir()))}")

    def _whole(self, part: str, hidden: bool = False):
        options = {"length": self.length, "batch_size": SCORING_BATCH, "silence": self.quantizer.zero}
        labels = torch.full_like(self.labels[part], UNKNOWN) if hidden else self.labels[part]
        return whole_recordings(self.sounds[part], labels, **options)

    def _checkpoint(self, model: torch.nn.Module) -> Checkpoint:
        labels = tuple(self.names.values())
        return Checkpoint(model=model, quantizer=self.quantizer, sample_rate=self.rate, labels=labels)

    def _settings(self, checkpoint: Checkpoint, monitor: str) -> RunSettings:
        config = self.config
        return RunSettings(
            epochs=config.epochs,
            seed=config.seed,
            monitor=monitor,
            patience=config.patience,
            save_every=config.save_every,
            clip=config.optim.clip,
            accelerator=config.accelerator,
            devices=config.devices,
            precision=config.precision,
            note=checkpoint.note,
        )

    def _draw(self, checkpoint: Checkpoint, model: torch.nn.Module, epoch: int) -> None:
        count, seconds = self.config.samples, self.config.sample_seconds
        write_samples(checkpoint, self.run_dir / "samples" / f"epoch-{epoch + 1:03d}", count, seconds)

    def _say(self, model: torch.nn.Module, batches: int) -> None:
        sizes = {part: sum(map(len, sounds)) / self.rate for part, sounds in self.sounds.items()}
        parts = ", ".join(f"{part} {len(self.sounds[part])} ({sizes[part]:.0f} s)" for part in PARTS)
        print(f"{self.collection.name} at {self.rate} Hz, {self.collection.split}; recordings: {parts}")
        kinds = ", ".join(f"{len(values)} {kind}s" for kind, values in self.names.items()) or "nothing"
        size = sum(p.numel() for p in model.parameters())
        print(f"{type(model).__name__}: {size} parameters, told {kinds}; {batches} batches/epoch")


def _label_names(collection: Collection, condition: str) -> dict[str, tuple[str, ...]]:
    """Kind of label -> its values, sorted."""
    kinds = {"nothing": (), "label": ("label",), "speaker": ("speaker",), "both": ("label", "speaker")}[condition]
    names = {kind: tuple(sorted({getattr(r, kind) for r in collection.train} - {None})) for kind in kinds}
    for kind, values in names.items():
        if not values:
            raise AudioError(f"--recordings.condition {condition}: the recordings of {collection.name} have no {kind}")
    return names


def _label_numbers(recordings: tuple[Recording, ...], names: dict[str, tuple[str, ...]]) -> torch.Tensor:
    """Labels of each recording, int64, shape (n, k); -1 for what training does not know."""
    rows = [
        [values.index(value) if (value := getattr(r, kind)) in values else -1 for kind, values in names.items()]
        for r in recordings
    ]
    return torch.tensor(rows, dtype=torch.int64).reshape(len(recordings), len(names))
