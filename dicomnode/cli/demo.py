"""`dicomnode demo`: the demonstration, into demo/ below the current folder.

Flow: cli > [demo] > dicomnode.demo
Never: anything of the demonstration itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dicomnode.demo.run import run_demo

FOLDER = Path("demo")


def demo(_arguments: argparse.Namespace) -> int:
    """Run the demonstration; 0 when what came back agrees with the truth."""
    return run_demo(FOLDER)
