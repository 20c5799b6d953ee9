"""Recordings in, levels out: files that can be used, files that cannot, official parts, pieces and carried streams."""

import io
import os
import tarfile

import numpy as np
import pytest
import soundfile
import torch

from audio import files
from audio.baselines import baselines
from audio.chunks import Pieces, Streams
from audio.data import DIGITS, PARTS, load_collection, waves_to_tokens
from audio.errors import AudioError
from audio.files import encode_audio, read_audio, read_pcm, to_mono, write_audio, write_pcm
from audio.plucked import REGISTERS, melody, plucked_collection
from audio.quantize import Quantizer


def noise(frames, channels=1, seed=0):
    wave = torch.rand(channels, frames, generator=torch.Generator().manual_seed(seed)) * 1.8 - 0.9
    return (wave * 2**15).round() / 2**15


def write(path, frames=400, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_audio(path, noise(frames, seed=seed), 8000)


@pytest.mark.parametrize(("name", "subtype"), [("a.wav", "16"), ("a.wav", "24"), ("a.wav", "float"), ("a.flac", "16")])
def test_files_round_trip_exactly(tmp_path, name, subtype):
    wave = noise(1000, 2)
    write_audio(tmp_path / name, wave, 8000, subtype)
    back, rate = read_audio(tmp_path / name)
    assert rate == 8000
    assert torch.equal(back, wave)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(("kind", "subtype"), [("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")])
def test_lossy_formats_are_read(kind, subtype):
    tone = 0.5 * np.sin(np.arange(16000) * 0.1)
    buffer = io.BytesIO()
    soundfile.write(buffer, tone, 16000, format=kind, subtype=subtype)
    wave, rate = read_audio(buffer.getvalue())
    assert rate == 16000
    assert abs(float(wave.abs().max()) - 0.5) < 0.1


def raw(data, rate=8000, subtype="FLOAT"):
    buffer = io.BytesIO()
    soundfile.write(buffer, data, rate, format="WAV", subtype=subtype)
    return buffer.getvalue()


def rate_of_zero():
    """A header that claims 0 Hz; libsndfile would not write one."""
    data = bytearray(raw(np.zeros((10, 1))))
    place = data.index(b"fmt ") + 12
    data[place : place + 4] = bytes(4)
    return bytes(data)


BAD = {
    "no sound": (lambda: b"these are words, no samples" * 9, "cannot be read as audio"),
    "nothing": (lambda: b"", "cannot be read as audio"),
    "empty": (lambda: raw(np.zeros((0, 1))), "holds no samples"),
    "crowd": (lambda: raw(np.zeros((10, 1000))), "1000 channels; expected 1 to 32"),
    "slow": (lambda: raw(np.zeros((10, 1)), 1), "a rate of 1 Hz; expected 1000 to 384000 Hz"),
    "fast": (lambda: raw(np.zeros((10, 1)), 2_000_000), "a rate of 2000000 Hz"),
    "zero": (rate_of_zero, "the file: "),
    "nan": (lambda: raw(np.array([[0.1], [np.nan]])), "sample 1 is NaN or infinite"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_a_sentence(case):
    make, sentence = BAD[case]
    with pytest.raises(AudioError, match="^the file") as error:
        read_audio(make())
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    for bad, sentence in (
        (lambda: write_audio(tmp_path / "a.mp3", noise(9), 8000), "end the name in"),
        (lambda: write_audio(tmp_path / "a.wav", torch.full((1, 9), float("nan")), 8000), "NaN"),
        (lambda: write_audio(tmp_path / "a.wav", noise(9), 0), "0 Hz"),
        (lambda: write_audio(tmp_path / "a.flac", noise(9), 8000, "float"), "FLAC takes"),
        (lambda: write_audio(tmp_path / "no" / "a.wav", noise(9), 8000), "cannot be written"),
    ):
        with pytest.raises(AudioError, match=sentence):
            bad()

    def full(self, data):
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.Path, "write_bytes", full)
    with pytest.raises(AudioError, match="No space left on device.; nothing was left behind"):
        write_audio(tmp_path / "a.wav", noise(900), 8000)
    assert list(tmp_path.iterdir()) == []


def test_integer_samples_stay_as_they_are(tmp_path):
    pcm = np.random.default_rng(0).integers(-(2**31), 2**31, (2, 50)).astype(np.int32)
    for bits in (16, 24):
        kept = pcm >> (32 - bits) << (32 - bits)
        for name in ("a.wav", "a.flac"):
            write_pcm(tmp_path / name, kept, 8000)
            assert np.array_equal(read_pcm(tmp_path / name)[0], kept)
    write_audio(tmp_path / "f.wav", noise(9), 8000, "float")
    with pytest.raises(AudioError, match="expected integers"):
        read_pcm(tmp_path / "f.wav")


def test_resampling_keeps_a_tone():
    tone = torch.sin(2 * torch.pi * 440 * torch.arange(8000) / 8000)
    twice = to_mono(torch.stack([tone, tone]), 8000, 16000)
    assert len(twice) == 16000
    wanted = torch.sin(2 * torch.pi * 440 * torch.arange(16000) / 16000)
    assert (twice - wanted)[200:-200].abs().max() < 1e-2
    with pytest.raises(AudioError, match="the wanted rate: a rate of 0 Hz"):
        to_mono(noise(9), 8000, 0)


def make_fsdd(folder):
    for digit in (0, 7):
        for speaker in ("ann", "bob"):
            for index in (0, 4, 5, 9, 10, 30):
                write(folder / f"{digit}_{speaker}_{index}.wav", 100 + index, digit)


def names(part):
    return sorted(r.name for r in part)


def test_fsdd_parts_from_folder_and_archive(tmp_path):
    make_fsdd(tmp_path / "recordings")
    with tarfile.open(tmp_path / "fsdd.tar", "w") as archive:
        for path in sorted((tmp_path / "recordings").iterdir()):
            archive.add(path, path.name)
    folder, packed = (load_collection(tmp_path / name) for name in ("recordings", "fsdd.tar"))
    for part, indices in (("train", (10, 30)), ("validation", (5, 9)), ("test", (0, 4))):
        wanted = sorted(f"{d}_{s}_{i}.wav" for d in (0, 7) for s in ("ann", "bob") for i in indices)
        assert names(getattr(folder, part)) == names(getattr(packed, part)) == wanted
    assert folder.labels == ("0", "7")
    assert {r.speaker for r in folder.train} == {"ann", "bob"}
    for a, b in zip(folder.train, packed.train, strict=True):
        assert torch.equal(a.wave()[0], b.wave()[0])


def test_leaving_a_speaker_out(tmp_path):
    make_fsdd(tmp_path)
    held = load_collection(tmp_path, leave_out="bob")
    assert len(held.test) == 12
    assert {r.speaker for r in held.test} == {"bob"}
    assert {r.speaker for r in (*held.train, *held.validation)} == {"ann"}
    assert len(held.train) == len(held.validation) == 4
    with pytest.raises(AudioError, match="there is no such speaker; the speakers are ann, bob"):
        load_collection(tmp_path, leave_out="eve")


def test_speech_commands_go_by_the_lists(tmp_path):
    for i, word in enumerate((*DIGITS[:2], "marvin")):
        for take in range(4):
            write(tmp_path / word / f"ab{take}_nohash_0.wav", 50, i)
    (tmp_path / "validation_list.txt").write_text("zero/ab0_nohash_0.wav\nmarvin/ab1_nohash_0.wav\n")
    (tmp_path / "testing_list.txt").write_text("one/ab3_nohash_0.wav\n")
    collection = load_collection(tmp_path)
    assert collection.name == "sc09"
    assert names(collection.validation) == ["zero/ab0_nohash_0.wav"]
    assert names(collection.test) == ["one/ab3_nohash_0.wav"]
    assert len(collection.train) == 6
    assert collection.labels == ("one", "zero")
    (tmp_path / "testing_list.txt").unlink()
    with pytest.raises(AudioError, match=r"there is no testing_list\.txt"):
        load_collection(tmp_path, "sc09")


def test_music_is_cut_by_file_and_one_recording_by_time(tmp_path):
    for i in range(50):
        write(tmp_path / "music" / f"out{i:03d}.wav", 60)
    collection = load_collection(tmp_path / "music", "youtubemix")
    assert [len(getattr(collection, part)) for part in PARTS] == [44, 3, 3]
    assert names(collection.test) == ["out047.wav", "out048.wav", "out049.wav"]
    assert collection.labels == ()
    write(tmp_path / "one.wav", 1000)
    single = load_collection(tmp_path / "one.wav")
    parts = [getattr(single, part)[0].wave()[0] for part in PARTS]
    assert [len(p) for p in parts] == [880, 60, 60]
    assert torch.equal(torch.cat(parts), read_audio(tmp_path / "one.wav")[0][0])


def test_folders_are_labels(tmp_path):
    for label in ("cat", "dog"):
        for i in range(6):
            write(tmp_path / label / f"{i}.wav", 30)
    collection = load_collection(tmp_path)
    assert collection.labels == ("cat", "dog")
    assert sorted(r.label for r in collection.test) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: p / "nowhere", "there is no such file or folder"),
        (lambda p: p, "no recordings in it"),
        (lambda p: (p / "x.tar").write_bytes(b"no archive" * 100) and p / "x.tar", "cannot be read as a tar archive"),
    ],
)
def test_empty_places_are_refused(tmp_path, make, sentence):
    with pytest.raises(AudioError, match=sentence):
        load_collection(make(tmp_path))


def test_real_digits(shared_data):
    path = shared_data / "audio" / "fsdd.tar"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    collection = load_collection(path)
    assert [len(getattr(collection, part)) for part in PARTS] == [2400, 300, 300]
    wave, rate = collection.test[0].wave(normalize=True)
    assert rate == 8000
    assert float(wave.abs().max()) == 1.0
    assert len(load_collection(path, leave_out="theo").test) == 500


def ramp(*lengths):
    """Levels that tell which recording and which place they are from."""
    return [torch.arange(n) % 100 + 100 * i for i, n in enumerate(lengths)]


def test_pieces_cover_every_sample_once():
    tokens = ramp(5, 37, 100, 64)
    pieces = Pieces(tokens, torch.arange(4)[:, None], length=32, batch_size=3, silence=9, multiple=8)
    seen = []
    for index in range(len(pieces)):
        batch = pieces[index]
        assert batch.inputs.shape[1] % 8 == 0
        assert bool(batch.fresh.all())
        assert not batch.goes_on
        for inputs, targets, label in zip(batch.inputs, batch.targets, batch.label, strict=True):
            real = targets[targets != -100]
            assert torch.equal(inputs[1 : len(real)], real[:-1])
            assert int(inputs[0]) == (9 if int(real[0]) % 100 == 0 else int(real[0]) - 1)
            assert (real // 100 == label).all()
            seen += real.tolist()
    assert sorted(seen) == sorted(torch.cat(tokens).tolist())


def test_streams_go_on_where_they_stopped():
    tokens = ramp(70, 33, 16)
    streams = Streams(tokens, torch.arange(3)[:, None], length=16, batch_size=2, silence=9)
    seen: dict[int, list] = {0: [], 1: [], 2: []}
    for index in range(len(streams)):
        batch = streams[index]
        assert batch.inputs.shape == (2, 16)
        for row in range(2):
            real = batch.targets[row][batch.targets[row] != -100]
            if not len(real):
                continue
            number = int(batch.label[row])
            assert bool(batch.fresh[row]) == (not seen[number])
            assert int(batch.inputs[row, 0]) == (seen[number][-1] if seen[number] else 9)
            seen[number] += real.tolist()
        later = streams[index + 1] if index + 1 < len(streams) else None
        assert batch.goes_on == (later is not None and not bool(later.fresh.all()))
    assert [torch.tensor(seen[i]).tolist() for i in range(3)] == [t.tolist() for t in tokens]


def test_baselines_know_what_is_regular():
    quantizer = Quantizer()
    alternating = [torch.tensor([100, 200] * 300)]
    scores = baselines(alternating, alternating, 256, quantizer.decode, quantizer.encode)
    assert scores["uniform"] == 8
    assert abs(scores["unigram"] - 1) < 0.2
    assert scores["bigram"] < 0.3
    random = [torch.randint(0, 256, (4000,), generator=torch.Generator().manual_seed(i)) for i in range(2)]
    scores = baselines(random[:1], random[1:], 256, quantizer.decode, quantizer.encode)
    assert all(bits > 7.9 for bits in scores.values())
    with pytest.raises(ValueError, match="at least one sample"):
        baselines([], random, 256, quantizer.decode, quantizer.encode)


@pytest.mark.slow
def test_baselines_on_real_digits(shared_data):
    path = shared_data / "audio" / "fsdd.tar"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    collection, quantizer = load_collection(path), Quantizer()
    tokens = [waves_to_tokens(getattr(collection, p), quantizer.encode, 8000, True) for p in ("train", "test")]
    scores = baselines(*tokens, 256, quantizer.decode, quantizer.encode)
    found = [round(bits, 2) for bits in scores.values()]
    assert found == [8.0, 7.83, 6.28, 5.96, 6.04]


def test_plucked_strings_have_their_pitch():
    for register, lowest in REGISTERS.items():
        wave = melody(register, 1)
        assert torch.equal(wave, melody(register, 1))
        assert not torch.equal(wave, melody(register, 2))
        assert float(wave.abs().max()) == pytest.approx(0.9, abs=1e-4)
        note = wave[200:1800]
        spectrum = torch.fft.rfft(note * torch.hann_window(1600), 1 << 15).abs()
        pitch = 8000 * torch.arange(len(spectrum)) / (1 << 15)
        # The first note is one of the scale: a harmonic stands out at it.
        notes = [lowest * 2 ** (s / 12) for s in (0, 2, 4, 7, 9, 12)]
        heights = [float(spectrum[(pitch - f).abs() < 6].max()) for f in notes]
        assert max(heights) > 5 * float(spectrum.median())
    collection = plucked_collection(6, 0.2)
    assert collection.labels == ("high", "low", "middle")
    assert len({r.name for part in PARTS for r in getattr(collection, part)}) == 12
    assert collection.sample_rate == 8000


def test_reading_does_not_need_a_decoder_program(monkeypatch):
    monkeypatch.setitem(os.environ, "PATH", "")
    assert read_audio(encode_audio(noise(10), 8000, "flac"))[1] == 8000
