"""Which URLs may be fetched: how a URL is read, which hosts are allowed, which addresses never are.

What is checked here is what is connected to: the URL is taken apart once, and the request is built from the parts.
"""

import base64
import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, quote_plus, unquote, unquote_plus, urlsplit

from orchestrator.errors import FetchRefusedError, InputError
from orchestrator.text import secrets_of

__all__ = ["AllowedHost", "WebUrl", "check_allowed", "check_secrets", "denied_address", "parse_allowed", "parse_url"]

TARGET_CHARACTERS = 2_000  # of path and query: a page's address is shorter, a message smuggled out is not
_PORTS = {"http": 80, "https": 443}
_LOCAL_NAMES = ("localhost", "local", "internal", "intranet", "lan", "home", "corp", "arpa", "onion", "invalid")
_SHORTEST_HALF = 8  # characters
_UNQUOTED = "/%:@!$&'()*+,;=~"  # what stays as it is in a path; RFC 3986, section 3.3
_HOST = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_REMEDY = "Name hosts as docs.example.org, *.example.org or example.org:8080, or * for every public host"

# The special-purpose registries of IANA (iana.org/assignments/iana-ipv4-special-registry and -ipv6-), and what clouds add.
# Written out, because what `ipaddress` calls global differs between versions of Python and leaves in 6to4, NAT64 and multicast.
_DENIED_V4 = [
    (ipaddress.IPv4Network(network), reason)
    for network, reason in (
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared (carrier-grade NAT)"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "a cloud's metadata"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "reserved"),
        ("192.88.99.0/24", "a 6to4 relay"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "reserved"),
        ("198.51.100.0/24", "reserved"),
        ("203.0.113.0/24", "reserved"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
]
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")  # everything outside is local, multicast, translated or not assigned
_DENIED_V6 = [
    (ipaddress.IPv6Network(network), reason)
    for network, reason in (
        ("2001::/23", "reserved (Teredo and other protocols)"),
        ("2001:db8::/32", "reserved"),
        ("2002::/16", "IPv4 inside IPv6 (6to4)"),
        ("3ffe::/16", "reserved"),
        ("3fff::/20", "reserved"),
    )
]
_ISATAP = (b"\x00\x00\x5e\xfe", b"\x02\x00\x5e\xfe")  # RFC 5214: the interface identifier that an IPv4 address follows


@dataclass(frozen=True, slots=True)
class WebUrl:
    """A URL taken apart: `host` in its one normal form (ASCII, or an address without brackets), `target` is path and query."""

    scheme: str
    host: str
    port: int
    target: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"

    @property
    def authority(self) -> str:
        """Host and port as the Host header names them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class AllowedHost:
    """An entry of an allow list: `host` is a name, `*.name` or `*`; without a port it means 80 and 443."""

    host: str
    port: int | None = None

    def admits(self, url: WebUrl) -> bool:
        """Whether this entry lets `url` through."""
        if url.port not in (_PORTS.values() if self.port is None else (self.port,)):
            return False
        return self.host in ("*", url.host) or (self.host.startswith("*.") and url.host.endswith(self.host[1:]))


def parse_allowed(entry: str) -> AllowedHost:
    """An allow list's entry; raises InputError."""
    name, port = entry.strip().lower(), None
    found = re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*):([0-9]{1,5})", name)
    if found:
        name, port = found.group(1), int(found.group(2))
    if port is not None and not 0 < port < 65_536:
        raise InputError(f"The allowed host {entry!r} names no port between 1 and 65535", where="allow_hosts", remedy=_REMEDY)
    if name == "*":
        return AllowedHost("*", port)
    try:
        if name.startswith("*."):
            return AllowedHost("*." + _host_name(name[2:]), port)
        return AllowedHost(_host(name), port)
    except FetchRefusedError as error:
        raise InputError(f"{entry!r} is not the name of a host: {error.what}", where="allow_hosts", remedy=_REMEDY) from error


def parse_url(url: str) -> WebUrl:
    """`url` taken apart and put in its normal form; raises FetchRefusedError for whatever is not a plain web address."""
    if re.search(r"[\x00-\x20\x7f-\xa0\\]", url):
        raise FetchRefusedError("The URL has spaces, control characters or backslashes in it")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:  # what it says repeats the URL, and a page may have written that
        raise FetchRefusedError("This is not a URL") from error
    if parts.scheme not in _PORTS:
        raise FetchRefusedError("Only http and https URLs are fetched")
    if "@" in parts.netloc:
        raise FetchRefusedError("A URL with a user name or password is not fetched")
    path = quote(parts.path or "/", safe=_UNQUOTED, errors="replace")
    target = f"{path}?{quote(parts.query, safe=_UNQUOTED + '?', errors='replace')}" if parts.query else path
    if len(target) > TARGET_CHARACTERS:
        raise FetchRefusedError(f"The URL's path and query are longer than {TARGET_CHARACTERS:,} characters")
    name = parts.netloc if port is None else parts.netloc.rpartition(":")[0]
    return WebUrl(parts.scheme, _host(name.removesuffix(":")), _PORTS[parts.scheme] if port is None else port, target)


def _host(name: str) -> str:
    if name.startswith("[") or name.count(":") > 1:
        return _address(name)
    if ":" in name:
        raise FetchRefusedError("The URL's port is not a number")
    host = _host_name(name)
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        # Hosts that end in a number are addresses to every client; only the plain notation reads the same everywhere.
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError as error:
            raise FetchRefusedError("An IPv4 address must be written as four decimal numbers") from error
    return host


def _host_name(name: str) -> str:
    """A DNS name in lower-case ASCII without the trailing dot; look-alike characters become what they look like, or punycode."""
    if "%" in name:
        raise FetchRefusedError("The URL's host has a percent sign in it")
    if len(name) > 253:
        raise FetchRefusedError("The URL's host is longer than 253 characters")
    try:
        host = name.encode("idna").decode("ascii").lower().removesuffix(".")
    except UnicodeError as error:
        raise FetchRefusedError("The URL's host is not a host name") from error
    if not _HOST.fullmatch(host):
        raise FetchRefusedError("The URL's host is not a host name" if host else "The URL has no host")
    return host


def _address(name: str) -> str:
    try:
        address = ipaddress.IPv6Address(name.removeprefix("[").removesuffix("]"))
    except ValueError as error:
        raise FetchRefusedError("The URL's host is not an IPv6 address") from error
    if address.scope_id is not None:
        raise FetchRefusedError("An address with a zone is not fetched")
    return str(address)


def check_allowed(url: WebUrl, allowed: Sequence[AllowedHost]) -> None:
    """Raises FetchRefusedError unless an entry lets `url` through; no entry lets a name through that only a local network has."""
    if ("." not in url.host and ":" not in url.host) or url.host.rpartition(".")[2] in _LOCAL_NAMES:
        raise FetchRefusedError(f"{url.host!r} is a name of a local network")
    if any(entry.admits(url) for entry in allowed):
        return
    if any(AllowedHost(entry.host, url.port).admits(url) for entry in allowed):
        raise FetchRefusedError(f"Port {url.port} of {url.host!r} is not allowed")
    raise FetchRefusedError(f"The host {url.host!r} is not among the allowed hosts")


def denied_address(text: str) -> str | None:
    """Why an IP address is not one of the public internet; None for one that is."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return "not an address"
    if isinstance(address, ipaddress.IPv4Address):
        return next((reason for network, reason in _DENIED_V4 if address in network), None)
    if address not in _PUBLIC_V6 or address.scope_id is not None:
        return "not public IPv6 (local, multicast, or IPv4 inside IPv6)"
    if address.packed[8:12] in _ISATAP:
        return "IPv4 inside IPv6 (ISATAP)"
    return next((reason for network, reason in _DENIED_V6 if address in network), None)


def check_secrets(url: str, environ: Mapping[str, str], private: Sequence[str] = ()) -> None:
    """Raises FetchRefusedError where `url` holds a secret variable's value or one of the `private` strings, in any common encoding.

    Half of a long one is enough: sent in two pieces, one of them is that long.
    """
    readings = {url, unquote(url), unquote(unquote(url)), unquote_plus(url)}
    folded = [reading.casefold() for reading in readings]
    secrets = [(f"the value of {name}", value) for name, value in secrets_of(environ).items()]
    for what, value in [*secrets, *(("a value of this run that must not leave it", value) for value in private)]:
        forms = [form.casefold() for form in _forms(value)]
        if any(form in reading for form in forms for reading in folded):
            raise FetchRefusedError(f"The URL contains {what}")
        if any(half in reading for form in forms for half in _halves(form) for reading in folded):
            raise FetchRefusedError(f"The URL contains half of {what}")


def _halves(form: str) -> Iterator[str]:
    """Every piece of half the length; none of a short text, whose halves occur in any URL."""
    size = -(-len(form) // 2)
    return (form[at : at + size] for at in range(len(form) - size + 1 if size >= _SHORTEST_HALF else 0))


def _forms(value: str) -> Iterator[str]:
    """A value as it is, URL-encoded, in hexadecimal, and in base64 wherever it starts in a longer text."""
    encoded = value.encode("utf-8", "surrogateescape")
    yield from (value, value.replace("+", " "), quote(encoded, safe=""), quote_plus(encoded), encoded.hex())
    for offset in range(3):
        # Three bytes make four characters: those at the edges also depend on the neighbours and are left out.
        whole = base64.b64encode(b"\0" * offset + encoded).decode().rstrip("=")
        inner = whole[(0, 2, 3)[offset] : len(whole) - (len(whole) % 4 != 0)]
        yield from (inner, inner.replace("+", "-").replace("/", "_"))
