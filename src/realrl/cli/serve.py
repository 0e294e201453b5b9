"""`realrl serve`: a saved policy for robots on other machines."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from realrl.cli.acting import add_head, add_words, chooser
from realrl.cli.parser import command, device_flag, mistake, say, whole


def add(commands: Any) -> None:
    """`serve` and its flags."""
    parser = command(commands, "serve", "A saved policy for robots on other machines, in openpi's websocket format: their clients work.",
                     "realrl serve --policy runs/main/policy --host 0.0.0.0 --token-file token.txt", _serve)
    parser.add_argument("--policy", type=Path, required=True, metavar="DIR", help="folder of a saved or exported policy")
    add_words(parser)
    add_head(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine alone)")
    parser.add_argument("--port", type=whole(0), default=8000, help="port; 0 takes a free one (default: 8000)")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="file with the token that clients must send (default: "
                        "REALRL_TOKEN of the environment, or none)")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="S", help="seconds that a plan may take (default: 5)")
    parser.add_argument("--idle", type=float, default=600.0, metavar="S", help="seconds without a message after which a client is let go "
                        "(default: 600)")
    device_flag(parser)
    parser.add_argument("--threads", type=whole(1), default=1, metavar="N", help="threads of PyTorch; an export has one (default: 1)")


def _serve(args: argparse.Namespace) -> int:
    import torch

    from realrl.scene import device
    from realrl.serve.server import ServeConfig, serve
    from realrl.serve.session import Served
    token = _token(args.token_file)
    cfg = ServeConfig(args.host, args.port, args.timeout, args.idle)
    torch.set_num_threads(args.threads)
    served = Served.read(args.policy, device(args.device), chooser(args))

    def ready(port: int) -> None:
        say(f"{served.policy.name} ({served.hash}) is served at ws://{args.host}:{port}, its health at http://{args.host}:{port}/healthz; "
            "Ctrl-C ends it")
        sys.stdout.flush()

    from realrl.types import printable
    serve(served, cfg, token, ready=ready, tell=lambda line: print(printable(line), file=sys.stderr, flush=True))
    return 0


def _token(file: Path | None) -> str | None:
    """The token in a file, or in the environment."""
    if file is None:
        return os.environ.get("REALRL_TOKEN") or None
    from realrl.files import read_plain
    token = read_plain(file, 4096).decode(errors="replace").strip()
    if not token or not token.isascii() or not token.isprintable():
        raise mistake()(f"{file}: holds no token: put one line of printable ASCII there, e.g. from 'openssl rand -hex 16'")
    return token
