"""`dicomnode notices test`: sends a test by each channel, and says how it went.

Flow: cli > [notices] > send/channels
Never: a row (the test is not owed); a secret on the terminal.
"""

from __future__ import annotations

import argparse
import sys
import time

from dicomnode.cli.output import show, write_json
from dicomnode.errors import DicomnodeError, UsageError
from dicomnode.send.channels import make_channels
from dicomnode.send.notice_words import Message
from dicomnode.settings_file import load_settings


def test(arguments: argparse.Namespace) -> int:
    """Send a test by each channel; 2 where one does not take it."""
    settings = load_settings(arguments.config)
    channels = make_channels(settings)
    if not channels:
        raise UsageError(
            f"{arguments.config}: nobody is told anything; set notices.webhook.url or notices.email.host first"
        )
    now = time.time()
    message = Message(f"test-{int(now)}", settings.node.ae_title, "test", 1, ("this",), now)
    results = []
    for name, channel in channels.items():
        try:
            said, is_sent = channel.send(message, now), True
        except DicomnodeError as error:
            said, is_sent = str(error), False
        results.append({"channel": name, "is_sent": is_sent, "reason": said})
    if arguments.json:
        write_json(results)
    else:
        for result in results:
            outcome = "sent" if result["is_sent"] else "not sent"
            reason = show(result["reason"])
            sys.stdout.write(f"{result['channel']}: {outcome}{f' ({reason})' if reason else ''}\n")
    return 0 if all(result["is_sent"] for result in results) else 2
