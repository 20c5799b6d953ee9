"""Byte models: text is read as it says, bits per byte are exact, generation keeps a state only, runs resume."""

import gzip
import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from apps.lab import running
from apps.lab.__main__ import main
from apps.lab.bytes import finetune, glue
from apps.lab.bytes import run as runs
from apps.lab.bytes.config import PRESETS, BytesConfig, GlueConfig, ScalingConfig
from apps.lab.bytes.data import Windows, read
from apps.lab.bytes.model import ByteModel, bits_per_byte, continued
from apps.lab.bytes.scaling import fit_law
from apps.lab.bytes.scaling import run as scale
from ssmcore.mixer import Unsupported
from ssmcore.state import map_state

LINES = "".join(f"{i} and {i} are {2 * i}.\n" for i in range(400))


def model(mixer="mamba", **options):
    torch.manual_seed(0)
    return ByteModel(mixer, options, d_model=16, num_layers=2).eval()


def test_plain_text_is_split_at_its_end(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 900)
    (tmp_path / "b.md.gz").write_bytes(gzip.compress(b"y" * 99))
    (tmp_path / "picture.png").write_bytes(b"no text")
    corpus = read([str(tmp_path)], 4, 10**9)
    whole = bytes(np.concatenate([corpus.train, corpus.val, corpus.test]))
    assert whole == b"x" * 900 + b"\0" + b"y" * 99
    assert [len(part) for part in (corpus.train, corpus.val, corpus.test)] == [900, 50, 50]


def test_parts_of_published_layouts_are_kept(tmp_path):
    wiki, pile = tmp_path / "wikitext-103-raw", tmp_path / "pile"
    wiki.mkdir()
    for part in ("train", "valid", "test"):
        (wiki / f"wiki.{part}.raw").write_text(f"{part} " * 10)
    (pile / "train").mkdir(parents=True)
    documents = [{"text": "one", "meta": {}}, {"text": "two"}]
    (pile / "train" / "00.jsonl").write_text("\n".join(map(json.dumps, documents)))
    (pile / "val.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": "held out"}).encode()))
    corpus = read([str(wiki)], 4, 10**9)
    assert bytes(corpus.train).startswith(b"train train")
    assert bytes(corpus.val).startswith(b"valid")
    assert bytes(corpus.test).startswith(b"test")
    corpus = read([str(pile)], 4, 10**9)
    assert bytes(corpus.train) == b"one\0two"
    assert bytes(corpus.val) == bytes(corpus.test) == b"held out"
    assert bytes(read([str(pile)], 2, 4).train) == b"one"


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere is no file"):
        read([str(tmp_path / "nowhere")], 4, 100)
    with pytest.raises(ValueError, match="no text"):
        read([str(tmp_path)], 4, 100)
    (tmp_path / "short.txt").write_text("abc")
    with pytest.raises(ValueError, match="train part has 3 bytes"):
        read([str(tmp_path)], 4, 100)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"texts": 1}\n')
    with pytest.raises(ValueError, match="line 2"):
        read([str(bad)], 1, 100)
    (tmp_path / "x.gz").write_text("not gzip")
    with pytest.raises(ValueError, match="cannot be read"):
        read([str(tmp_path / "x.gz")], 1, 100)


def test_zstandard_is_read_or_asked_for(tmp_path):
    path = tmp_path / "x.jsonl.zst"
    try:
        import zstandard
    except ImportError:
        path.write_bytes(b"")
        with pytest.raises(ValueError, match="pip install zstandard"):
            read([str(path)], 1, 100)
    else:
        path.write_bytes(zstandard.compress(b'{"text": "hello hello hello hello"}\n'))
        assert bytes(read([str(path)], 0, 100).train).startswith(b"hello")


def test_windows_repeat_by_index_and_hold_neighbours():
    data = np.arange(200, dtype=np.uint8)
    windows = Windows(data, 10, 5, seed=1)
    assert torch.equal(windows[7], windows[7])
    assert (windows[7].diff() == 1).all()
    places = {int(windows[i][0]) for i in range(2000)}
    assert places == set(range(190))


@torch.no_grad()
def test_bits_per_byte_are_those_of_the_whole_text():
    net = model()
    data = np.frombuffer(LINES.encode(), np.uint8)[: 8 * 70 + 1]
    streams = torch.from_numpy(data[:-1].astype(np.int64)).view(8, 70)
    following = torch.from_numpy(data[1:].astype(np.int64)).view(8, 70)
    want = F.cross_entropy(net(streams)[0].flatten(0, 1), following.flatten()).item() / math.log(2)
    assert bits_per_byte(net, data, chunk=13) == pytest.approx(want, rel=1e-5)
    assert bits_per_byte(net, data) == pytest.approx(want, rel=1e-5)


@torch.no_grad()
def test_the_likeliest_bytes_are_those_of_the_whole_sequence():
    net = model()
    text = list(b"one two ")
    for byte in itertools.islice(continued(net, b"one two ", temperature=0), 20):
        assert byte == int(net(torch.tensor([text]))[0][0, -1].argmax())
        text.append(byte)


def test_memory_does_not_grow_with_the_length():
    net, sizes = model(), []
    step = net.stack.step

    def watched(x, state):
        y, state = step(x, state)
        total = []
        map_state(lambda t: total.append(t.numel()) or t, state)
        sizes.append(sum(total))
        return y, state

    net.stack.step = watched
    list(itertools.islice(continued(net, b"a", generator=torch.Generator().manual_seed(0)), 50))
    assert len(set(sizes)) == 1


def test_draws_keep_to_top_p():
    net = model()
    generator = torch.Generator().manual_seed(0)
    greedy = next(continued(net, b"a", temperature=0))
    assert all(next(continued(net, b"a", 1.0, 1e-6, generator)) == greedy for _ in range(5))
    with pytest.raises(ValueError, match="top_p=0"):
        next(continued(net, b"a", top_p=0))
    with pytest.raises(ValueError, match="0 bytes"):
        next(continued(net, b""))


def test_a_mixer_that_cannot_stream_is_refused():
    with pytest.raises(Unsupported, match="causal"):
        model("hyena")
    with pytest.raises(ValueError, match="mamba"):
        model("mambo")


@pytest.mark.parametrize(("name", "millions"), [("mambabyte_353m", 353), ("mambabyte_972m", 972)])
def test_published_shapes_have_the_published_parameters(name, millions):
    how = PRESETS[name]
    net = ByteModel(how.mixer, {}, d_model=how.d_model, num_layers=1)
    layer = sum(p.numel() for p in net.stack.layers.parameters())
    rest = sum(p.numel() for p in net.parameters()) - layer
    assert (rest + how.num_layers * layer) / 1e6 == pytest.approx(millions, rel=0.005)


def small(folder, **options):
    defaults = {"mixer": "mamba", "d_model": 16, "num_layers": 1, "length": 32, "batch_size": 4, "steps": 40}
    defaults |= {"steps_per_epoch": 20}
    text = folder.parent / "text.txt"
    text.write_text(LINES)
    return BytesConfig(data=(str(text),), output=str(folder), **{**defaults, "measure_bytes": 600, **options})


def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path, monkeypatch):
    whole = runs.run(small(tmp_path / "a"), silent=True)
    assert whole.test_bits < 7.5  # 8 before it has learned anything
    # The learning rate follows the number of steps, so the run is stopped and not shortened.
    stopped = small(tmp_path / "b")
    fit = running.fit
    with monkeypatch.context() as patch:
        patch.setattr(
            running,
            "fit",
            lambda task, *rest, **more: fit(task, *rest[:2], replace(rest[2], epochs=1), rest[3], **more),
        )
        runs.run(stopped, silent=True)
    folder = next((tmp_path / "b").iterdir())
    again = runs.run(small(tmp_path / "b", resume=str(folder)), silent=True)
    assert (again.val_bits, again.test_bits) == (whole.val_bits, whole.test_bits)


def test_a_model_is_trained_and_written_with(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(LINES)
    flags = ["--d-model=16", "--num-layers=1", "--length=32", "--batch-size=4", "--steps=20", "--steps-per-epoch=20"]
    assert main(["bytes", str(text), *flags, f"--output={tmp_path / 'runs'}"]) == 0
    assert "bits per byte" in capsys.readouterr().out
    folder = str(next((tmp_path / "runs").iterdir()))
    assert main(["generate", folder, "--prompt=12 and", "--count=30"]) == 0
    first = capsys.readouterr().out
    assert first.startswith("12 and")
    assert main(["generate", folder, "--prompt=12 and", "--count=30"]) == 0
    assert capsys.readouterr().out == first
    assert main(["generate", str(tmp_path)]) == 2
    assert "no run folder" in capsys.readouterr().err
    assert main(["bytes", str(tmp_path / "none")]) == 2
    assert "no file" in capsys.readouterr().err


GLUE_ROWS = {
    "CoLA": ("", ["gj04\t1\t\tA good one.", "gj04\t0\t*\tOne bad a."]),
    "SST-2": ("sentence\tlabel", ["good film\t1", "bad film\t0"]),
    "MRPC": ("\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", ["1\t1\t2\tgood\tgood", "0\t3\t4\tbad\tgood"]),
    "STS-B": ("index\tsentence1\tsentence2\tscore", ["0\tgood\tgood\t5.0", "1\tbad\tgood\t0.5"]),
    "MNLI": (
        "index\tsentence1\tsentence2\tgold_label",
        ["0\tgood\tgood\tentailment", "1\tbad\tgood\tcontradiction", "2\tx\ty\t-", "3\tok\tgood\tneutral"],
    ),
}


def glue_folder(folder, name):
    head, rows = GLUE_ROWS[name]
    folder.mkdir()
    for file in ("train.tsv", glue.TASKS[name].dev):
        (folder / file).write_text("\n".join([*([head] if head else []), *(rows * 10)]) + "\n", encoding="utf-8")


@pytest.mark.parametrize("name", GLUE_ROWS)
def test_glue_files_are_bytes_and_answers(name, tmp_path):
    glue_folder(tmp_path / name, name)
    train, val, dev = glue.load(name, tmp_path / name, 64)
    assert (len(train), len(val)) == ((27, 3) if name == "MNLI" else (18, 2))
    (text,), answer = dev[0]
    good, bad = {"CoLA": (b"A good one.", b"One bad a."), "SST-2": (b"good film", b"bad film")}.get(
        name, (b"good\0good", b"bad\0good")
    )
    assert bytes(text.tolist()) == good
    assert answer == {"STS-B": 5.0, "MNLI": 0}.get(name, 1)
    assert bytes(dev[1][0][0].tolist()) == bad
    assert len(glue.load(name, tmp_path / name, 3)[2][0][0][0]) == 3


def test_glue_scores():
    truth = np.array([1, 1, 0, 0, 1, 0])
    answers = np.array([1, 0, 0, 1, 1, 0])
    assert glue.score("SST-2", answers, truth) == pytest.approx(4 / 6)
    assert glue.score("MRPC", answers, truth) == pytest.approx(2 * 2 / (3 + 3))
    tp, tn, fp, fn = 2, 2, 1, 1
    root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert glue.score("CoLA", answers, truth) == pytest.approx((tp * tn - fp * fn) / root)
    assert glue.score("CoLA", np.ones(6), truth) == 0
    assert glue.score("STS-B", np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])) == pytest.approx(1)


def test_what_glue_lacks_is_named(tmp_path):
    with pytest.raises(ValueError, match="MRPC"):
        glue.load("MRCP", tmp_path, 64)
    with pytest.raises(ValueError, match=r"train.tsv is not there"):
        glue.load("RTE", tmp_path, 64)
    (tmp_path / "train.tsv").write_text("index\tsentence1\n")
    with pytest.raises(ValueError, match="no column 'sentence2'"):
        glue.load("RTE", tmp_path, 64)


@pytest.mark.parametrize("name", ["SST-2", "STS-B"])
def test_a_byte_model_is_tuned_on_glue(name, tmp_path, capsys):
    glue_folder(tmp_path / name, name)
    flags = ["--mixer=mamba", "--d-model=16", "--num-layers=1", "--epochs=25", "--batch-size=4", "--lr=0.01"]
    assert main(["glue", name, f"--data-dir={tmp_path / name}", *flags, f"--output={tmp_path / 'runs'}"]) == 0
    text = capsys.readouterr().out
    assert float(text.split(" on the dev part")[0].split()[-1]) > 0.99
    assert main(["glue", name, f"--output={tmp_path / 'runs'}"]) == 2
    assert "--data-dir" in capsys.readouterr().err


def test_tuning_starts_from_a_trained_model(tmp_path):
    runs.run(small(tmp_path / "a"), silent=True)
    start = next((tmp_path / "a").iterdir())
    glue_folder(tmp_path / "SST-2", "SST-2")
    config = GlueConfig(task=("SST-2",), data_dir=str(tmp_path / "SST-2"), start=str(start))
    torch.testing.assert_close(finetune._body(config).state_dict(), runs.trained(start).state_dict())


def test_a_power_law_is_found_where_there_is_one():
    compute = [1e9, 4e9, 3e10]
    law = fit_law(compute, [(c / 5e12) ** -0.08 for c in compute])
    assert law.alpha == pytest.approx(0.08)
    assert law.compute == pytest.approx(5e12)
    assert law.residual < 1e-12
    assert law.at(1e10) == pytest.approx((1e10 / 5e12) ** -0.08)
    with pytest.raises(ValueError, match="at least 2"):
        fit_law([1e9], [1.0])


def test_sizes_are_trained_once_and_fitted(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(LINES)
    train = {"length": 16, "batch_size": 4, "steps_per_epoch": 10, "measure_bytes": 600, "steps": 20}
    config = ScalingConfig(data=(str(text),), sizes=((1, 8), (1, 16)), train=train, output=str(tmp_path / "s"))
    points, law = scale(config)
    assert scale(config) == (points, law)
    assert len(list((tmp_path / "s" / "runs").iterdir())) == 2
    assert points[0]["compute"] < points[1]["compute"]
    assert (tmp_path / "s" / "scaling.png").stat().st_size > 1000
