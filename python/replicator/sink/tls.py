"""An encrypted connection to a server of the operator's: what is told of it, and its context."""

from __future__ import annotations

import ssl
from pathlib import Path

from pydantic import Field, SecretStr

from replicator.errors import FatalError
from replicator.settings import Settings


class TLSConfig(Settings):
    """An encrypted connection; empty: the machine's own authorities, no certificate of ours."""

    ca_file: Path | None = Field(None, description="Authorities in PEM; default the machine's.")
    certificate_file: Path | None = Field(None, description="Our certificate (mutual TLS), PEM.")
    key_file: Path | None = Field(None, description="Its key, when it isn't in the same file.")
    key_password: SecretStr = Field(SecretStr(""), description="Of the key.")
    verify_hostname: bool = Field(default=True, description="The server's name must be in its own.")


def context(tls: TLSConfig, code: str, place: str) -> ssl.SSLContext:
    """For a client. Raises FatalError of this code, whose message begins with the place."""
    try:
        made = ssl.create_default_context(cafile=tls.ca_file)
        made.check_hostname = tls.verify_hostname
        if tls.certificate_file is not None:
            password = tls.key_password.get_secret_value() or None
            made.load_cert_chain(tls.certificate_file, tls.key_file, password)
    except OSError as error:  # SSLError is one
        raise FatalError(
            code,
            f"{place}: {error.strerror or error}: check ca_file, certificate_file, "
            "key_file and key_password",
        ) from None
    return made
