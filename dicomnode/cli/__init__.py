"""The command `dicomnode`: reads the arguments, calls one command, turns what goes wrong into one line.

Flow: shell > [cli] > app, demo, database, settings_file
Never: a traceback for something a person can mend; a patient's identity, save in `series show`, which asks for it.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence

from dicomnode import logs
from dicomnode.cli.arguments import make_parser
from dicomnode.errors import DicomnodeError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 an error (one line on standard error), 3 see `register`."""
    parsed = make_parser().parse_args(arguments)
    # Imported only now: `dicomnode peers list` need not wait for the libraries of `register`.
    module, name = parsed.command
    command: Callable[..., int] = getattr(importlib.import_module(f"dicomnode.cli.{module}"), name)
    logs.configure("console", level="CRITICAL")  # one line says what went wrong; `serve` logs more
    try:
        return command(parsed)
    except DicomnodeError as error:
        sys.stderr.write(f"dicomnode: {logs.escape(str(error))}\n")
        return EXIT_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("dicomnode: interrupted\n")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `dicomnode series list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
