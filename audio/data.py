"""Collections of recordings and their official parts. A dataset is one function here and one line in LAYOUTS.

    folder or archive -> Collection (train, validation, test: Recordings that are decoded when asked) -> audio.chunks

Protocols: FSDD takes index 0-4 of every speaker and digit for the test (its README) and, which it leaves open, 5-9 for
validation; SC09 goes by the official lists; YouTubeMix, Beethoven and any other folder are cut 88/6/6 by file, in the
order of their names, or by time where there are fewer than three files.
"""

import re
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .errors import AudioError
from .files import SUFFIXES, read_audio, to_mono

PARTS = ("train", "validation", "test")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One recording, decoded when asked for."""

    name: str
    """Its path inside the collection."""
    source: Callable[[], str | bytes]
    """Gives the path, or the bytes, of the file."""
    label: str | None = None
    """Its class: the digit, or the folder it lies in."""
    speaker: str | None = None
    """Who speaks, where that is known."""
    span: tuple[float, float] = (0.0, 1.0)
    """The share of its length that counts, for recordings that are cut by time."""

    def wave(self, rate: int | None = None, normalize: bool = False) -> tuple[Tensor, int]:
        """Decode, mix down, resample, cut.

        Args:
            rate: Wanted rate in Hz; None keeps the file's.
            normalize: Scale the part so that its largest sample is 1; silence stays silence.
        Returns:
            float32, shape (t,), and the rate.
        Raises:
            AudioError: As `read_audio`.
        """
        wave, own = read_audio(self.source(), self.name)
        mono = to_mono(wave, own, rate)
        mono = mono[round(self.span[0] * len(mono)) : round(self.span[1] * len(mono))]
        if normalize and len(mono):
            mono = mono / mono.abs().max().clamp_min(1e-9)
        return mono, rate or own


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Recordings by part."""

    train: tuple[Recording, ...]
    validation: tuple[Recording, ...]
    test: tuple[Recording, ...]
    name: str
    """For messages and run folders."""
    split: str
    """How the parts were made, in words."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes of the train part, sorted; empty where recordings have none."""
        return tuple(sorted({r.label for r in self.train if r.label is not None}))

    @property
    def sample_rate(self) -> int:
        """Of the first training recording, in Hz. Raises AudioError as `read_audio`."""
        return self.train[0].wave()[1]


def load_collection(path: str | Path, layout: str = "auto", leave_out: str | None = None) -> Collection:
    """Find the recordings of a folder or archive and divide them.

    Args:
        path: A folder, a tar archive of FSDD, a single sound file, or `plucked` for generated melodies.
        layout: A name of LAYOUTS, or `auto`: FSDD and SC09 are known by their names and lists, all else is `folder`.
        leave_out: A speaker whose recordings, all of them and no others, are the test part.
    Raises:
        AudioError: Nothing is there, the layout does not fit, or no recordings are left for a part.
    """
    if str(path) == "plucked":
        from .plucked import plucked_collection

        return plucked_collection()
    path = Path(path)
    files = _find(path)
    if layout == "auto":
        layout = _recognise(path, files)
    if layout not in LAYOUTS:
        raise AudioError(f"unknown layout {layout!r}; expected auto, {', '.join(LAYOUTS)}")
    collection = LAYOUTS[layout](path, files)
    if leave_out is not None:
        collection = _without_speaker(collection, leave_out)
    for part in PARTS:
        if not getattr(collection, part):
            raise AudioError(f"{path}: no recordings are left for the {part} part ({collection.split})")
    return collection


def fsdd(path: Path, files: Mapping[str, Callable[[], str | bytes]]) -> Collection:
    """Free Spoken Digit Dataset: `{digit}_{speaker}_{index}.wav`, in a folder or a tar archive.

    Raises:
        AudioError: A name is not of that form.
    """
    parts: dict[str, list[Recording]] = {part: [] for part in PARTS}
    for name, source in files.items():
        match = re.fullmatch(r"(\d)_([a-z]+)_(\d+)", Path(name).stem)
        if match is None:
            raise AudioError(f"{path}: {name} is not named like 7_jackson_32.wav; use --layout folder")
        digit, speaker, index = match.group(1), match.group(2), int(match.group(3))
        part = "test" if index < 5 else "validation" if index < 10 else "train"
        parts[part].append(Recording(name=name, source=source, label=digit, speaker=speaker))
    return _collection("fsdd", "official: index 0-4 test, 5-9 validation, the rest train", parts)


def sc09(path: Path, files: Mapping[str, Callable[[], str | bytes]]) -> Collection:
    """The ten digits of Speech Commands, by its official lists.

    Raises:
        AudioError: A list is missing.
    """
    listed = {}
    for part, name in (("validation", "validation_list.txt"), ("test", "testing_list.txt")):
        if not (path / name).is_file():
            raise AudioError(f"{path}: there is no {name}; give the unpacked Speech Commands folder")
        listed |= dict.fromkeys((path / name).read_text().split(), part)
    parts: dict[str, list[Recording]] = {part: [] for part in PARTS}
    for name, source in files.items():
        label = Path(name).parent.name
        if label in DIGITS:
            key = f"{label}/{Path(name).name}"
            speaker = Path(name).stem.partition("_nohash_")[0]
            recording = Recording(name=name, source=source, label=label, speaker=speaker)
            parts[listed.get(key, "train")].append(recording)
    return _collection("sc09", "official lists", parts)


def folder(path: Path, files: Mapping[str, Callable[[], str | bytes]], labelled: bool = True) -> Collection:
    """Any folder, or one file; where files lie in two or more subfolders, those are the labels. Raises nothing."""
    recordings = [
        Recording(name=name, source=source, label=(Path(name).parent.name or None) if labelled else None)
        for name, source in files.items()
    ]
    if len({r.label for r in recordings}) < 2:
        recordings = [replace(r, label=None) for r in recordings]
    if len(recordings) < 3:
        spans = dict(zip(PARTS, ((0.0, 0.88), (0.88, 0.94), (0.94, 1.0)), strict=True))
        cut = {part: [replace(r, span=span) for r in recordings] for part, span in spans.items()}
        return _collection(path.stem, "88/6/6 by time", cut)
    # Every k-th file would balance labels; the published music sets are cut in the order of their names.
    by_label: dict[str | None, list[Recording]] = {}
    for recording in recordings:
        by_label.setdefault(recording.label, []).append(recording)
    parts: dict[str, list[Recording]] = {part: [] for part in PARTS}
    for group in by_label.values():
        held = max(1, round(0.06 * len(group))) if len(group) >= 3 else 0
        train = len(group) - 2 * held
        for part, some in zip(PARTS, (group[:train], group[train : train + held], group[train + held :]), strict=True):
            parts[part] += some
    return _collection(path.stem, "88/6/6 by file", parts)


def music(path: Path, files: Mapping[str, Callable[[], str | bytes]]) -> Collection:
    """YouTubeMix and Beethoven: a folder of WAV files without labels. Raises nothing."""
    return folder(path, files, labelled=False)


LAYOUTS: dict[str, Callable[..., Collection]] = {
    "fsdd": fsdd,
    "sc09": sc09,
    "youtubemix": music,
    "beethoven": music,
    "folder": folder,
}


def _find(path: Path) -> dict[str, Callable[[], str | bytes]]:
    """Sound files by name, sorted, each with a function that gives its path or bytes."""
    found: dict[str, Callable[[], str | bytes]] = {}
    if path.is_dir():
        for file in path.rglob("*"):
            if file.suffix.lower() in SUFFIXES and not file.name.startswith("."):
                found[file.relative_to(path).as_posix()] = lambda file=file: str(file)
    elif path.suffix == ".tar" and path.is_file():
        found = _members(path)
    elif path.is_file():
        found[path.name] = lambda: str(path)
    else:
        raise AudioError(f"{path}: there is no such file or folder; give recordings with --data PATH")
    if not found:
        raise AudioError(f"{path}: no recordings in it; expected files that end in {', '.join(SUFFIXES[:4])}")
    return {name: found[name] for name in sorted(found)}


def _members(path: Path) -> dict[str, Callable[[], str | bytes]]:
    """Sound files of an archive; read in place, so no member can write anywhere."""
    found: dict[str, Callable[[], str | bytes]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isfile() and Path(member.name).suffix.lower() in SUFFIXES:
                    found[member.name] = _Slice(path, member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise AudioError(f"{path}: cannot be read as a tar archive ({error})") from None
    return found


@dataclass(frozen=True)
class _Slice:
    """Bytes of a member of an uncompressed archive."""

    path: Path
    start: int
    size: int

    def __call__(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)


def _recognise(path: Path, files: Mapping[str, object]) -> str:
    if all(re.fullmatch(r"\d_[a-z]+_\d+\.wav", Path(name).name) for name in files):
        return "fsdd"
    return "sc09" if (path / "testing_list.txt").is_file() else "folder"


def _collection(name: str, split: str, parts: Mapping[str, list[Recording]]) -> Collection:
    return Collection(name=name, split=split, **{part: tuple(parts[part]) for part in PARTS})


def _without_speaker(collection: Collection, speaker: str) -> Collection:
    everyone = [r for part in PARTS for r in getattr(collection, part)]
    speakers = sorted({r.speaker for r in everyone if r.speaker})
    if speaker not in speakers:
        known = ", ".join(speakers) or "unknown in this layout"
        raise AudioError(f"--leave-out {speaker}: there is no such speaker; the speakers are {known}")
    # What the official split tests the other speakers on stays unseen here too, and goes into no part.
    return replace(
        collection,
        train=tuple(r for r in collection.train if r.speaker != speaker),
        validation=tuple(r for r in collection.validation if r.speaker != speaker),
        test=tuple(r for r in everyone if r.speaker == speaker),
        split=f"all of speaker {speaker} is test; the others as: {collection.split}",
    )


def waves_to_tokens(
    recordings: tuple[Recording, ...], encode: Callable[[Tensor], Tensor], rate: int, normalize: bool
) -> list[Tensor]:
    """Decode and quantise, shortest storage that holds the levels.

    Args:
        recordings: Of one part.
        encode: Waveform (t,) to levels, int64, (t,).
        rate: In Hz.
        normalize: As `Recording.wave`.
    Returns:
        Levels, int16 or uint8, one tensor (t,) a recording.
    Raises:
        AudioError: As `read_audio`.
    """
    from tqdm import tqdm

    tokens = []
    for recording in tqdm(recordings, "decoding", leave=False, disable=None, unit="file"):
        levels = encode(recording.wave(rate, normalize)[0])
        tokens.append(levels.to(torch.uint8 if int(levels.max() if len(levels) else 0) < 256 else torch.int16))
    return tokens
