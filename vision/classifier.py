"""An image classifier: network, class names and how images are prepared; one safetensors file holds it all.

Networks are made here from options: by timm's name, with weights of a run of ours, of upstream's projects or of timm.
"""

import difflib
import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from ssmcore.engine import load_weights
from ssmcore.engine.folder import BEST_FILE

from .config import ModelOptions
from .data import Preparation
from .errors import DataError
from .models.checkpoint import read, unwrap
from .sources import to_mode


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """Names what an image shows."""

    model: nn.Module
    """Images (b, in_chans, height, width) to logits (b, num_classes)."""
    name: str
    """Name of the model in timm's registry."""
    kwargs: dict[str, Any]
    """What it was created with besides."""
    classes: tuple[str, ...]
    """Names of the classes."""
    preparation: Preparation
    """Of its images."""

    @property
    def note(self) -> dict[str, Any]:
        """What has to be known, besides the tensors, to build this again."""
        return {
            "model": self.name,
            "model_kwargs": self.kwargs,
            "classes": list(self.classes),
            "preparation": self.preparation.note,
        }

    def tensor(self, image: Image.Image) -> Tensor:
        """A Pillow image as the model takes it, shape (1, in_chans, height, width).

        Raises:
            BadImageError: Its mode cannot be converted.
        """
        return self.preparation.evaluation()(to_mode(image, self.preparation.in_chans))[None]

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Of the classes, shape (b, num_classes), for prepared images (b, in_chans, height, width)."""
        return self.model.eval()(images).float().softmax(1)

    @classmethod
    def load(cls, path: str | Path) -> "Classifier":
        """Read what a training run wrote.

        Args:
            path: A .safetensors file, or a run folder, whose best.safetensors is taken.
        Raises:
            DataError: No such file, or not one of ours.
        """
        path = _file(path)
        try:
            tensors, note = load_weights(path)
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None
        if "preparation" not in note:
            raise DataError(f"{path}: was not written by python -m vision.train; give --model beside it")
        model = create(note["model"], **note["model_kwargs"])
        model.load_state_dict(tensors)
        preparation = {k: tuple(v) if isinstance(v, list) else v for k, v in note["preparation"].items()}
        return cls(
            model=model.eval(),
            name=note["model"],
            kwargs=note["model_kwargs"],
            classes=tuple(note["classes"]),
            preparation=Preparation(**preparation),
        )


def create(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A network by name; `img_size` is given only to models that are made for one size.

    Args:
        name: Of this package's registry or timm's.
        pretrained: Load published weights.
        **kwargs: Options of the model.
    Raises:
        DataError: No such name, or the model does not take an option.
    """
    import vision.models  # noqa: F401  (registers)

    if not timm.is_model(name.partition(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() has the names"
        raise DataError(f"--model {name}: there is no such model; {hint}")
    try:
        return timm.create_model(name, pretrained=pretrained, **kwargs)
    except TypeError as error:
        # timm has no other way to ask whether a model is made for one size.
        if "img_size" in kwargs and "'img_size'" in str(error):
            return create(name, pretrained, **{key: value for key, value in kwargs.items() if key != "img_size"})
        raise DataError(f"--model {name}: {error}") from None
    except (ValueError, RuntimeError, AssertionError, OSError) as error:
        raise DataError(f"--model {name}: cannot be made: {' '.join(str(error).split())}") from None


def build(options: ModelOptions, num_classes: int, img_size: int | None, new_head: bool) -> tuple[nn.Module, dict]:
    """The network that the options describe, with its weights.

    Args:
        options: Name, options, weights.
        num_classes: Of the head.
        img_size: Side of the images; None is the model's own.
        new_head: Whether a head of another number of classes in the weights is replaced by a fresh one.
    Returns:
        The model, and the options that make it again (without its weights).
    Raises:
        DataError: The name, an option or the weights cannot be used.
    """
    kwargs: dict[str, Any] = {"num_classes": num_classes, "in_chans": options.in_chans, "drop_rate": options.drop}
    if options.drop_path is not None:
        kwargs["drop_path_rate"] = options.drop_path
    if img_size is not None:
        kwargs["img_size"] = img_size
    kwargs |= options.model_kwargs
    model = create(options.model, options.pretrained, **kwargs)
    if options.checkpoint:
        load_into(model, options.checkpoint, new_head)
    return model, kwargs


def load_into(model: nn.Module, path: str | Path, new_head: bool) -> None:
    """Load weights of this package, of upstream or of timm; checks that every one finds its place.

    Args:
        model: Any model of this package or of timm.
        path: A run folder or a file.
        new_head: As in `build`.
    Raises:
        DataError: No such file, no weights in it, or weights that do not fit.
    """
    path = _file(path)
    try:
        given = read(path)
        weights = _mapped(model, given)
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{path}: no weights can be read from it ({reason})") from None
    own = model.state_dict()
    for head in _heads(model):
        name = f"{head}.weight"
        if name not in weights or name not in own or weights[name].shape[0] == own[name].shape[0]:
            continue
        if not new_head:
            raise DataError(
                f"{path}: its head has {weights[name].shape[0]} classes, expected {own[name].shape[0]}; give the "
                "--num-classes of its training, or data with as many classes"
            )
        print(f"{path}: a fresh head for {own[name].shape[0]} classes in place of one for {weights[name].shape[0]}")
        weights |= {key: own[key] for key in (name, f"{head}.bias") if key in own}
    wrong = [f"{key} is missing" for key in own if key not in weights]
    wrong += [f"{key} is unknown" for key in weights if key not in own]
    wrong += [
        f"{key} is {tuple(weights[key].shape)}, expected {tuple(value.shape)}"
        for key, value in own.items()
        if key in weights and weights[key].shape != value.shape
    ]
    if wrong:
        shown = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise DataError(f"{path}: the weights do not fit {type(model).__name__}: {shown}")
    model.load_state_dict(weights)


def resize(model: nn.Module, img_size: tuple[int, int]) -> None:
    """Make another size of image the model's own, where the model has one.

    Args:
        model: Any timm model.
        img_size: Height and width, in pixels.
    Raises:
        DataError: The model cannot take this size.
    """
    try:
        if hasattr(model, "set_input_size"):
            model.set_input_size(img_size)
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        raise DataError(f"--img-size {img_size[0]}: {type(model).__name__} cannot take it ({error})") from None


def check_size(model: nn.Module, preparation: Preparation) -> None:
    """Try one image, so that a size that does not fit is refused before any work.

    Args:
        model: Images (1, in_chans, height, width) to logits.
        preparation: Of its images.
    Raises:
        DataError: The model cannot take the size.
    """
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, preparation.in_chans, *preparation.img_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        size = "x".join(map(str, preparation.img_size))
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{type(model).__name__} cannot take images of {size} pixels: {reason}") from None
    model.train(training)


def _file(path: str | Path) -> Path:
    path = Path(path) / BEST_FILE if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; give a run folder or a file of weights with --checkpoint")
    return path


def _heads(model: nn.Module) -> tuple[str, ...]:
    found = (getattr(model, "pretrained_cfg", None) or {}).get("classifier", ())
    return (found,) if isinstance(found, str) else tuple(found or ())


def _mapped(model: nn.Module, given: Mapping[str, Any]) -> dict[str, Tensor]:
    """By the names of the model, through its family's own filter where it has one."""
    weights = unwrap(given)
    family = sys.modules[type(model).__module__]
    return dict(family.checkpoint_filter_fn(weights, model) if hasattr(family, "checkpoint_filter_fn") else weights)
