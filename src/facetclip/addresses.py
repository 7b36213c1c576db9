"""Which image URLs may be asked for: pure rules, no network. What is not plainly public is refused.

An attacker may write the catalog; behind this machine lie services that trust it. So the scheme, host and port of every
hop are judged here, then the addresses that the host's name stands for; the connection goes to a judged address.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard
from urllib.parse import quote, urljoin, urlsplit

PORTS = {"http": 80, "https": 443}
LONGEST_URL = 8192
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_][a-z0-9_-]{0,62})*")
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")
_CREDENTIALS = re.compile(r"//.*@")
_STRANGE = re.compile(r"[\x00-\x20\x7f\\]")
_CLEAN = {" ": "a blank in a URL; write %20"}  # what is strange -> what to do about it
_SAFE = "/%:=&?~+!$,;'@()*[]-._"
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# What counts as global and leads elsewhere: tunnels to an IPv4 address, and the addresses of a site (RFC 3879).
_ASIDE = ("2002::/16", "2001::/32", "64:ff9b:1::/48", "::/96", "192.88.99.0/24", "fec0::/10")
_NOT_PUBLIC = tuple(map(ipaddress.ip_network, _ASIDE))
_METADATA = tuple(map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200")))  # of clouds, not link-local

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Refused(Exception):
    """A URL or an address that is not asked; the message says why."""


@dataclass(frozen=True)
class Place:
    """Where a URL leads: `host` in small ASCII letters, `target` as it stands in a request."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """The Host header.

        >>> place("http://shop.example:8080/a.jpg", frozenset({("shop.example", 8080)})).authority
        'shop.example:8080'
        """
        host = _bracketed(self.host)
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


Allowed = frozenset[tuple[str, int]]  # hosts, each with a port, that may be private


def is_url(reference: object) -> TypeGuard[str]:
    """Whether a catalog's cell names an image by URL.

    >>> is_url("https://shop.example/a.jpg"), is_url("a.jpg"), is_url("file:///etc/passwd")
    (True, False, True)
    """
    return isinstance(reference, str) and "://" in reference


def shown(url: str) -> str:
    """A URL as a message may have it: without the password or the signature that it may carry.

    >>> shown("https://me:secret@shop.example/a.jpg?signature=secret")
    'https://shop.example/a.jpg'
    """
    return _CREDENTIALS.sub("//", re.split(r"[?#]", url, maxsplit=1)[0])[:120]


def allowed_hosts(entries: Sequence[str]) -> Allowed:
    """`HOST` (on ports 80 and 443) or `HOST:PORT` as what may be asked though private; Refused where it is neither.

    >>> sorted(allowed_hosts(["Images.lan", "127.0.0.1:8080"]))
    [('127.0.0.1', 8080), ('images.lan', 80), ('images.lan', 443)]
    """
    found: set[tuple[str, int]] = set()
    for entry in entries:
        host, port = _split(f"//{entry}", entry)
        if urlsplit(f"//{entry}").netloc != entry:
            raise Refused(f"{entry!r}: expected HOST or HOST:PORT")
        found |= {(host, port)} if port is not None else {(host, default) for default in PORTS.values()}
    return frozenset(found)


def place(url: str, allowed: Allowed = frozenset()) -> Place:
    """Where `url` leads; Refused unless it is http(s) without user name, to a well-formed host and port.

    >>> place("https://shop.example/a b.jpg#top").target
    Traceback (most recent call last):
    facetclip.addresses.Refused: 'https://shop.example/a b.jpg': a blank in a URL; write %20
    """
    told = repr(shown(url))
    if len(url) > LONGEST_URL:
        raise Refused(f"{told}: too long a URL")
    if strange := _STRANGE.search(url):
        raise Refused(f"{told}: {_CLEAN.get(strange[0], 'a control character or backslash in a URL')}")
    scheme = url.partition(":")[0].lower()
    if scheme not in PORTS:
        raise Refused(f"{told}: expected http or https")
    host, given = _split(url, told)
    port = PORTS[scheme] if given is None else given
    if (host, port) not in allowed:
        if port not in PORTS.values():
            raise Refused(
                f"{told}: port {port}, where 80 and 443 may be asked{_advice(host, f'{_bracketed(host)}:{port}')}"
            )
        if host == "localhost" or host.endswith(".localhost"):
            raise Refused(f"{told}: leads to this machine")
    parts = urlsplit(url)
    target = quote(parts.path or "/", safe=_SAFE) + (f"?{quote(parts.query, safe=_SAFE)}" if parts.query else "")
    return Place(scheme, host, port, target if target.startswith("/") else f"/{target}")


def _split(url: str, told: str) -> tuple[str, int | None]:
    """The host and the port that is written, if any."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise Refused(f"{told}: {error}") from error
    if "@" in parts.netloc:
        raise Refused(f"{told}: a user name or password in a URL")
    if port == 0 or parts.netloc.endswith(":"):
        raise Refused(f"{told}: no port after the colon")
    return _host(host, told), port


def _host(host: str, told: str) -> str:
    """A host's name or address in its one canonical form; 127.1, 0x7f.1, 2130706433 and the like have none."""
    if ":" in host:
        try:
            return str(ipaddress.IPv6Address(host)) if "%" not in host else _no_host(told)
        except ValueError:
            return _no_host(told)
    try:
        name = host.removesuffix(".").encode("idna").decode("ascii").lower() if host else ""
    except UnicodeError:
        return _no_host(told)
    if not _HOST.fullmatch(name):
        return _no_host(told)
    if _NUMBER.fullmatch(name.rpartition(".")[2]):
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError:
            return _no_host(told)
    return name


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _advice(host: str, entry: str, addresses: Sequence[str] = ()) -> str:
    """How a host is let in; nothing for one that has an address which is nobody's photo server."""
    literal = [host] if ":" in host or _NUMBER.fullmatch(host.rpartition(".")[2]) else []
    return "" if any(map(_is_apart, [*literal, *addresses])) else f" (--allow-host {entry} lets it in)"


def _no_host(told: str) -> str:
    raise Refused(f"{told}: not a well-formed host")


def is_public(address: str) -> bool:
    """Whether an address is on the public internet, also behind the IPv6 forms that stand for an IPv4 address.

    >>> is_public("8.8.8.8"), is_public("169.254.169.254"), is_public("::ffff:10.0.0.1"), is_public("64:ff9b::7f00:1")
    (True, False, False, False)
    """
    found = _unwrapped(address)
    aside = any(found.version == network.version and found in network for network in _NOT_PUBLIC)
    return found.is_global and not found.is_multicast and not found.is_reserved and not aside


def _unwrapped(address: str) -> Address:
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return found.ipv4_mapped
        if found in _NAT64:
            return ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
    return found


def _is_apart(address: str) -> bool:
    """Whether no photo server can be there: link-local (a cloud's metadata), multicast, or no address at all."""
    found = _unwrapped(address)
    return found.is_link_local or found.is_multicast or found.is_unspecified or found in _METADATA


def judged(where: Place, addresses: Sequence[str], allowed: Allowed = frozenset()) -> tuple[str, ...]:
    """The addresses of `where.host`, to one of which the connection must go; Refused when any of them is not public.

    A host that is allowed may be private, but never lead to a cloud's metadata (see `_is_apart`) by name.
    """
    trusted = (where.host, where.port) in allowed
    for address in addresses:
        if (trusted and _is_apart(address) and address != where.host) or not (trusted or is_public(address)):
            hint = "" if trusted else _advice(where.host, where.authority, addresses)
            raise Refused(f"{where.host} is at {address}, which is not a public address{hint}")
    if not addresses:
        raise Refused(f"{where.host} has no address")
    return tuple(addresses)


def redirected(url: str, location: str) -> str:
    """Where a redirect of `url` leads, to be judged like any URL.

    >>> redirected("https://shop.example/a/b.jpg", "../c.jpg"), redirected("https://shop.example/a", "file:///etc/passwd")
    ('https://shop.example/c.jpg', 'file:///etc/passwd')
    """
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise Refused(f"a redirect to {shown(location)!r}: {error}") from error
