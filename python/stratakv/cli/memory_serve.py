"""`stratakv memory serve`: the memory as a Model Context Protocol server on stdin and stdout."""

from __future__ import annotations

import argparse
import importlib.util

from stratakv.cli.memory import open_memory, place_of
from stratakv.cli.output import Output
from stratakv.errors import NotInstalledError

__all__ = ["serve"]


def serve(args: argparse.Namespace, out: Output) -> int:
    """Serves until the client closes stdin.

    Raises:
        NotInstalledError: the SDK is not installed.
    """
    if importlib.util.find_spec("mcp") is None:
        raise NotInstalledError("the server's SDK is not installed", "pip install 'stratakv[mcp]'")
    from stratakv.engram.server import make_server

    with open_memory(args, out, background=True) as memory:
        server = make_server(memory, user=args.user, agent=args.agent, project=args.project)
        out.note(f"serving the memories of {args.user} in {place_of(args)} on stdin and stdout")
        server.run("stdio")
    return 0
