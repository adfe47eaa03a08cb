"""One event a line on standard error, named `stage.event`, for people or as JSON.

Flow: every part > [logs]
Never: patient data, in any field; identities live in DICOM files and the patients table.
"""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog


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
                renderer,
            ],
        )
    )
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level)
    for name in ("pynetdicom", "pydicom", "apscheduler", "alembic"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.root.level))


def get_logger() -> structlog.stdlib.BoundLogger:
    """Return the logger every part uses: `log.info("receive.stored", association_id=3)`."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("dicomnode")
    return logger
