"""Melodies of plucked strings, made by rule: recordings for those who have none, in any number, all of them free.

    y[t] = x[t] + d ((1 - s) y[t - n] + s y[t - n - 1])      a burst x of n samples, a loop of n + s samples

Source: Karplus & Strong 1983, Digital synthesis of plucked-string and drum timbres; Jaffe & Smith 1983, Extensions of
the Karplus-Strong plucked-string algorithm, for the tuning.
"""

import functools

import numpy as np
import torch
from torch import Tensor

from .data import PARTS, Collection, Recording
from .files import encode_audio

REGISTERS = {"low": 110.0, "middle": 220.0, "high": 440.0}
"""Names of the labels, and the lowest note of each in Hz."""
PENTATONIC = (0, 2, 4, 7, 9, 12)
"""Semitones above the lowest note."""
NOTE_SECONDS = 0.25
HARMONICS = 6
RATE = 8_000


def pluck(frequency: float, seconds: float, rate: int, noise: np.random.Generator, ring: float = 0.8) -> np.ndarray:
    """One note.

    Args:
        frequency: In Hz, below a quarter of the rate.
        seconds: Length.
        rate: In Hz.
        noise: Draws the phases of the burst.
        ring: Seconds in which the note falls to a thousandth.
    Returns:
        float64, shape (t,), in [-1, 1].
    """
    from scipy.signal import lfilter

    damping = min(0.5, 40 / frequency)  # of the mean of two neighbours; high strings would die at once with a half
    period = rate / frequency - damping
    whole, share = int(period), period - int(period)
    loss = 10 ** (-3 / (ring * frequency))
    loop = np.zeros(whole + 3)
    loop[0] = 1.0
    loop[whole : whole + 3] -= loss * np.convolve([1 - damping, damping], [1 - share, share])
    # One period of a few harmonics, in place of white noise: a soft finger, and far less for a model to guess.
    burst = np.zeros(round(seconds * rate))
    orders = np.arange(1, HARMONICS + 1)
    phases = noise.uniform(0, 2 * np.pi, HARMONICS)
    turns = np.arange(whole)[:, None] * orders / whole
    burst[:whole] = (np.sin(2 * np.pi * turns + phases) / orders).sum(1)[: len(burst)]
    note = lfilter([1.0], loop, burst)
    return note / max(1e-9, np.abs(note).max())


def melody(register: str, seed: int, seconds: float = 2.0, rate: int = RATE) -> Tensor:
    """A walk over a pentatonic scale, each note ringing into the next.

    Args:
        register: A key of REGISTERS.
        seed: Of the notes and the plucks.
        seconds: Length.
        rate: In Hz.
    Returns:
        float32, shape (t,), largest sample 0.9.
    Raises:
        KeyError: No such register.
    """
    rng = np.random.default_rng([seed, list(REGISTERS).index(register)])
    total, step = round(seconds * rate), round(NOTE_SECONDS * rate)
    wave, place = np.zeros(total), int(rng.integers(len(PENTATONIC)))
    for start in range(0, total, step):
        frequency = REGISTERS[register] * 2 ** (PENTATONIC[place] / 12)
        note = pluck(frequency, min(2 * step, total - start) / rate, rate, rng)
        wave[start : start + len(note)] += note
        place = int(np.clip(place + rng.integers(-2, 3), 0, len(PENTATONIC) - 1))
    return torch.from_numpy(0.9 * wave / np.abs(wave).max()).float()


def plucked_collection(count: int = 60, seconds: float = 2.0, rate: int = RATE, seed: int = 0) -> Collection:
    """Melodies in every register, as recordings with the register as their label.

    Args:
        count: Training melodies; a tenth as many, at least one a register, for validation and for the test.
        seconds: Length of each.
        rate: In Hz.
        seed: Melodies of another seed are others.
    """
    registers, held = list(REGISTERS), max(len(REGISTERS), count // 10)
    parts, number = {}, 0
    for part, size in zip(PARTS, (count, held, held), strict=True):
        recordings = []
        for i in range(size):
            register = registers[i % len(registers)]
            make = functools.partial(_wav, register, seed * 1_000_003 + number, seconds, rate)
            recordings.append(Recording(name=f"{register}-{number}.wav", source=make, label=register))
            number += 1
        parts[part] = tuple(recordings)
    return Collection(name="plucked", split=f"generated from seed {seed}", **parts)


def _wav(register: str, seed: int, seconds: float, rate: int) -> bytes:
    return encode_audio(melody(register, seed, seconds, rate), rate, "wav")
