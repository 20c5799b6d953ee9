"""Answers and pictures for images of any kind."""

import numpy as np
import pytest
from PIL import Image

from vision import predict
from vision.classifier import Classifier


def test_command(trained, images, tmp_path, capsys):
    files = sorted(str(path) for path in (images / "val").glob("*/000.png"))
    picture = tmp_path / "why.png"
    assert predict.main([*files, "--checkpoint", str(trained), "--output", str(picture), "--steps", "4"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in out[:3]] == files
    for line in out[:3]:
        shares = [float(part.split()[-2]) for part in line.split(": ", 1)[1].split(", ")]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(100, abs=0.2)
    assert Image.open(picture).size[0] > 500


def test_answers_are_the_models(trained, images):
    classifier = Classifier.load(trained)
    image = Image.open(images / "val" / "down" / "001.png")
    row = predict.explain(classifier, image, predict.PredictConfig(topk=2, steps=2), "x")
    shares = classifier.model(classifier.tensor(image)).softmax(1)[0]
    assert [name for name, _ in row.answers] == [classifier.classes[i] for i in shares.topk(2).indices]
    assert row.pixels.shape == (16, 16, 3)
    np.testing.assert_allclose(row.pixels, np.asarray(image) / 255, atol=1e-5)
    assert row.field.shape == (16, 16)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_modes_and_sizes(mode, trained, tmp_path):
    file = tmp_path / ("x.tiff" if mode == "CMYK" else "x.png")
    Image.new("RGB", (40, 23), (200, 100, 0)).convert(mode).save(file)
    assert predict.main([str(file), "--checkpoint", str(trained), "--output", "", "--img-size", "32"]) == 0


def test_refusals(trained, images, tmp_path, capsys):
    good = str(images / "val" / "down" / "000.png")
    (tmp_path / "bad.png").write_text("no")
    words = ["--checkpoint", str(trained), "--output", ""]
    assert predict.main([str(tmp_path / "bad.png"), good, *words]) == 1  # the good one is answered all the same
    told = capsys.readouterr()
    assert "bad.png: no image in any known format" in told.err
    assert good in told.out
    assert predict.main([good, "--checkpoint", str(tmp_path)]) == 2
    assert "there is no such file" in capsys.readouterr().err
    assert predict.main([good]) == 2
    assert "give a run folder with --checkpoint RUN_DIR, or a model" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        predict.main(["--checkpoint", str(trained)])
