"""The tour: one file without outside references, sections that run, interruptions that lose nothing."""

import base64
import os
import re
import sys
import types
from html.parser import HTMLParser
from pathlib import Path

import pytest
from ssm_kernels import native_build

from apps.tour import charts, report, visit
from apps.tour.__main__ import main
from apps.tour.report import Command, Figure, Report, Section, Table, Text
from apps.tour.sections import SECTIONS, Visit

compiled = pytest.mark.skipif(native_build.compiler() is None, reason="no C compiler: no native rows, no floor")

VOID = {"meta", "link", "br", "path", "use", "line", "rect", "circle", "img"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags close in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def assert_self_contained(text: str) -> Page:
    page = Page(text)
    assert page.open == []
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action"):
            assert value.startswith(("#", "data:")), (tag, name, value)
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    identities = [value for _, name, value in page.attributes if name == "id"]
    assert len(identities) == len(set(identities))
    for _, name, value in page.attributes:
        if name.endswith("href") and value.startswith("#"):
            assert value[1:] in identities, value
    return page


def a_section(name: str = "One & <two>") -> Section:
    figure = Figure(charts.bars({"fast": {"a": 1.0, "b": 20.0}}, "ms", name[:3]), "caption", 'a "quoted" text')
    table = Table(["", "ms"], [["a", "1.0"], ["b", "2.0"]], "numbers", strong=[0])
    return Section(name, "it works", [Text("see `code` & <this>"), figure, table], [Command("run --it", "again")])


def test_page_is_one_file(tmp_path):
    pages = Report("Title", "lead", {"machine": "this"}, [a_section(), a_section("Two")])
    pages.write(tmp_path / "deep" / "index.html")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["index.html"]
    page = assert_self_contained((tmp_path / "deep" / "index.html").read_text())
    words = " ".join(page.words)
    assert "One & <two>" in words
    assert "see" in words
    assert "What to try next" in words
    assert ("div", "aria-label", 'a "quoted" text') in page.attributes


def test_drawings_follow_the_page_colours():
    svg = charts.bars({"left": {"ours": 1.0, "theirs": 30.0}, "right": {"ours": 2.0}}, "ms", "demo")
    assert svg.startswith("<svg")
    assert "var(--c0)" in svg
    assert "var(--ink)" in svg
    assert not any(colour in svg for colour in charts._VARIABLES)
    assert "xmlns" not in svg


def test_sections_are_files():
    folder = Path(report.__file__).parent / "sections"
    assert {p.stem for p in folder.glob("*.py")} - {"__init__"} == set(SECTIONS.values())


def a_module(monkeypatch, name: str, run) -> None:
    module = types.ModuleType(name)
    module.run = run
    monkeypatch.setitem(sys.modules, f"apps.tour.sections.{name}", module)


def test_a_failed_section_leaves_the_others(monkeypatch, tmp_path, capsys):
    def fail(visit):
        raise ValueError("no data today")

    a_module(monkeypatch, "bad", fail)
    a_module(monkeypatch, "good", lambda visit: a_section())
    assert visit.tour(tmp_path, {"first": "bad", "second": "good"}, tiny=True) == 1
    text = (tmp_path / "index.html").read_text()
    assert "failed: ValueError: no data today" in text
    assert "it works" in text
    assert str((tmp_path / "index.html").resolve()) in capsys.readouterr().out
    assert_self_contained(text)


def test_an_interruption_keeps_what_is_done(monkeypatch, tmp_path):
    def interrupt(visit):
        raise KeyboardInterrupt

    a_module(monkeypatch, "good", lambda visit: a_section())
    a_module(monkeypatch, "stopped", interrupt)
    sections = {"first": "good", "second": "stopped", "third": "good"}
    assert visit.tour(tmp_path, sections) == 130
    text = (tmp_path / "index.html").read_text()
    assert "it works" in text
    assert "second: interrupted" in text
    assert "third: interrupted before its turn" in text


@compiled
def test_speed_section(tmp_path):
    from apps.tour.sections import speed

    section = speed.run(Visit(tmp_path, tiny=True))
    table = next(block for block in section.blocks if isinstance(block, Table))
    assert {"PyTorch loop over time", "this machine's floor"} <= {row[0] for row in table.rows}
    assert all(len(row) == len(table.head) for row in table.rows)
    assert_self_contained(Report("t", "l", {}, [section]).html())


def test_time_series_section(tmp_path):
    from apps.tour.sections import timeseries

    section = timeseries.run(Visit(tmp_path, tiny=True))
    table = next(block for block in section.blocks if isinstance(block, Table))
    assert [row[0] for row in table.rows][:2] == ["LinearSSM", "Mamba on LinearSSM"]
    assert len(table.rows) == 5
    assert all(float(row[1]) > 0 for row in table.rows)
    assert (tmp_path / "co2.csv").read_text().splitlines()[1] == "1958-03-29,316.1"
    assert ",\n" in (tmp_path / "co2.csv").read_text()  # gaps stay gaps
    told = next(block.text for block in section.blocks if isinstance(block, Text) and "microseconds" in block.text)
    assert float(re.search(r"differs by (\S+) ppm", told)[1]) < 1e-6
    assert_self_contained(Report("t", "l", {}, [section]).html())


def test_vision_section(tmp_path):
    from apps.tour.sections import vision

    section = vision.run(Visit(tmp_path, tiny=True))
    assert {part: len(list((tmp_path / "digits" / part).glob("*/*.png"))) for part in vision.PARTS} == vision.PARTS
    table = next(block for block in section.blocks if isinstance(block, Table))
    assert [row[0] for row in table.rows] == [vision.MODEL, "3 nearest neighbours", "logistic regression"]
    right = [float(row[1].split()[0]) for row in table.rows]
    assert right[1] > right[2] > 90  # the classic methods see what was written
    assert_self_contained(Report("t", "l", {}, [section]).html())


def test_audio_section(tmp_path):
    from apps.tour.sections import audio

    section = audio.run(Visit(tmp_path, tiny=True))
    sounds = [block for block in section.blocks if isinstance(block, report.Sound)]
    assert [s.caption.split(" register")[0] for s in sounds] == ["low", "low", "middle", "middle", "high", "high"]
    assert all(base64.b64decode(s.wav)[:4] == b"RIFF" for s in sounds)
    table = next(block for block in section.blocks if isinstance(block, Table))
    assert [row[0] for row in table.rows][:2] == ["SaShiMi", "uniform"]
    assert f"{float(table.rows[0][1]):.2f} bits a sample" in section.summary
    page = Report("Title", "lead", {}, [section])
    page.write(tmp_path / "page" / "index.html")
    text = (tmp_path / "page" / "index.html").read_text()
    assert_self_contained(text)
    assert text.count("<audio controls") == 6


def test_command_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "--only" in capsys.readouterr().out
    threads = os.environ.get("OMP_NUM_THREADS", "2")
    assert main(["--tiny", "--only", "speed", "--output", str(tmp_path), "--threads", threads]) == 0
    text = (tmp_path / "index.html").read_text()
    assert "the numbers mean nothing" in text
    assert_self_contained(text)
