"""Long Range Arena: files of the original layouts become what they say, and one command trains on each."""

import hashlib
import json
import pickle
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from apps.lab import running
from apps.lab.__main__ import main
from apps.lab.listops import VOCABULARY, evaluate
from apps.lab.lra.config import PRESETS, TASKS, LraConfig, settings
from apps.lab.lra.data import END, UNKNOWN, check_sums, draw_listops, draw_pathfinder, load
from apps.lab.lra.model import LraModel, collate
from apps.lab.lra.run import run
from ssmcore import create_mixer

ROWS = [("( ( ( [MAX 2 ) 9 ) ] )", 9), ("[SM 7 [MIN 8 6 ] ]", 3), ("[MED 1 4 ]", 2)]


def listops_folder(folder):
    for name in ("train", "val", "test"):
        lines = [f"{source}\t{target}" for source, target in ROWS * 4]
        (folder / f"basic_{name}.tsv").write_text("\n".join(["Source\tTarget", *lines]))


def text_folder(folder):
    for part in ("train", "test"):
        for label in ("neg", "pos"):
            (folder / part / label).mkdir(parents=True)
            for i in range(20):
                words = ("bad " if label == "neg" else "good ") * (3 + i % 4)
                (folder / part / label / f"{i}_1.txt").write_text(words + ("~" if i == 0 else ""))


def retrieval_folder(folder):
    for name in ("train", "eval", "test"):
        rows = [f"{i % 2}.0\t{i}\t{i + 1}\tpaper {i}, a \tpaper {i + 1}" for i in range(8)]
        (folder / f"new_aan_pairs.{name}.tsv").write_text("\n".join(rows))


def image_folder(folder):
    """CIFAR-10's files, but with noise and sums of their own."""
    base = folder / "cifar-10-batches-py"
    base.mkdir()
    rng = np.random.default_rng(0)
    sums = {}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        data = {"data": rng.integers(0, 256, (10, 3072), dtype=np.uint8), "labels": list(range(10))}
        (base / name).write_bytes(pickle.dumps(data))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    for path in base.iterdir():
        sums[path.name] = hashlib.md5(path.read_bytes()).hexdigest()
    return sums


MAKE = {"listops": listops_folder, "text": text_folder, "retrieval": retrieval_folder}


def test_listops_tables_are_read_as_the_published_tokens(tmp_path):
    listops_folder(tmp_path)
    data = load("listops", tmp_path, 2048)
    (tokens,), label = data.train[0]
    assert [VOCABULARY[i] for i in tokens] == ["[MAX", "2", "9", "]", "<eos>"]
    assert label == 9
    assert data.tokens == 18
    assert data.classes == 10
    (cut,), _ = load("listops", tmp_path, 3).train[0]
    assert [VOCABULARY[i] for i in cut] == ["[MAX", "2", "<eos>"]


def test_reviews_are_characters_and_a_part_is_held_out(tmp_path):
    text_folder(tmp_path)
    data = load("text", tmp_path, 4096)
    assert (len(data.train), len(data.val), len(data.test)) == (36, 4, 40)
    (tokens,), label = data.test[0]
    assert label == 0
    assert tokens[-1] == END
    assert tokens[-2] == UNKNOWN  # "~" stands in two reviews only
    (good,), label = data.test[39]
    assert label == 1
    assert len(good) == 5 * 4 + 1  # review 9, the last by name
    assert data.tokens == 3 + len(set("bad good"))
    assert max(int(data.train[i][0][0].max()) for i in range(36)) < data.tokens


def test_papers_come_in_pairs(tmp_path):
    retrieval_folder(tmp_path)
    data = load("retrieval", tmp_path, 4000)
    (first, second), label = data.train[3]
    assert (len(first), len(second), label) == (len("paper 3, a ") + 1, len("paper 4") + 1, 1)
    x, mask, labels = collate([data.train[i] for i in range(4)])
    assert x.shape == mask.shape == (8, 12)
    assert labels.tolist() == [0, 1, 0, 1]
    assert torch.equal(x[3, : len(first)], first)
    assert torch.equal(x[7, : len(second)], second)
    assert mask.sum(1).tolist() == [12] * 4 + [8] * 4


def accept(sums, monkeypatch):
    """Let torchvision's checks take our files for CIFAR-10's."""
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name, _ in CIFAR10.train_list])
    monkeypatch.setattr(CIFAR10, "test_list", [[name, sums[name]] for name, _ in CIFAR10.test_list])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})


def test_images_are_trained_on_by_the_command(tmp_path, monkeypatch, capsys):
    accept(image_folder(tmp_path), monkeypatch)
    flags = ["--d-model=8", "--num-layers=1", "--epochs=1", "--batch-size=5", "--options={d_state: 4}"]
    folders = [f"--data-dir={tmp_path}", f"--output={tmp_path / 'runs'}"]
    assert main(["lra", "image", *flags, *folders]) == 0
    assert "test" in capsys.readouterr().out


def test_cifar_is_grey_and_checked(tmp_path, monkeypatch):
    sums = image_folder(tmp_path)
    with pytest.raises(ValueError, match="no whole cifar-10"):
        load("image", tmp_path, 1024)
    accept(sums, monkeypatch)
    data = load("image", tmp_path, 1024)
    assert (len(data.train), len(data.val), len(data.test)) == (45, 5, 10)
    (pixels,), label = data.test[4]
    assert label == 4
    raw = pickle.loads((tmp_path / "cifar-10-batches-py" / "test_batch").read_bytes())["data"][4].reshape(3, 1024)
    grey = (0.299 * raw[0] + 0.587 * raw[1] + 0.114 * raw[2]) / 255
    np.testing.assert_allclose(pixels[:, 0].numpy(), (grey - 122.6 / 255) / (61 / 255), atol=0.05)


def test_pathfinder_is_split_and_empty_files_are_left_out(tmp_path):
    draw_pathfinder(tmp_path, 11, 32, seed=0)
    (tmp_path / "curv_contour_length_14" / "imgs" / "0" / "sample_7.png").write_bytes(b"")
    data = load("pathfinder", tmp_path, 0)
    assert (len(data.train), len(data.val), len(data.test)) == (8, 1, 1)
    (pixels,), label = data.train[0]
    assert pixels.shape == (1024, 1)
    assert pixels.min() == -1
    assert pixels.max() == 1
    assert label in (0, 1)
    assert len(load("pathfinder", tmp_path, 0, limit=3).train) == 3


def test_drawn_lists_are_new_long_enough_and_all_different(tmp_path):
    draw_listops(tmp_path, (30, 5, 5), seed=1, longest=90, shortest=20)
    lines = [line for part in ("train", "val", "test") for line in (tmp_path / f"basic_{part}.tsv").open()]
    rows = [line.strip().split("\t") for line in lines if "\t" in line and not line.startswith("Source")]
    assert len({source for source, _ in rows}) == 40
    for source, target in rows:
        assert 20 < len(source.split()) < 90
        assert evaluate(source.split()) == int(target)


def test_what_is_missing_or_altered_is_named(tmp_path):
    for task in TASKS[:3]:
        with pytest.raises(ValueError, match=r"lra: .*(basic_train|train/neg|new_aan_pairs)"):
            load(task, tmp_path, 100)
    with pytest.raises(ValueError, match="metadata"):
        load("pathx", tmp_path, 100)
    listops_folder(tmp_path)
    path = tmp_path / "basic_val.tsv"
    (tmp_path / "SHA256SUMS").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  basic_val.tsv\n")
    assert check_sums(tmp_path) == 1
    path.write_text(path.read_text() + "\n")
    with pytest.raises(ValueError, match=r"basic_val.tsv has SHA-256"):
        load("listops", tmp_path, 100)
    (tmp_path / "SHA256SUMS").unlink()
    (tmp_path / "basic_val.tsv").write_text("a\tb\n")
    with pytest.raises(ValueError, match="columns Source, Target"):
        load("listops", tmp_path, 100)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("task", TASKS)
def test_published_settings_name_what_exists(preset, task):
    how = settings(LraConfig(task=(task,), preset=preset))
    config = type(create_mixer(how.mixer, 8)).Config
    assert set(how.options) <= {f.name for f in fields(config)}
    assert 0 <= how.warmup < 0.2
    assert how.options["two_sided"]


def test_options_replace_the_presets():
    how = settings(LraConfig(task=("text",), options={"d_state": 8}, d_model=32))
    assert (how.options["d_state"], how.options["two_sided"], how.d_model, how.lr) == (8, True, 32, 0.01)
    assert settings(LraConfig(task=("text",), mixer="mamba")).options == {}
    for wrong in ({"task": ("texts",)}, {"task": ("text",), "preset": "s6"}, {"task": ()}):
        with pytest.raises(ValueError, match=r"text|s5|one task"):
            settings(LraConfig(**wrong))


def small(task, folder, output, **options):
    sizes = {"d_model": 8, "num_layers": 1, "batch_size": 4, "epochs": 1}
    return LraConfig(task=(task,), data_dir=str(folder), output=str(output), **{**sizes, **options})


@pytest.mark.parametrize("task", MAKE)
@pytest.mark.parametrize("mixer", ["s4", "s5", "gru"])
def test_texts_are_trained_on(task, mixer, tmp_path):
    (tmp_path / "data").mkdir()
    MAKE[task](tmp_path / "data")
    preset, options = {"s4": ("s4", {}), "s5": ("s5", {"d_state": 16, "blocks": 1}), "gru": ("s4", {})}[mixer]
    config = small(task, tmp_path / "data", tmp_path / "runs", preset=preset, options=options, mixer=mixer)
    result = run(config, silent=True)
    assert 0 <= result.test_accuracy <= 1
    saved = json.loads(next((tmp_path / "runs").glob("*/result.json")).read_text())
    assert saved["mixer"] == mixer


def test_reviews_are_learned_and_a_resumed_run_ends_alike(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    text_folder(tmp_path / "data")
    whole = run(small("text", tmp_path / "data", tmp_path / "a", preset="small", epochs=8), silent=True)
    assert whole.test_accuracy == 1
    first = small("text", tmp_path / "data", tmp_path / "b", preset="small", epochs=8)
    fit = running.fit
    with (
        monkeypatch.context() as patch
    ):  # the schedule follows the number of epochs, so the run is stopped, not shortened
        patch.setattr(
            running,
            "fit",
            lambda task, *rest, **more: fit(task, *rest[:2], replace(rest[2], epochs=3), rest[3], **more),
        )
        run(first, silent=True)
    folder = next((tmp_path / "b").iterdir())
    again = run(replace(first, resume=str(folder)), silent=True)
    assert (again.val_accuracy, again.test_accuracy) == (whole.val_accuracy, whole.test_accuracy)


def test_padding_changes_no_answer(tmp_path):
    listops_folder(tmp_path)
    data = load("listops", tmp_path, 2048)
    model = LraModel(data, settings(LraConfig(task=("listops",), d_model=8, num_layers=2))).eval()
    x, mask, _ = collate([data.train[i] for i in range(3)])
    together = model(x, mask)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], model(*collate([data.train[i]])[:2]), rtol=1e-4, atol=1e-5)


def test_the_commands_train_draw_and_refuse(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["draw", "pathfinder", "--count=12", f"--output={tmp_path / 'p'}"]) == 0
    flags = ["--preset=small", "--d-model=8", "--num-layers=1", "--epochs=1", f"--output={tmp_path / 'runs'}"]
    assert main(["lra", "pathfinder", f"--data-dir={tmp_path / 'p'}", *flags]) == 0
    assert "test" in capsys.readouterr().out
    assert main(["lra", "text", *flags]) == 2
    assert "cannot be drawn" in capsys.readouterr().err
    assert main(["lra", "listop", *flags]) == 2
    assert "listops" in capsys.readouterr().err
    assert main(["lra", "listops", "--data-dir=nowhere", *flags]) == 2
    assert "no folder" in capsys.readouterr().err
    assert main(["draw", "images"]) == 2
    assert "listops or pathfinder" in capsys.readouterr().err
