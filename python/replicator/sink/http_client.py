"""Requests to services of an operator's over HTTP: the one way to them, and aiohttp's errors mapped
once, in each service's own words.

Proxies are those of the environment (HTTPS_PROXY, HTTP_PROXY, NO_PROXY), as for AWS. `.netrc` isn't
read: aiohttp's own `trust_env` would send what stands there to a server that nobody meant
(https://docs.aiohttp.org/en/stable/client_reference.html#aiohttp.ClientSession).
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from replicator.errors import FatalError, TransientError


@dataclass(frozen=True, slots=True)
class Words:
    """A service's codes, and what its operator should do about the fatal ones. `away` is the code
    of what may pass; `silent` says what may be wrong where the server ends connections."""

    certificate: tuple[str, str]
    tls: tuple[str, str]
    url: tuple[str, str]
    timeout: str
    away: str
    silent: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, of any status."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class HTTPClient:
    """A pool of connections, opened by its first request. Raises aiohttp's errors: whoever asks
    does so inside `mapped`."""

    def __init__(
        self,
        *,
        headers: Mapping[str, str],
        timeout: aiohttp.ClientTimeout,
        connections: int = 4,
        verify: Callable[[], ssl.SSLContext | Literal[True]] = lambda: True,
    ) -> None:
        """`verify` gives what servers are known by, when it opens; True: the machine's own
        authorities."""
        self._headers = headers
        self._timeout = timeout
        self._connections = connections
        self._verify = verify
        self._session: aiohttp.ClientSession | None = None
        self._proxies: dict[tuple[str, str], str | None] = {}

    async def ask(
        self, method: str, url: str, data: bytes | Mapping[str, str] | None = None
    ) -> Answer:
        """One request, of bytes or of a form; redirects aren't followed."""
        try:
            async with self._opened().request(
                method, url, data=data, allow_redirects=False, proxy=self._proxy(url)
            ) as response:
                return Answer(response.status, await response.read(), response.headers)
        except UnicodeError as error:  # of a host's name
            raise aiohttp.InvalidURL(url, str(error)) from error

    async def close(self) -> None:
        """May be called twice; a request opens it again."""
        session, self._session = self._session, None
        self._proxies.clear()
        if session is not None:
            await session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                connector=aiohttp.TCPConnector(limit=self._connections, ssl=self._verify()),
                timeout=self._timeout,
            )
        return self._session

    def _proxy(self, url: str) -> str | None:
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise aiohttp.InvalidURL(url, str(error)) from error
        place = (parts.scheme, parts.netloc)
        if place not in self._proxies:
            self._proxies[place] = proxy_of(*place)
        return self._proxies[place]


def proxy_of(scheme: str, netloc: str) -> str | None:
    """The environment's proxy on the way to a server; None where there is none, or NO_PROXY names
    the server. Raises aiohttp.InvalidURL, without the url, for it may hold a password."""
    host = urlsplit(f"//{netloc}").hostname or netloc  # of IPv6 without its brackets
    if proxy_bypass(netloc) or proxy_bypass(host) or (proxy := getproxies().get(scheme)) is None:
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    if not _is_proxy(proxy):
        raise aiohttp.InvalidURL(f"{scheme.upper()}_PROXY", "http://host:port is wanted")
    return proxy


def _is_proxy(url: str) -> bool:
    """One that aiohttp takes: its own errors would tell the whole url."""
    try:
        parts = urlsplit(url)
        host, user = parts.hostname or "", unquote(parts.username or "")
        host.encode("idna")
        f"{user}{unquote(parts.password or '')}".encode("latin-1")  # as they are sent
        is_named = re.fullmatch(r"[\w.:%-]+", host) and ":" not in user and "\\" not in parts.netloc
        return parts.scheme in {"http", "https"} and bool(is_named) and parts.port != 0
    except ValueError:  # of its port or login, or a host that is no name
        return False


@contextmanager
def mapped(doing: str, words: Words) -> Iterator[None]:
    """Raises TransientError or FatalError in place of what keeps a request inside from being
    answered; `doing` begins the message."""
    try:
        yield
    except (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError) as error:
        code, advice = words.certificate
        message = f"{doing}: the certificate isn't trusted: {error}; {advice}"
        raise FatalError(code, message) from error
    except (aiohttp.ClientSSLError, ssl.SSLError) as error:
        code, advice = words.tls
        raise FatalError(code, f"{doing}: {error}; {advice}") from error
    except aiohttp.InvalidURL as error:
        code, advice = words.url
        raise FatalError(code, f"{doing}: it is no url ({error}); {advice}") from error
    except aiohttp.ClientHttpProxyError as error:
        said = f"{doing}: the environment's proxy answers {error.status} {error.message}"
        if error.status in {408, 429} or error.status >= 500:
            raise TransientError(words.away, said) from error
        advice = "check HTTPS_PROXY, and what it lets through, or name the host in NO_PROXY"
        raise FatalError(words.url[0], f"{said}; {advice}") from error
    except TimeoutError as error:
        raise TransientError(words.timeout, f"{doing}: no answer in time") from error
    except (OSError, aiohttp.ClientError) as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, aiohttp.ServerDisconnectedError):
            reason += words.silent
        raise TransientError(words.away, f"{doing}: {reason}") from error
