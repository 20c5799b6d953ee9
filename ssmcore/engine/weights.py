"""Weights on disk: safetensors with a JSON note beside the tensors. Reading one never runs code."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

NOTE = "note"


def save_weights(path: str | Path, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
    """Write all at once or not at all: an interrupted write leaves the old file.

    Args:
        path: Ends in .safetensors.
        tensors: A state dict; copies are made of tensors that share memory.
        note: Plain values that tell how to build the module again.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, part, metadata={NOTE: json.dumps(note)})
    part.replace(path)


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_weights` wrote.

    Args:
        path: A .safetensors file.
    Returns:
        The tensors, on the CPU, and the note ({} if the file has none).
    Raises:
        ValueError: There is no such file, or it is no safetensors file.
    """
    if not Path(path).is_file():
        raise ValueError(f"load_weights: there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {}).get(NOTE, "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, note
    except SafetensorError as error:
        raise ValueError(f"load_weights: {path} is no safetensors file ({error})") from None
