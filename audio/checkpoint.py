"""A trained audio model on disk: network, quantiser, rate and the names of its labels in one safetensors file."""

import hashlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ssmcore.engine.folder import BEST_FILE
from ssmcore.engine.weights import load_weights, save_weights

from .config import DiffWaveConfig, Network, SaShiMiConfig
from .errors import AudioError
from .models.diffwave import DiffWave
from .models.sashimi import SaShiMi
from .quantize import Quantizer

MODELS: dict[Network, tuple[type, type]] = {"sashimi": (SaShiMi, SaShiMiConfig), "diffwave": (DiffWave, DiffWaveConfig)}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What `python -m audio.train` leaves and every other command takes."""

    model: Any
    """SaShiMi or DiffWave, in evaluation mode."""
    quantizer: Quantizer
    """Between waveforms and SaShiMi's levels; DiffWave has none."""
    sample_rate: int
    """In Hz."""
    labels: tuple[tuple[str, ...], ...] = ()
    """Names of the values of each kind of label, as many kinds as the model has."""
    sha256: str = ""
    """Of the file it came from; empty before it is saved."""

    @property
    def network(self) -> Network:
        """Which kind of model it is."""
        return next(name for name, (kind, _) in MODELS.items() if isinstance(self.model, kind))

    @property
    def note(self) -> dict[str, Any]:
        """What has to be known, besides the tensors, to build this again."""
        return {
            "kind": "audio",
            "network": self.network,
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
    def load(cls, path: str | Path, network: Network | None = "sashimi") -> "Checkpoint":
        """Read what `save`, or a training run, wrote.

        Args:
            path: A .safetensors file, or a run folder, whose best.safetensors is taken.
            network: The kind of model that is wanted; None takes both.
        Raises:
            AudioError: No such file, or not a checkpoint of such a model.
        """
        path = Path(path) / BEST_FILE if Path(path).is_dir() else Path(path)
        try:
            tensors, note = load_weights(path)
        except (ValueError, OSError) as error:
            raise AudioError(f"{path}: no checkpoint ({str(error).removeprefix('load_weights: ')})") from None
        if note.get("kind") != "audio":
            raise AudioError(f"{path}: a checkpoint of another model; give one that audio.train wrote")
        if network not in (None, found := note.get("network", "sashimi")):
            raise AudioError(f"{path}: a checkpoint of {found}, and this needs one of {network}")
        try:
            build, sizes = MODELS[found]
            model = build(sizes(**{key: tuple(v) if isinstance(v, list) else v for key, v in note["model"].items()}))
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


def check_options(checkpoint: Checkpoint, config: Any) -> None:
    """Refuse options of a command that mean nothing to the kind of model that it got.

    Args:
        checkpoint: The model.
        config: The command's dataclass; options that differ from their defaults count as given.
    Raises:
        AudioError: An option is for the other kind, or DiffWave cannot take so many steps.
    """
    foreign = {
        "sashimi": ("steps",),
        "diffwave": ("temperature", "top_k", "top_p", "prompt", "from_session", "save_session", "backend", "weights"),
    }[checkpoint.network]
    for option in (f for f in fields(config) if f.name in foreign):
        if getattr(config, option.name) != option.default:
            flag = option.name.replace("_", "-")
            raise AudioError(f"--{flag} is not for {checkpoint.network}; leave it out")
    most, steps = getattr(checkpoint.model.config, "steps", None), getattr(config, "steps", None)
    if most is not None and steps is not None and not 1 <= steps <= most:
        raise AudioError(f"--steps {steps}: expected 1 to {most}, as many as it was trained with")
