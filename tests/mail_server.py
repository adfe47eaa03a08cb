"""A mail server of others, aiosmtpd, as a process: it keeps what it takes as a Maildir, and refuses some on purpose.

Flow: tests > [mail_server] > aiosmtpd, in the system's Python
Never: a message that leaves this machine; an import from the virtual environment.

    mail_server.py PORT FOLDER (starttls|tls|none) CERTIFICATE KEY USER PASSWORD
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from typing import Any

from aiosmtpd.handlers import Mailbox
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

# By the name before the @ of a recipient.
ANSWERS = {"nobody": "550 no such mailbox", "busy": "451 try again later"}


class Keeper(Mailbox):  # type: ignore[misc] # aiosmtpd is not in the virtual environment
    """Takes every recipient but those of `ANSWERS`."""

    async def handle_RCPT(  # noqa: N802 - aiosmtpd fixes the name and the signature
        self,
        server: SMTP,  # noqa: ARG002 - see above
        session: Session,  # noqa: ARG002 - see above
        envelope: Envelope,
        address: str,
        options: list[str],  # noqa: ARG002 - see above
    ) -> str:
        refusal = ANSWERS.get(address.partition("@")[0])
        if refusal is None:
            envelope.rcpt_tos.append(address)
        return refusal or "250 OK"


async def serve(port: int, folder: str, encryption: str, files: tuple[str, str], login: tuple[str, str]) -> None:
    """Take mail until the process is ended."""
    context = None
    if encryption != "none":
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*files)

    def authenticate(_server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, data: Any) -> AuthResult:
        is_right = isinstance(data, LoginPassword) and (data.login.decode(), data.password.decode()) == login
        return AuthResult(success=is_right, handled=False)  # it says so itself

    keeper = Keeper(folder)

    def make() -> SMTP:
        return SMTP(
            keeper,
            tls_context=context if encryption == "starttls" else None,
            require_starttls=encryption == "starttls",
            authenticator=authenticate,
            auth_required=bool(login[0]),
            auth_require_tls=encryption == "starttls",
            loop=asyncio.get_running_loop(),
        )

    server = await asyncio.get_running_loop().create_server(
        make, "127.0.0.1", port, ssl=context if encryption == "tls" else None
    )
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(
        serve(int(sys.argv[1]), sys.argv[2], sys.argv[3], (sys.argv[4], sys.argv[5]), (sys.argv[6], sys.argv[7]))
    )
