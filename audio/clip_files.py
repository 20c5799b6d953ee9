"""A made clip on disk: the sound, a JSON note beside it, and a picture of waveform and mel bands."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from .files import Subtype, write_audio, write_bytes
from .spectrogram import draw_clips

MOST_PICTURES = 16


def write_clips(
    path: Path,
    waves: Tensor,
    own: list[dict[str, Any]],
    note: dict[str, Any],
    *,
    subtype: Subtype,
    picture: bool,
    clips: int,
) -> None:
    """Write every clip that holds a sample, and say so in a line.

    Args:
        path: Ends in .wav or .flac; of several clips each gets its number before the ending.
        waves: float32, shape (b, t).
        own: What each clip's note says of it alone, `seed` among it.
        note: What all notes say, `sample_rate` and `real_time_factor` among it.
        subtype: Bits of a sample.
        picture: Draw the first 16 of them too.
        clips: How many were asked for; fewer may have been made.
    Raises:
        AudioError: The disk refuses a file; those before it stay.
    """
    rate = note["sample_rate"]
    for i, (wave, facts) in enumerate(zip(waves, own, strict=True)):
        if not len(wave):
            continue
        file = path if clips == 1 else path.with_stem(f"{path.stem}-{i}")
        seconds, bits = len(wave) / rate, facts.get("bits_per_sample")
        write_audio(file, wave, rate, subtype)
        text = json.dumps({"file": file.name, **facts, "seconds": seconds, "clips": clips, **note}, indent=1)
        write_bytes(file.with_suffix(".json"), (text + "\n").encode())
        if picture and i < MOST_PICTURES:
            draw_clips(file.with_suffix(".png"), [wave], rate, [f"seed {facts['seed']}"])
        likely = "" if bits is None else f"{bits:.3f} bits a sample, "
        print(f"{file}: {seconds:.2f} s, {likely}{note['real_time_factor']:.2f} x real time")
