"""metrics.csv: a row a step that logged anything; a resumed run appends where the saved state stood."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from .folder import METRICS_FILE


class MetricsCsv(Logger):
    """Logger for the Trainer.

    Args:
        run_dir: Folder of metrics.csv; an existing file is read, so that earlier rows stay.
    """

    def __init__(self, run_dir: Path):
        super().__init__()
        self.path = run_dir / METRICS_FILE
        self.rows: dict[int, dict[str, Any]] = {}
        if self.path.is_file():
            with self.path.open(newline="") as file:
                self.rows = {
                    int(row["step"]): {k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)
                }

    @property
    def name(self) -> str:
        """Required by the Trainer."""
        return "metrics"

    @property
    def version(self) -> str:
        """Required by the Trainer."""
        return ""

    def forget_from(self, step: int) -> None:
        """Drop rows of steps that the resumed run will do again."""
        self.rows = {s: row for s, row in self.rows.items() if s < step}

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Merge into the row of the step."""
        self.rows.setdefault(int(step or 0), {"step": int(step or 0)}).update(metrics)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """config.yaml holds them."""

    @rank_zero_only
    def save(self) -> None:
        """Write the whole file; it is small."""
        if not self.rows:
            return
        columns = list(dict.fromkeys(key for row in self.rows.values() for key in row))
        columns = ["step", "epoch", *sorted(set(columns) - {"step", "epoch"})]
        part = self.path.with_name(self.path.name + ".part")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows[step] for step in sorted(self.rows))
        part.replace(self.path)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write on the way out, also after an error."""
        self.save()
