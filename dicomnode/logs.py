"""One event a line on standard error, named `stage.event`, for people or as JSON.

Flow: every part > [logs]
Never: patient data, in any field; identities live in DICOM files and the patients table. A control character, whoever
wrote it: a library may quote what a peer sent.
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Literal

import structlog

# These modules of pynetdicom report what peers do, which each part says in its own words: once, and with whom it was.
_OF_PEERS = "association", "dimse", "dul", "fsm", "pdu", "pdu_items", "pdu_primitives", "presentation", "utils"
# From which level on a library is heard.
LIBRARY_LEVELS = {
    "pynetdicom": logging.WARNING,
    "apscheduler": logging.WARNING,
    "alembic": logging.WARNING,
    "pydicom": logging.ERROR,  # its warnings quote values, which may be a patient's
    **{f"pynetdicom.{name}": logging.CRITICAL for name in _OF_PEERS},
}


def configure(log_format: Literal["console", "json"], level: str = "INFO") -> None:
    """Send every event to standard error in one form, and quiet the libraries that log patient data."""
    renderer: structlog.types.Processor
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _escape,
                renderer,
            ],
        )
    )
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level)
    warnings.simplefilter("ignore", UserWarning)  # pydicom's quote what a peer sent, and each is remembered for ever
    quiet_libraries()


def quiet_libraries() -> None:
    """Let libraries say only what no part of the node says, and nothing of a patient."""
    for name, least in LIBRARY_LEVELS.items():
        logging.getLogger(name).setLevel(max(least, logging.root.level))


def escape(text: str) -> str:
    """Show control characters as escapes, so that the text is one line wherever it is written."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _escape(
    _logger: structlog.types.WrappedLogger, _method: str, event: structlog.types.EventDict
) -> structlog.types.EventDict:
    """Show control characters as escapes; a traceback keeps its lines, indented: none looks like an event."""
    for name, value in event.items():
        if isinstance(value, str):
            lines = value.splitlines() if name == "exception" else [value]
            shown = [escape(line) for line in lines]
            event[name] = shown[0] if len(shown) == 1 else "\n".join(f"    {line}" for line in shown)
    return event


def get_logger() -> structlog.stdlib.BoundLogger:
    """Return the logger every part uses: `log.info("receive.stored", association_id=3)`."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("dicomnode")
    return logger
