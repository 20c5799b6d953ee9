"""A trained audio model on disk: network, quantiser, rate and the names of its labels in one safetensors file."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ssmcore.engine.folder import BEST_FILE
from ssmcore.engine.weights import load_weights, save_weights

from .config import SaShiMiConfig
from .errors import AudioError
from .models.sashimi import SaShiMi
from .quantize import Quantizer


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What `python -m audio.train` leaves and every other command takes."""

    model: SaShiMi
    """In evaluation mode."""
    quantizer: Quantizer
    """Between waveforms and the model's levels."""
    sample_rate: int
    """In Hz."""
    labels: tuple[tuple[str, ...], ...] = ()
    """Names of the values of each kind of label, as many kinds as the model has."""
    sha256: str = ""
    """Of the file it came from; empty before it is saved."""

    @property
    def note(self) -> dict[str, Any]:
        """What has to be known, besides the tensors, to build this again."""
        return {
            "kind": "audio",
            "model": asdict(self.model.config),
            "quantizer": asdict(self.quantizer),
            "sample_rate": self.sample_rate,
            "labels": [list(names) for names in self.labels],
        }

    def label(self, *names: str | None) -> torch.Tensor:
        """Labels by their names.

        Args:
            names: One a kind, fewer or None where unknown.
        Returns:
            int64, shape (1, k).
        Raises:
            AudioError: More names than kinds, or a name that is not there.
        """
        if len(names) > len(self.labels):
            raise AudioError(f"{len(names)} labels given, the model has {len(self.labels) or 'none'}")
        found = [-1] * len(self.labels)
        for i, name in enumerate(names):
            if name is None:
                continue
            if name not in self.labels[i]:
                raise AudioError(f"unknown label {name!r}; the model has {', '.join(self.labels[i])}")
            found[i] = self.labels[i].index(name)
        return torch.tensor([found], dtype=torch.int64)

    def save(self, path: str | Path) -> None:
        """Write a .safetensors file, whole or not at all.

        Args:
            path: Where; replaced if it exists.
        Raises:
            AudioError: The disk refuses it.
        """
        path = Path(path)
        try:
            save_weights(path, self.model.state_dict(), self.note)
        except OSError as error:
            path.with_name(path.name + ".part").unlink(missing_ok=True)
            raise AudioError(f"{path}: cannot be written ({error.strerror or error})") from None

    @classmethod
    def load(cls, path: str | Path) -> "Checkpoint":
        """Read what `save`, or a training run, wrote.

        Args:
            path: A .safetensors file, or a run folder, whose best.safetensors is taken.
        Raises:
            AudioError: No such file, or not a checkpoint of an audio model.
        """
        path = Path(path) / BEST_FILE if Path(path).is_dir() else Path(path)
        try:
            tensors, note = load_weights(path)
        except (ValueError, OSError) as error:
            raise AudioError(f"{path}: no checkpoint ({str(error).removeprefix('load_weights: ')})") from None
        if note.get("kind") != "audio":
            raise AudioError(f"{path}: a checkpoint of another model; give one that audio.train wrote")
        try:
            fields = {key: tuple(v) if isinstance(v, list) else v for key, v in note["model"].items()}
            model = SaShiMi(SaShiMiConfig(**fields))
            model.load_state_dict(tensors)
            return cls(
                model=model.eval(),
                quantizer=Quantizer(**note["quantizer"]),
                sample_rate=int(note["sample_rate"]),
                labels=tuple(tuple(names) for names in note["labels"]),
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise AudioError(f"{path}: its weights do not fit what it says of itself ({reason})") from None
