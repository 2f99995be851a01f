"""The server's TLS certificate. TLS 1.2 is the oldest version that Python's server contexts speak."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from mainspring.core.errors import StartupError


@dataclass(frozen=True, slots=True)
class Certificate:
    """PEM files: the certificate with its chain, and its unencrypted private key."""

    file: Path
    key_file: Path

    def check(self) -> None:
        """Raises StartupError for files that cannot be used, before anything is loaded."""
        for flag, file in (("--ssl-certfile", self.file), ("--ssl-keyfile", self.key_file)):
            if not file.is_file():
                raise StartupError(f"{flag} {file} does not exist")
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.file, self.key_file, password=_refuse)
        except (ssl.SSLError, ValueError) as error:
            reason = error.reason if isinstance(error, ssl.SSLError) else error
            raise StartupError(
                f"{self.file} and {self.key_file} are no certificate with its unencrypted private key: {reason}"
            ) from error


def _refuse() -> str:
    """Asked for the pass phrase of an encrypted key. Nobody may be there to type one."""
    raise ValueError("the key is encrypted")
