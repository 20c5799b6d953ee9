"""The studio against a real server: sound that equals the model's, a line that empties, a page in a real browser."""

import contextlib
import hashlib
import json
import os
import shutil
import threading
import time
import urllib.error
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import uvicorn
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from apps.studio import jobs, library
from apps.studio.__main__ import main
from apps.studio.library import Library
from apps.studio.server import MOST_BYTES, create_app
from audio.checkpoint import Checkpoint
from audio.config import SaShiMiConfig
from audio.errors import AudioError
from audio.files import encode_audio, read_audio
from audio.generation import Draw, Generator
from audio.models.sashimi import SaShiMi
from audio.quantize import Quantizer

RATE = 8000
WANTED = {"model": 0, "seed": 7, "seconds": 0.5, "temperature": 0.9, "top_p": 0.95, "label": ["b"], "prompt": None}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    mixers = {"s4d": {"d_state": 4}, "mlp": {"expand": 1.0}}
    model = SaShiMi(SaShiMiConfig(d_model=8, layers=1, pool=(4,), mixers=mixers, labels=(2,)))
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    Checkpoint(model=model, quantizer=Quantizer(), sample_rate=RATE, labels=(("a", "b"),)).save(path)
    return path


@contextlib.contextmanager
def serving(paths):
    app = create_app(Library(paths), ["127.0.0.1"])
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", ws_max_size=1 << 16))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield SimpleNamespace(
            http=f"http://127.0.0.1:{port}", ws=f"ws://127.0.0.1:{port}/api/generate", state=app.state.studio
        )
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def studio(checkpoint):
    with serving([str(checkpoint)]) as running:
        yield running


@pytest.fixture(scope="module")
def expected(checkpoint):
    """What the model makes of WANTED, without any server."""
    loaded = Checkpoint.load(checkpoint)
    session = Generator.of(loaded).start([WANTED["seed"]], label=loaded.label("b"))
    made = session.advance(RATE // 2, Draw(temperature=WANTED["temperature"], top_p=WANTED["top_p"]))
    return loaded.quantizer.decode(made.tokens)[0].numpy()


def get(url, headers=None, data=None):
    with urllib.request.urlopen(urllib.request.Request(url, data=data, headers=headers or {}), timeout=30) as answer:
        return answer.read(), dict(answer.headers)


def generate(studio, wanted):
    """Samples and the last message."""
    chunks, last = [], {}
    with connect(studio.ws) as socket:
        socket.send(json.dumps(wanted))
        with contextlib.suppress(ConnectionClosed):
            while True:
                message = socket.recv(timeout=30)
                if isinstance(message, bytes):
                    chunks.append(np.frombuffer(message, "<f4"))
                else:
                    last = json.loads(message)
    return (np.concatenate(chunks) if chunks else np.zeros(0)), last


def test_sound_comes_while_it_is_made_and_equals_the_models(studio, expected):
    samples, info = generate(studio, WANTED)
    assert np.array_equal(samples, expected)
    assert (info["seed"], info["label"], info["samples"], info["sample_rate"]) == (7, ["b"], RATE // 2, RATE)
    assert info["samples_sha256"] == hashlib.sha256(expected.tobytes()).hexdigest()
    assert 0 < info["bits_per_sample"] < 20
    assert np.array_equal(generate(studio, WANTED)[0], samples)
    assert not np.array_equal(generate(studio, {**WANTED, "seed": 8})[0], samples)


def test_downloads(studio, expected):
    _, info = generate(studio, WANTED)
    url = f"{studio.http}/api/clips/{info['done']}"
    wave, rate = read_audio(get(f"{url}.wav")[0])
    assert rate == RATE
    assert np.array_equal(wave[0].numpy(), expected)
    flac, _ = read_audio(get(f"{url}.flac")[0])
    assert np.abs(flac[0].numpy() - expected).max() <= 2**-23
    beside = json.loads(get(f"{url}.json")[0])
    assert beside["samples_sha256"] == info["samples_sha256"]
    assert beside["top_p"] == 0.95
    for bad in (f"{url}.exe", f"{studio.http}/api/clips/none.wav", f"{studio.http}/api/clips/..%2F..%2Fetc.wav"):
        with pytest.raises(urllib.error.HTTPError) as error:
            get(bad)
        assert error.value.code == 404


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seconds": 61}, "seconds is 61; expected 0.05 to 60.0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"top_p": 0}, "top_p is 0"),
        ({"model": 5}, "there is no such model"),
        ({"label": ["c"]}, "unknown label 'c'; the model has a, b"),
        ({"label": ["a", "a"]}, "2 labels given, the model has 1"),
        ({"label": "../../etc"}, "label must be a list of names"),
        ({"prompt": "/etc/passwd"}, "the prompt is not here any more"),
    ],
)
def test_refusals_are_sentences(studio, change, sentence):
    samples, last = generate(studio, {**WANTED, **change})
    assert not len(samples)
    assert sentence in last["error"]
    assert not studio.state.line.tickets


def test_first_message_must_be_a_request(studio):
    for words in ("no json", "[1, 2]"):
        with connect(studio.ws) as socket:
            socket.send(words)
            assert "error" in json.loads(socket.recv(timeout=10))


def test_prompt_is_gone_on_from(studio, checkpoint):
    tone = 0.4 * torch.sin(torch.arange(2000) * 0.3)
    answer = json.loads(get(f"{studio.http}/api/prompts", data=encode_audio(tone, RATE, "wav"))[0])
    samples, info = generate(studio, {**WANTED, "prompt": answer["id"]})
    loaded = Checkpoint.load(checkpoint)
    wave = read_audio(encode_audio(tone, RATE, "wav"))[0][0]
    prompt = loaded.quantizer.encode(wave / wave.abs().max())
    assert info["prompt_samples"] == len(prompt) == 2000
    session = Generator.of(loaded).start([7], label=loaded.label("b"), prompt=prompt)
    made = session.advance(RATE // 2, Draw(temperature=0.9, top_p=0.95)).tokens
    assert np.array_equal(loaded.quantizer.decode(made)[0].numpy(), samples)
    assert not np.array_equal(samples, generate(studio, WANTED)[0])


def test_a_small_file_of_hours_is_cut(studio):
    flac = encode_audio(torch.zeros(40 * 60 * RATE), RATE, "flac")
    assert len(flac) < 100_000
    assert json.loads(get(f"{studio.http}/api/prompts", data=flac)[0])["seconds"] == jobs.MOST_PROMPT_SECONDS


def test_prompts_are_bounded(studio):
    for data, code in ((b"not audio at all", 422), (b"", 422), (bytes(MOST_BYTES + 1), 413)):
        with pytest.raises(urllib.error.HTTPError) as error:
            get(f"{studio.http}/api/prompts", data=data)
        assert error.value.code == code
        assert json.loads(error.value.read())["detail"]


def test_other_hosts_and_sites_are_refused(studio):
    for headers, code in (({"Host": "evil.example"}, 400), ({"Origin": "http://evil.example"}, 403)):
        with pytest.raises(urllib.error.HTTPError) as error:
            get(f"{studio.http}/api/models", headers)
        assert error.value.code == code
    with pytest.raises((InvalidStatus, ConnectionClosed)), connect(studio.ws, origin="http://evil.example") as socket:
        socket.recv(timeout=5)
    _, headers = get(f"{studio.http}/")
    assert "default-src 'self'" in headers["content-security-policy"]


def test_page_needs_no_other_host(studio):
    page = get(f"{studio.http}/")[0].decode()
    for name in ("style.css", "studio.js", "player.js", "picture.js"):
        page += get(f"{studio.http}/{name}")[0].decode()
    assert "http:" not in page.replace("https:", "").replace('"http:', "")
    assert "//cdn" not in page
    with pytest.raises(urllib.error.HTTPError):
        get(f"{studio.http}/../server.py")


def test_a_client_that_leaves_frees_the_line(studio):
    long = {**WANTED, "seconds": 60}
    with connect(studio.ws) as first, connect(studio.ws) as second:
        first.send(json.dumps(long))
        assert "queued" in first.recv(timeout=10) or True
        while not isinstance(first.recv(timeout=10), bytes):
            pass
        second.send(json.dumps(WANTED))
        assert json.loads(second.recv(timeout=10)) == {"queued": 1}
        first.close()
        kinds = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                message = second.recv(timeout=30)
                kinds.append("sound" if isinstance(message, bytes) else next(iter(json.loads(message))))
        assert kinds[-1] == "done"
        assert "sound" in kinds
    assert not studio.state.line.tickets


def test_stop_keeps_what_was_made(studio):
    with connect(studio.ws) as socket:
        socket.send(json.dumps({**WANTED, "seconds": 60}))
        count = 0
        while True:
            message = socket.recv(timeout=10)
            if isinstance(message, bytes):
                count += len(message) // 4
                if count == len(message) // 4:
                    socket.send("stop")
            elif "done" in json.loads(message):
                break
    info = json.loads(message)
    assert info["stopped_early"]
    assert info["samples"] == count < 60 * RATE


def test_the_line_is_bounded(studio):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(connect(studio.ws)) for _ in range(jobs.MOST_WAITING + 2)]
        for socket in sockets[:-1]:
            socket.send(json.dumps({**WANTED, "seconds": 60}))
            socket.recv(timeout=10)
        sockets[-1].send(json.dumps(WANTED))
        assert "wait already" in json.loads(sockets[-1].recv(timeout=10))["error"]
    deadline = time.monotonic() + 20
    while studio.state.line.tickets and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not studio.state.line.tickets


def test_shelf_forgets_the_oldest():
    shelf = jobs.Shelf()
    names = [shelf.keep(i) for i in range(jobs.MOST_KEPT + 3)]
    assert len(shelf) == jobs.MOST_KEPT
    assert names[0] not in shelf
    assert shelf[names[-1]] == jobs.MOST_KEPT + 2


def test_library_refuses_other_files_and_reports_a_failed_training(tmp_path, monkeypatch):
    with pytest.raises(AudioError, match="no checkpoint"):
        Library([str(tmp_path / "none")])
    monkeypatch.setenv("SSM_STUDIO_CACHE", str(tmp_path))
    monkeypatch.setattr(library, "DEFAULT_RECIPE", "no_such_recipe")
    empty = Library([])
    empty._default()
    assert "could not be made" in empty.status
    assert "no_such_recipe" in empty.status
    assert list(tmp_path.iterdir()) == []


def test_command_refuses_the_open_network(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--host", "0.0.0.0"])
    assert stop.value.code == 2
    assert "--allow-host" in capsys.readouterr().err
    assert main(["--checkpoint", "none.safetensors"]) == 2
    assert "no checkpoint" in capsys.readouterr().err


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield started
        started.close()


def until(page, condition, seconds=60):
    """Playwright's own wait evaluates text in the page, which the page's policy forbids."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(f"() => Boolean({condition})"):
        assert time.monotonic() < deadline, f"{condition}: not within {seconds} s; {page.inner_text('#status')}"
        page.wait_for_timeout(50)


PLAYED = "() => { const all = []; for (const part of studio.run.playedSamples) all.push(...part); return all; }"


def test_browser_plays_the_very_samples(studio, expected, browser, tmp_path):
    page = browser.new_page(viewport={"width": 390, "height": 844})  # a phone
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on("request", lambda request: request.url.startswith((studio.http, "data:")) or failures.append(request.url))
    page.goto(studio.http)
    until(page, "!document.getElementById('go').disabled")
    for name in ("seed", "seconds", "temperature", "top_p"):
        page.evaluate("([id, v]) => { document.getElementById(id).value = v }", [name, str(WANTED[name])])
    page.select_option("#label-0", "b")
    page.focus("#seed")
    page.keyboard.press("Enter")  # by keyboard alone
    until(page, "studio.run && studio.run.over")
    assert np.array_equal(np.array(page.evaluate(PLAYED), dtype=np.float32), expected)
    assert page.inner_text("#status") == "Done"
    assert page.locator("#clips a").count() == 3
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.screenshot(path=os.environ.get("STUDIO_SCREENSHOT", str(tmp_path / "studio.png")), full_page=True)
    page.click("#clips button")  # again, by its seed
    until(page, "studio.run.over && document.querySelectorAll('#clips li').length === 2")
    assert np.array_equal(np.array(page.evaluate(PLAYED), dtype=np.float32), expected)
    assert failures == []
    page.close()


def test_browser_stops_at_once_and_frees_the_line(studio, browser):
    page = browser.new_page()
    page.goto(studio.http)
    until(page, "!document.getElementById('go').disabled")
    page.fill("#seconds", "60")
    page.click("#go")
    until(page, "studio.run && studio.run.playedCount > 0")
    page.keyboard.press("Escape")
    until(page, "studio.run.over")
    assert page.evaluate("studio.run.playedCount") < 60 * RATE
    deadline = time.monotonic() + 20
    while studio.state.line.tickets and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not studio.state.line.tickets
    page.close()
