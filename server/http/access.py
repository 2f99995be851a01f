"""Who may reach the server: with which keys, from which pages, and whether from other machines at all."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass, field

from mainspring.core.errors import StartupError
from mainspring.server.http.auth import PROBES, TELLING, KeyRing
from mainspring.server.http.quota import Quota


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may reach the server, and what of it without a key."""

    keys: KeyRing = field(default_factory=lambda: KeyRing(()))
    private_metrics: bool = False
    """Whether /metrics and /info need a key too."""
    insecure: bool = False
    """Serve other machines without a key."""
    origins: tuple[str, ...] = ()
    """Web pages of these origins may call the server from a browser; `*` is any."""

    quota: Quota = field(default_factory=Quota)
    """Of each key."""

    @property
    def public(self) -> frozenset[str]:
        """Paths that may be read without a key."""
        return PROBES if self.private_metrics else PROBES | TELLING


def check_exposure(listener: socket.socket, access: Access) -> None:
    """Raises StartupError where other machines could use the model without a key and nobody said that they may."""
    host = listener.getsockname()[0]
    if access.keys or access.insecure or ipaddress.ip_address(host).is_loopback:
        return
    listener.close()
    raise StartupError(
        f"whoever reaches {host} could use the model; set --api-key (or API_KEY), or say --insecure where a network "
        "or a proxy keeps strangers away"
    )
