"""Sound files: read anything that libsndfile reads, refuse what is no sound, write all of a file or none of it.

Waveforms are float32, shape (channels, time), in [-1, 1], as in torchaudio; soundfile decodes and encodes (WAV, FLAC,
OGG, MP3, no FFmpeg), torchaudio resamples.
"""

import contextlib
import io
import os
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import torch
from torch import Tensor

from .errors import AudioError

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au")
MOST_CHANNELS = 32
RATES = (1_000, 384_000)
Subtype = Literal["16", "24", "float"]
_SUBTYPES = {"16": "PCM_16", "24": "PCM_24", "float": "FLOAT"}


def read_audio(
    source: str | os.PathLike | bytes, name: str | None = None, most_seconds: float | None = None
) -> tuple[Tensor, int]:
    """Decode a sound file.

    Args:
        source: A path, or the bytes of a file.
        name: What to call it in messages; the path if left out.
        most_seconds: Decode no more than this much, so that a small file cannot fill the memory.
    Returns:
        The waveform, float32, shape (c, t), t >= 1, every sample finite; and its rate in Hz.
    Raises:
        AudioError: There is no such file, it is no sound, it is empty, holds NaN, or its rate or channels are absurd.
    """
    label = name or ("the file" if isinstance(source, bytes) else str(source))
    wave, rate, _ = _decode(source, label, "float32", most_seconds)
    return torch.from_numpy(wave.T.copy()), rate


def read_pcm(path: str | os.PathLike) -> tuple[np.ndarray, int]:
    """Integer samples as they stand in the file.

    Args:
        path: WAV or FLAC of 8, 16 or 24 bits.
    Returns:
        int32, shape (c, t), left-justified: a 16-bit sample is a multiple of 2^16; and the rate in Hz.
    Raises:
        AudioError: As `read_audio`, or the samples are floats or coded with loss.
    """
    pcm, rate, subtype = _decode(path, str(path), "int32")
    if subtype not in ("PCM_U8", "PCM_S8", "PCM_16", "PCM_24"):
        raise AudioError(f"{path}: its samples are {subtype}; expected integers of 8, 16 or 24 bits")
    return pcm.T.copy(), rate


def write_pcm(path: str | os.PathLike, pcm: np.ndarray, rate: int) -> None:
    """Write integer samples as `read_pcm` gives them, 16 bits where they fit, else 24; whole or not at all.

    Args:
        path: Ends in .wav or .flac.
        pcm: int32, shape (c, t), left-justified.
        rate: In Hz.
    Raises:
        AudioError: The ending is unknown, or the disk refuses the file.
    """
    kind = Path(path).suffix.removeprefix(".").upper()
    if kind not in ("WAV", "FLAC"):
        raise AudioError(f"{path}: end the name in .wav or .flac")
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm.T, rate, format=kind, subtype="PCM_24" if (pcm & 0xFFFF).any() else "PCM_16")
    write_bytes(path, buffer.getvalue())


def read_bytes(path: str | os.PathLike) -> bytes:
    """A whole file.

    Args:
        path: Which.
    Raises:
        AudioError: It is not there or cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror or error})") from None


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """A whole file, or nothing.

    Args:
        path: Where; replaced if it exists.
        data: Its bytes.
    Raises:
        AudioError: The disk refuses it.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise AudioError(f"{path}: cannot be written ({error.strerror or error}); nothing was left behind") from None


def _decode(
    source: str | os.PathLike | bytes, label: str, dtype: str, most_seconds: float | None = None
) -> tuple[np.ndarray, int, str]:
    """Samples (t, c), rate and subtype of a file, checked."""
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise AudioError(f"{label}: there is no such file")
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as file:
            _check_header(label, file.samplerate, file.channels)
            most = -1 if most_seconds is None else max(1, round(most_seconds * file.samplerate))
            wave = file.read(most, dtype=dtype, always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, OSError, TypeError) as error:
        reason = str(error).split(": ")[-1].rstrip(".")
        raise AudioError(f"{label}: cannot be read as audio ({reason}); give a WAV, FLAC, OGG or MP3 file") from None
    if not len(wave):
        raise AudioError(f"{label}: holds no samples; give a recording that is longer than nothing")
    bad = np.flatnonzero(~np.isfinite(wave).all(1))
    if len(bad):
        raise AudioError(f"{label}: sample {bad[0]} is NaN or infinite; export the recording again")
    return wave, file.samplerate, file.subtype


def write_audio(path: str | os.PathLike, wave: Tensor, rate: int, subtype: Subtype = "16") -> None:
    """Write a WAV or FLAC file, whole or not at all.

    Args:
        path: Its ending says the format.
        wave: float32, shape (c, t) or (t,), in [-1, 1]; samples beyond are clipped.
        rate: In Hz.
        subtype: Bits of a sample; FLAC has no float.
    Raises:
        AudioError: The ending, rate or subtype is unknown, a sample is not finite, or the disk refuses the file.
    """
    write_bytes(path, encode_audio(wave, rate, Path(path).suffix.removeprefix("."), subtype))


def encode_audio(wave: Tensor, rate: int, kind: str, subtype: Subtype = "16") -> bytes:
    """The bytes of a sound file.

    Args:
        wave: As `write_audio`, shape (c, t) or (t,).
        rate: In Hz.
        kind: wav or flac.
        subtype: As `write_audio`.
    Raises:
        AudioError: As `write_audio`, the disk aside.
    """
    if kind.lower() not in ("wav", "flac"):
        raise AudioError(f"cannot write .{kind} files; end the name in .wav or .flac")
    if subtype not in _SUBTYPES or (kind.lower() == "flac" and subtype == "float"):
        raise AudioError(f"cannot write {kind} with subtype {subtype!r}; WAV takes 16, 24, float, FLAC takes 16, 24")
    samples = wave.detach().cpu().float().reshape(-1, wave.shape[-1])
    _check_header("the waveform", rate, len(samples))
    if not samples.isfinite().all():
        raise AudioError("the waveform holds NaN or infinity; nothing was written")
    buffer = io.BytesIO()
    # libsndfile scales by 2^(bits - 1) and clips, so that k / 2^15 comes back as k / 2^15.
    soundfile.write(buffer, samples.T.numpy(), rate, format=kind.upper(), subtype=_SUBTYPES[subtype])
    return buffer.getvalue()


def to_mono(wave: Tensor, rate: int, target: int | None = None) -> Tensor:
    """The mean of the channels, at another rate if need be.

    Args:
        wave: float32, shape (c, t).
        rate: Of the waveform, in Hz.
        target: Wanted rate in Hz; None keeps it.
    Returns:
        float32, shape (t',), t' = ceil(t target / rate).
    Raises:
        AudioError: The target rate is absurd.
    """
    mono = wave.mean(0)
    if target is None or target == rate:
        return mono
    _check_header("the wanted rate", target, 1)
    from torchaudio.functional import resample  # a heavy import that most runs do not need

    return resample(mono, rate, target)


def _check_header(label: str, rate: int, channels: int) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioError(f"{label}: a rate of {rate} Hz; expected {RATES[0]} to {RATES[1]} Hz")
    if not 1 <= channels <= MOST_CHANNELS:
        raise AudioError(f"{label}: {channels} channels; expected 1 to {MOST_CHANNELS}")
