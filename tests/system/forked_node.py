"""A node's receiving part that starts in milliseconds: a process that has imported everything forks when it is told to.

Flow: tests.system > [forked_node] > dicomnode.app
Never: a thread in the process that forks; anything kept from one fork to the next.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path

from dicomnode import logs
from dicomnode.app import Node
from dicomnode.settings_file import load_settings


def main(config: Path) -> None:
    """Answer each line of standard input with the process id of a node whose port is open."""
    for _ in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            _serve(config, writing)
        os.close(writing)
        is_up = os.read(reading, 1) == b"+"
        os.close(reading)
        sys.stdout.write(f"{child if is_up else 'failed'}\n")
        sys.stdout.flush()
        os.waitpid(child, 0)


def _serve(config: Path, ready: int) -> None:
    try:
        logs.configure("console")
        Node(load_settings(config), ["receive"]).start()
        os.write(ready, b"+")
        os.close(ready)
        while True:
            signal.pause()
    finally:
        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
