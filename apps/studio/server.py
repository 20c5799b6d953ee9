"""The studio's routes: a page, a list of models, prompts in, sound out over a WebSocket while it is made.

    GET  /                       the page; everything it needs comes from here
    GET  /api/models             models, or how far the first one is
    POST /api/prompts            a recording, at most 8 MB -> its id
    WS   /api/generate           request in, then {"queued"}, {"started"}, float32 samples ..., {"done"}; "stop" stops
    GET  /api/clips/ID.wav|flac|json

Answers only to its own host names and pages (no DNS rebinding, no requests from other sites).
"""

import asyncio
import contextlib
import json
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import FastAPI, HTTPException, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.staticfiles import StaticFiles
from starlette.middleware.trustedhost import TrustedHostMiddleware

from audio.errors import AudioError
from audio.files import encode_audio, read_audio, to_mono

from . import jobs
from .jobs import Clip, Line, Shelf
from .library import Library, Model

PAGE = Path(__file__).parent / "page"
MOST_BYTES = 8 << 20
KINDS = {"wav": "audio/wav", "flac": "audio/flac", "json": "application/json"}
POLICY = "default-src 'self'; connect-src 'self'; img-src 'self' data:; object-src 'none'; frame-ancestors 'none'"


class Studio:
    """State of the server: models, the line, prompts and finished clips."""

    def __init__(self, library: Library):
        self.library, self.line = library, Line()
        self.prompts, self.clips = Shelf(), Shelf()

    def model(self, index: int) -> Model:
        """A model by its place. Raises AudioError if there is none."""
        if index >= len(self.library.models):
            raise AudioError("there is no such model" if self.library.models else self.library.status)
        return self.library.models[index]

    def clip(self, given: object) -> Clip:
        """A clip to be made, from what a browser sent. Raises AudioError if it cannot be."""
        request = jobs.Request.parse(given)
        model = self.model(request.model)
        model.checkpoint.label(*request.label)
        if request.prompt is None:
            return Clip(request, model)
        if request.prompt not in self.prompts:
            raise AudioError("the prompt is not here any more; upload it again")
        wave, rate = self.prompts[request.prompt]
        own = model.checkpoint
        mono = to_mono(wave, rate, own.sample_rate)
        return Clip(request, model, own.quantizer.encode(mono / mono.abs().max().clamp_min(1e-9)))


def create_app(library: Library, hosts: list[str]) -> FastAPI:
    """The application.

    Args:
        library: The models.
        hosts: Host names that requests may carry.
    Returns:
        A FastAPI application; `app.state.studio` is its Studio.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI):
        library.prepare()
        yield
        library.close()

    app = FastAPI(title="studio", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.studio = studio = Studio(library)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)

    @app.middleware("http")
    async def guard(request: Request, call_next):
        if not _same_site(request.headers):
            return Response("requests from other sites are not served", 403)
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-store"
        return response

    @app.get("/api/models")
    async def models() -> dict:
        return {"models": [m.facts() for m in library.models], "status": library.status}

    @app.post("/api/prompts")
    async def prompt(request: Request) -> dict:
        return await _take_prompt(studio, request)

    @app.get("/api/clips/{name}.{kind}")
    async def download(name: str, kind: str) -> Response:
        return _download(studio, name, kind)

    @app.websocket("/api/generate")
    async def generate(socket: WebSocket) -> None:
        if not _same_site(socket.headers):
            await socket.close(1008)
            return
        await socket.accept()
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # the client has left
            try:
                await _serve(studio, socket)
            except AudioError as error:
                await socket.send_json({"error": str(error)})
            await socket.close()

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def _same_site(headers) -> bool:
    """Browsers name the page's origin where it matters; it must be this server's."""
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host")


async def _take_prompt(studio: Studio, request: Request) -> dict:
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MOST_BYTES:
            raise HTTPException(413, f"the recording is larger than {MOST_BYTES >> 20} MB")
    try:
        wave, rate = await asyncio.to_thread(read_audio, bytes(data), "the recording", jobs.MOST_PROMPT_SECONDS)
    except AudioError as error:
        raise HTTPException(422, str(error)) from None
    return {"id": studio.prompts.keep((wave, rate)), "seconds": wave.shape[1] / rate}


def _download(studio: Studio, name: str, kind: str) -> Response:
    if name not in studio.clips or kind not in KINDS:
        raise HTTPException(404, "there is no such clip; only the newest ones are kept")
    clip: Clip = studio.clips[name]
    if kind == "json":
        data = json.dumps(clip.facts(), indent=2).encode()
    else:  # float WAV holds the very samples
        subtype = "float" if kind == "wav" else "24"
        data = encode_audio(clip.wave[None], clip.model.checkpoint.sample_rate, kind, subtype)
    title = f"clip-{clip.request.seed}.{kind}"
    return Response(data, media_type=KINDS[kind], headers={"Content-Disposition": f'attachment; filename="{title}"'})


async def _serve(studio: Studio, socket: WebSocket) -> None:
    """One request from the first message to the last sample."""
    try:
        given = json.loads(await asyncio.wait_for(socket.receive_text(), 10))
    except (ValueError, KeyError, TimeoutError):
        raise AudioError("the first message must be a request, as JSON, within ten seconds") from None
    clip = studio.clip(given)
    async with studio.line.turn() as turn:
        watch = asyncio.create_task(_watch(socket, clip, turn))
        try:
            while not turn.ticket.is_set() and not clip.stopped:
                await socket.send_json({"queued": turn.ahead})
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(turn.ticket.wait(), 1)
            if not clip.stopped:
                await socket.send_json({"started": clip.model.checkpoint.sample_rate})
                async for chunk in clip.make():
                    await socket.send_bytes(chunk.numpy().astype("<f4").tobytes())
        finally:
            watch.cancel()
    if len(clip.wave):
        await socket.send_json({"done": studio.clips.keep(clip), **clip.facts()})
    else:
        await socket.send_json({"error": "stopped before the first sample"})


async def _watch(socket: WebSocket, clip: Clip, turn: jobs.Turn) -> None:
    """Any further message, or the end of the connection, stops the clip."""
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await socket.receive()
    clip.stopped = True
    turn.ticket.set()
