"""The models that the studio offers; a small one is trained at the first start, so that there is something to play."""

import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audio.checkpoint import Checkpoint
from audio.errors import AudioError
from audio.generation import Generator
from ssmcore.engine.folder import BEST_FILE

DEFAULT_RECIPE = "plucked"


def cache_folder() -> Path:
    """Where the default model is kept: $SSM_STUDIO_CACHE, or ssm-suite/studio below the user's cache folder."""
    if "SSM_STUDIO_CACHE" in os.environ:
        return Path(os.environ["SSM_STUDIO_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ssm-suite" / "studio"


@dataclass(frozen=True)
class Model:
    """A model that can be played.

    name: What the page calls it.
    checkpoint: With its quantiser, rate and labels.
    generator: Ready to make clips.
    """

    name: str
    checkpoint: Checkpoint
    generator: Generator

    def facts(self) -> dict[str, Any]:
        """What the page needs to know."""
        return {
            "name": self.name,
            "sample_rate": self.checkpoint.sample_rate,
            "labels": [list(names) for names in self.checkpoint.labels],
            "parameters": sum(p.numel() for p in self.checkpoint.model.parameters()),
            "backend": self.generator.backend,
        }


class Library:
    """Models by id; ids are small numbers, so no path ever comes from a browser.

    Args:
        paths: Checkpoints or run folders; none of them means the default model.
    Raises:
        AudioError: One of them is no audio checkpoint.
    """

    def __init__(self, paths: list[str]):
        self.models = [_open(path, Path(path).stem if Path(path).is_file() else Path(path).name) for path in paths]
        self.status = "" if self.models else "training the default model"
        self._process: subprocess.Popen | None = None

    def prepare(self) -> None:
        """Load the default model, or train it in a process of its own; returns at once. Needed if there is no other."""
        if not self.models:
            threading.Thread(target=self._default, daemon=True).start()

    def close(self) -> None:
        """End a training that goes on."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def _default(self) -> None:
        path = cache_folder() / f"{DEFAULT_RECIPE}.safetensors"
        try:
            if not path.is_file():
                self._train(path)
            self.models.append(_open(str(path), "plucked strings"))
            self.status = ""
        except (AudioError, OSError) as error:
            self.status = f"the default model could not be made: {error}"

    def _train(self, path: Path) -> None:
        """Run the trainer, say how far it is, and keep its best weights."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            words = ["--recipe", DEFAULT_RECIPE, "--output", folder, "--samples", "0", "--accelerator", "cpu"]
            command = [sys.executable, "-u", "-m", "audio.train", *words]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True)
            last = ""
            for line in self._process.stdout or ():
                last = line.strip() or last
                if line.startswith("epoch"):
                    self.status = f"training the default model, {line.split()[1].replace('/', ' of ')}"
            if self._process.wait():
                raise AudioError(last)
            best = next(Path(folder).glob(f"*/{BEST_FILE}"))
            best.replace(path)


def _open(path: str, name: str) -> Model:
    checkpoint = Checkpoint.load(path)
    generator = Generator.of(checkpoint)
    generator.start([0]).advance(1)  # builds the native step loop before somebody waits for it
    return Model(name, checkpoint, generator)
