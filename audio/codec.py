"""Lossless compression with a model of samples: what the model expects costs little, and every sample comes back.

    16-bit sample -> level (range coder, the model's probabilities) + place inside the level's cell (evenly likely)

Both sides step the model in the same way (natively where it can be packed; the bits of a step do not depend on how many
are asked for at once) and turn the same logits into the same integers, so that the decoder sees the encoder's
frequencies. A recording is cut into segments that run beside one another as rows. Floats may differ between machines,
backends or versions of torch: the file holds a checksum, and a mismatch is an error, never noise.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .errors import AudioError
from .generation import Generator
from .range_coder import TOTAL_BITS, RangeDecoder, RangeEncoder

MAGIC = b"SSA1"
_HEADER = struct.Struct("<4sBBIIIIII")  # magic, channels, shift, rate, frames, segment, peak, model, checksum
MOST_ROWS, PIECE = 64, 512


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """A compressed recording."""

    data: bytes
    """The whole file."""
    level_bits: float
    """Bits that the frequencies of the levels ask for; the model's own likelihood up to their rounding."""
    place_bits: float
    """Bits of the places inside the cells, and of what lies below 16 bits."""
    samples: int
    """Samples of all channels."""


def compress(checkpoint: Checkpoint, pcm: np.ndarray, rate: int, segment_seconds: float = 4.0) -> Compressed:
    """Compress integer samples.

    Args:
        checkpoint: Whose model predicts; the decoder needs the same one.
        pcm: int32, shape (channels, t), left-justified as soundfile reads them: 16-bit samples are multiples of 2^16.
        rate: In Hz; only kept. A model of another rate predicts less well, and loses nothing.
        segment_seconds: Length of the rows that run beside one another; longer ones remember more and are slower.
    Raises:
        AudioError: No samples, too many channels, or samples of more than 24 bits.
    """
    channels, frames = pcm.shape
    if not pcm.size or channels > 255:
        raise AudioError(f"{channels} channels of {frames} samples; expected 1 to 255 channels and at least one sample")
    if (pcm & 0xFF).any():
        raise AudioError("the samples have more than 24 bits; expected integer samples of at most 24 bits")
    shift = 8 if (pcm & 0xFF00).any() else 0
    high, low = pcm >> 16, (pcm >> 8) & 0xFF
    segment = max(1, min(frames, round(segment_seconds * checkpoint.sample_rate)))
    peak = int(max(abs(int(high.min())), abs(int(high.max())), 1))
    cells = _Cells(checkpoint, peak)
    rows, lengths = _rows(high, segment)
    fine = _rows(low, segment)[0] if shift else None
    generator, encoder = Generator.of(checkpoint), RangeEncoder()
    level_bits = place_bits = 0.0
    for begin, end in _batches(len(rows)):
        levels = cells.level[rows[begin:end] - cells.least]
        session = generator.start([0] * (end - begin))
        for t in range(segment):
            if t % PIECE == 0:
                given = torch.from_numpy(levels[:, t : t + PIECE])
                starts = _frequencies(session.score(given).logits)
            for row in np.flatnonzero(lengths[begin:end] > t):
                level, owner = int(levels[row, t]), starts[row, t % PIECE]
                start, stop = int(owner[level]), int(owner[level + 1])
                encoder.put(start, stop - start)
                level_bits += TOTAL_BITS - float(np.log2(stop - start))
                place_bits += _put_evenly(encoder, int(rows[begin + row, t]) - cells.first[level], cells.size[level])
                if fine is not None:
                    place_bits += _put_evenly(encoder, int(fine[begin + row, t]), 256)
    head = (MAGIC, channels, shift, rate, frames, segment, peak, _key(checkpoint), zlib.crc32(pcm.tobytes()))
    data = _HEADER.pack(*head) + encoder.finish()
    return Compressed(data=data, level_bits=level_bits, place_bits=place_bits, samples=pcm.size)


def decompress(checkpoint: Checkpoint, data: bytes) -> tuple[np.ndarray, int]:
    """The samples of a compressed recording.

    Args:
        checkpoint: The one that compressed it.
        data: The whole file.
    Returns:
        int32, shape (channels, t), as `compress` took them; and the rate in Hz.
    Raises:
        AudioError: Not such a file, of another model, damaged, or compressed on a machine that computes differently.
    """
    channels, shift, rate, frames, segment, peak, checksum = _read_header(checkpoint, data)
    generator, cells = Generator.of(checkpoint), _Cells(checkpoint, peak)
    decoder = RangeDecoder(data[_HEADER.size :])
    lengths = _lengths(channels, frames, segment)
    rows = np.zeros((len(lengths), segment), dtype=np.int32)
    for begin, end in _batches(len(rows)):
        session, levels = generator.start([0] * (end - begin)), np.zeros(end - begin, dtype=np.int64)
        for t in range(segment):
            starts = _frequencies(session.expect())
            for row in np.flatnonzero(lengths[begin:end] > t):
                level = int(np.searchsorted(starts[row], decoder.point(), side="right")) - 1
                decoder.take(int(starts[row, level]), int(starts[row, level + 1] - starts[row, level]))
                if not cells.size[level]:
                    raise AudioError(
                        "the compressed file is damaged, or was made on a machine that computes differently"
                    )
                sample = (cells.first[level] + _take_evenly(decoder, cells.size[level])) << 16
                rows[begin + row, t] = sample | (_take_evenly(decoder, 256) << 8 if shift else 0)
                levels[row] = level
            session.feed(torch.from_numpy(levels))
    per_channel = len(lengths) // channels
    pcm = np.stack([rows[c * per_channel : (c + 1) * per_channel].reshape(-1)[:frames] for c in range(channels)])
    if zlib.crc32(pcm.tobytes()) != checksum:
        raise AudioError("the compressed file is damaged, or was made on a machine that computes differently")
    return pcm, rate


class _Cells:
    """Which 16-bit samples share a level, for samples up to `peak`: contiguous, as levels rise with samples."""

    def __init__(self, checkpoint: Checkpoint, peak: int):
        self.least = -peak
        samples = torch.arange(-peak, peak + 1, dtype=torch.float64)
        self.level = checkpoint.quantizer.encode(samples / peak).numpy()
        self.size = np.bincount(self.level, minlength=checkpoint.quantizer.levels).tolist()
        edges = np.searchsorted(self.level, np.arange(checkpoint.quantizer.levels)) - peak
        self.first = edges.tolist()


def _frequencies(logits: Tensor) -> np.ndarray:
    """Starts of the levels and the total, int64, (..., levels + 1), of logits (..., levels); each gets at least 1."""
    p = logits.double().softmax(-1)
    sizes = (p * ((1 << TOTAL_BITS) - p.shape[-1])).floor().long() + 1
    spare = (1 << TOTAL_BITS) - sizes.sum(-1, keepdim=True)
    sizes.scatter_add_(-1, sizes.argmax(-1, keepdim=True), spare)
    return torch.nn.functional.pad(sizes.cumsum(-1), (1, 0)).numpy()


def _rows(values: np.ndarray, segment: int) -> tuple[np.ndarray, np.ndarray]:
    """Channels cut into segments, (rows, segment), the last of a channel padded with 0; and their true lengths."""
    channels, frames = values.shape
    lengths = _lengths(channels, frames, segment)
    padded = np.zeros((channels, len(lengths) // channels * segment), dtype=np.int64)
    padded[:, :frames] = values
    return padded.reshape(-1, segment), lengths


def _lengths(channels: int, frames: int, segment: int) -> np.ndarray:
    return np.tile(np.minimum(segment, frames - np.arange(0, frames, segment)), channels)


def _batches(rows: int) -> Iterator[tuple[int, int]]:
    return ((begin, min(begin + MOST_ROWS, rows)) for begin in range(0, rows, MOST_ROWS))


def _put_evenly(encoder: RangeEncoder, value: int, size: int) -> float:
    """Write one of `size` evenly likely values; gives its bits."""
    if size > 1:
        start, stop = (value << TOTAL_BITS) // size, ((value + 1) << TOTAL_BITS) // size
        encoder.put(start, stop - start)
    return float(np.log2(size))


def _take_evenly(decoder: RangeDecoder, size: int) -> int:
    if size == 1:
        return 0
    value = (decoder.point() * size + size - 1) >> TOTAL_BITS
    while (value << TOTAL_BITS) // size > decoder.point():
        value -= 1
    start = (value << TOTAL_BITS) // size
    decoder.take(start, ((value + 1) << TOTAL_BITS) // size - start)
    return value


def _read_header(checkpoint: Checkpoint, data: bytes) -> tuple[int, ...]:
    if len(data) < _HEADER.size or data[: len(MAGIC)] != MAGIC:
        raise AudioError("not a file that audio.compress wrote")
    _, channels, shift, rate, frames, segment, peak, key, checksum = _HEADER.unpack_from(data)
    if key != _key(checkpoint):
        raise AudioError("compressed with another checkpoint; give the one that it was compressed with")
    if not (channels and frames and 0 < segment <= frames and 0 < peak <= 32768 and shift in (0, 8)):
        raise AudioError("the compressed file is damaged: its head makes no sense")
    return channels, shift, rate, frames, segment, peak, checksum


def _key(checkpoint: Checkpoint) -> int:
    """A number that tells models apart, from the weights."""
    total = zlib.crc32(repr(checkpoint.note["model"]).encode() + repr(checkpoint.quantizer).encode())
    for name, tensor in sorted(checkpoint.model.state_dict().items()):
        total = zlib.crc32(tensor.detach().cpu().contiguous().numpy().tobytes(), zlib.crc32(name.encode(), total))
    return total
