"""Who reaches the page, and with what password. Imports nothing slow, so that a wrong command line ends at once."""

from __future__ import annotations

import ipaddress


def is_local(host: str) -> bool:
    """Returns whether only this machine reaches a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_host(host: str, auth: tuple[str, str] | None, is_open: bool) -> None:
    """Checks that a page which others on the network reach asks for a password.

    Raises:
        ValueError: it does not, and nobody said that it is meant for everyone.
    """
    if not is_local(host) and auth is None and not is_open:
        raise ValueError(
            f"got --host {host} without --auth, so that everyone on the network could use the page; give "
            "--auth user:password, or --open if that is meant"
        )


def login(text: str) -> tuple[str, str]:
    """Returns user and password of ``user:password``.

    Raises:
        ValueError: the text has another form.
    """
    user, _, password = text.partition(":")
    if not user or not password:
        raise ValueError("got --auth without a user or a password, expected user:password")
    return user, password
