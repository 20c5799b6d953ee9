"""One run of `python -m graph.train`, once the data are known to be good: fit by the protocol, score, save."""

import csv
import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from torch_geometric.data import Data

from ssmcore.engine import RunSettings, cli, fit, load_weights, make_run_dir
from ssmcore.engine.folder import BEST_FILE, METRICS_FILE

from .batches import loader
from .checks import GraphError
from .config import ModelConfig, Schema, TrainConfig
from .data import GraphSet
from .folds import Fold, choose_epoch, curve, hold_out, ten_folds
from .models import create_model
from .precompute import orders_of, precompute
from .task import GraphTask, score_graphs

SCORES_FILE = "scores.csv"
MAY_CHANGE = ("folds", "root", "source", "output", "resume", "accelerator", "devices", "num_workers")
"""Options that make no other run."""
_RUN_DIR = "SSM_SUITE_GRAPH_RUN"  # how further processes of a run on this machine learn its folder


class Experiment:
    """Holds the graphs and the run folder.

    Args:
        config: What to do.
        data: The graphs, checked.
    Raises:
        GraphError: The protocol does not fit the data set.
    """

    def __init__(self, config: TrainConfig, data: GraphSet):
        self.config, self.data = config, data
        if (config.protocol == "split") != (data.parts is not None):
            wanted = "its own split: --protocol split" if data.parts is not None else "ten folds: --protocol A or B"
            raise GraphError(f"{data.name} is scored by {wanted}")
        if not 1 <= config.folds <= 10:
            raise GraphError(f"--folds {config.folds}: expected 1 to 10")
        self.graphs: list[Data] = precompute(data.graphs, config.model)
        self.run_dir = self._folder()
        self.scores: list[dict] = []

    def run(self) -> list[dict]:
        """Fit, score, print, and write scores.csv, which grows fold by fold.

        Returns:
            A row for each score: what, fold, score.
        Raises:
            Interrupted: SIGINT or SIGTERM came; the state is saved.
            NonFiniteError: NaN or infinity came up.
        """
        self._tell(self.data.describe())
        parameters = sum(p.numel() for p in create_model(self.data.schema, self.config.model).parameters())
        self._tell(f"{self.config.model.name}: {parameters} parameters, protocol {self.config.protocol}")
        {"split": self._split, "A": self._averaged, "B": self._nested}[self.config.protocol]()
        return self.scores

    def _split(self) -> None:
        parts = self.data.parts
        assert parts is not None
        task = self._fit(self.run_dir, parts["train"], parts["validation"])
        for part in ("validation", "test"):
            self._add(part, "", self._score(task, parts[part]))
        self._say("test", [row["score"] for row in self.scores if row["what"] == "test"])

    def _averaged(self) -> None:
        curves = []
        for fold in self._folds():
            where = self.run_dir / f"fold-{fold.number}"
            self._fit(where, fold.train, fold.test)
            curves.append(curve(where / METRICS_FILE))
            self.scores = []  # each further fold may choose another epoch
            result = choose_epoch(curves)
            for what, scores in (("protocol A", result.scores), ("last epoch", result.last)):
                for number, score in enumerate(scores):
                    self._add(what, number, score)
            self._say(
                f"protocol A, epoch {result.epoch + 1} of {len(curves[0])} chosen by the mean test curve", result.scores
            )
            self._say("the same runs after their last epoch", result.last)

    def _nested(self) -> None:
        finals = []
        for fold in self._folds():
            where = self.run_dir / f"fold-{fold.number}"
            config = self._select(where, fold)
            scores = []
            for number in range(self.config.final_runs):
                seed = self.config.seed + 1000 * (number + 1)
                rest, tenth = hold_out(fold.train, self.data.labels, seed)
                task = self._fit(where / f"final-{number}", rest, tenth, replace(config, seed=seed))
                scores.append(self._score(task, fold.test))
            self._add("protocol B", fold.number, float(np.mean(scores)))
            finals.append(float(np.mean(scores)))
        self._say("protocol B, each test fold touched once", finals)

    def _select(self, where: Path, fold: Fold) -> TrainConfig:
        """The setting with the best score on a tenth of the training part; the one setting, where there is no grid."""
        config = self.config
        rates, dropouts = config.grid_lr or (config.lr,), config.grid_dropout or (config.model.dropout,)
        settings = [
            replace(config, lr=lr, model=replace(config.model, dropout=drop)) for lr in rates for drop in dropouts
        ]
        if len(settings) == 1:
            return settings[0]
        rest, tenth = hold_out(fold.train, self.data.labels, config.seed)
        sign = 1 if self.data.schema.higher_is_better else -1
        found = []
        for number, setting in enumerate(settings):
            task = self._fit(where / f"try-{number}", rest, tenth, setting)
            found.append(sign * self._score(task, tenth))
        return settings[int(np.argmax(found))]

    def _folds(self) -> list[Fold]:
        return ten_folds(self.data.labels, self.config.seed)[: self.config.folds]

    def _fit(self, where: Path, train: list[int], held: list[int], config: TrainConfig | None = None) -> GraphTask:
        """Train in a folder of its own, or go on there; gives back the best network."""
        config = config or self.config
        where.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.seed)
        model = create_model(self.data.schema, config.model)
        options = {"seed": config.seed, "num_workers": config.num_workers}
        steps_per_epoch = config.steps_per_epoch
        batches = loader(
            self.graphs, train, config.batch_size, bucket=config.bucket, steps_per_epoch=steps_per_epoch, **options
        )
        validation = loader(self.graphs, held, config.batch_size, shuffle=False, **options)
        steps = config.epochs * len(batches)
        warmup = int(config.warmup * steps)
        task = GraphTask(model, orders_of(config.model), config.lr, config.weight_decay, steps, warmup)
        note = {"model": asdict(config.model), "schema": asdict(self.data.schema)}
        settings = RunSettings(
            epochs=config.epochs,
            seed=config.seed,
            monitor="val_score",
            mode="max" if self.data.schema.higher_is_better else "min",
            patience=config.patience,
            save_every=config.save_every,
            accelerator=config.accelerator,
            devices=config.devices,
            precision=config.precision,
            note=note,
        )
        if where != self.run_dir:
            self._tell(f"{where}: {len(train)} graphs to train on, {len(held)} held out")
        fit(task, batches, validation, settings, where)
        if (where / BEST_FILE).is_file():
            task.model.load_state_dict(load_weights(where / BEST_FILE)[0])
        return task

    def _score(self, task: GraphTask, chosen: list[int]) -> float:
        return score_graphs(task, self.graphs, chosen, self.config.batch_size)

    def _add(self, what: str, fold: int | str, score: float) -> None:
        """One more score; the file holds all so far, so that a run that is cut tells what it found."""
        self.scores.append({"what": what, "fold": fold, "score": score})
        if self.first:
            with (self.run_dir / SCORES_FILE).open("w", newline="") as file:
                writer = csv.DictWriter(file, ["what", "fold", "score"])
                writer.writeheader()
                writer.writerows(self.scores)

    def _say(self, what: str, scores: list[float]) -> None:
        spread = f" ± {np.std(scores):.4f} over {len(scores)} folds" if len(scores) > 1 else ""
        who = f"{self.data.name}, {self.config.model.name}, {what}"
        self._tell(f"{who}: {self.data.schema.metric} {np.mean(scores):.4f}{spread}")

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes for all that share the run."""
        return int(os.environ.get("LOCAL_RANK", "0")) == 0

    def _tell(self, text: str) -> None:
        if self.first:
            print(text, flush=True)

    def _folder(self) -> Path:
        config, saved = self.config, replace(self.config, resume=None)
        if not self.first and _RUN_DIR in os.environ:
            return Path(os.environ[_RUN_DIR])
        if config.resume:
            run_dir = Path(config.resume)
            run_dir.mkdir(parents=True, exist_ok=True)
            (run_dir / cli.CONFIG_FILE).write_text(cli.dump(saved))
        else:
            name = f"{self.data.name}-{config.model.name}" + (
                "" if config.protocol == "split" else f"-{config.protocol}"
            )
            run_dir = make_run_dir(config.output, name, saved)
        os.environ[_RUN_DIR] = str(run_dir)
        return run_dir


def kept_run(config: TrainConfig, data: GraphSet, run_dir: str | Path) -> Experiment:
    """The run of a command that keeps many: begun in its folder, or gone on with there. No shapes.

    Args:
        config: What to do. Further folds may be asked for, and the data may have moved.
        data: The graphs, checked.
        run_dir: Folder of this run.
    Raises:
        GraphError: The folder holds a run with other options, or as `Experiment`.
    """
    file = Path(run_dir) / cli.CONFIG_FILE
    if file.is_file():
        saved, asked = (_flat(yaml.safe_load(text)) for text in (file.read_text(), cli.dump(config)))
        other = [key for key in asked if key not in MAY_CHANGE and saved.get(key, asked[key]) != asked[key]]
        if other:
            was = ", ".join(f"{key} {saved[key]}, not {asked[key]}" for key in other)
            raise GraphError(f"{run_dir}: holds a run with other options ({was}); give another --output")
    return Experiment(replace(config, resume=str(run_dir)), data)


def _flat(options: dict, prefix: str = "") -> dict:
    """Options of nested groups by dotted names."""
    found: dict = {}
    for key, value in options.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def load_model(run_dir: str | Path) -> torch.nn.Module:
    """The best network of a run folder, or of a fold's in it, in evaluation mode. No shapes.

    Raises:
        ValueError: There is no best.safetensors in it.
    """
    tensors, note = load_weights(Path(run_dir) / BEST_FILE)

    def exact(values: dict) -> dict:
        return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}

    model = create_model(Schema(**exact(note["schema"])), ModelConfig(**exact(note["model"])))
    model.load_state_dict(tensors)
    return model.eval()
