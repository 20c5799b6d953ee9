"""`python -m apps.studio`: play audio models in the browser, hear them while they make the sound.

Serves one page, to this machine only. Without a checkpoint the first start trains a small model of plucked strings.
"""

import argparse
import ipaddress
import sys


def main(words: list[str] | None = None) -> int:
    """Serve until interrupted; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m apps.studio", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", nargs="+", default=[], metavar="RUN", help="run folders of audio.train, or their .safetensors"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8765, help="port (default: 8765)")
    parser.add_argument(
        "--allow-host", nargs="+", default=[], metavar="NAME",
        help="host names that browsers may use; needed to listen on more than this machine",
    )  # fmt: skip
    args = parser.parse_args(words)
    if not _is_loopback(args.host) and not args.allow_host:
        parser.error(f"--host {args.host} can be reached from elsewhere; name the hosts to answer to with --allow-host")
    if not 1 <= args.port <= 65535:
        parser.error(f"--port {args.port}: expected 1 to 65535")

    import uvicorn

    from audio.errors import AudioError

    from .library import Library
    from .server import create_app

    try:
        library = Library(args.checkpoint)
    except AudioError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    app = create_app(library, ["127.0.0.1", "localhost", "[::1]", *args.allow_host])
    print(f"studio: http://{args.host}:{args.port}  (Ctrl-C ends it)", flush=True)
    if not args.checkpoint:
        print(
            "no --checkpoint: plays plucked strings; the first start trains the model in about two minutes", flush=True
        )
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning", ws_max_size=1 << 16)
    return 0


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    sys.exit(main())
