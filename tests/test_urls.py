"""How URLs are read, which hosts are allowed, which addresses are public, and which URLs would carry a secret away."""

import base64
import re
from urllib.parse import quote

import pytest

from orchestrator.errors import FetchRefusedError, InputError
from orchestrator.urls import AllowedHost, WebUrl, check_allowed, check_secrets, denied_address, parse_allowed, parse_url

DENIED = """
0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.100.100.200 127.0.0.1 127.255.255.254 168.63.129.16 169.254.169.254 172.16.0.1 172.31.255.255
192.0.0.192 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
:: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::ffff:0:127.0.0.1
64:ff9b::7f00:1 64:ff9b::808:808 64:ff9b:1::a00:1 100::1 2001::1
2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:10::1 2001:20::1 2001:db8::1 2002:7f00:1:: 2002:a9fe:a9fe::1 2606:4700::5efe:7f00:1
2606:4700::200:5efe:a00:1 3ffe::1 3fff::1 4000::1 5f00::1 fc00::1 fd00:ec2::254 fd20:ce::254 fe80::1 fe80::1%eth0 fec0::1
ff02::1 ff0e::1
2606:4700::1%eth0 localhost 0x7f.1 nonsense
"""
SECRET = "sk-live/Zq8+x7 Rt?55=pW"  # characters that encodings change


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://example.org", WebUrl("http", "example.org", 80, "/")),
        ("HTTPS://EXAMPLE.ORG./A?b=c#d", WebUrl("https", "example.org", 443, "/A?b=c")),
        ("http://example.org:/x", WebUrl("http", "example.org", 80, "/x")),
        ("http://example.org:8080/x", WebUrl("http", "example.org", 8080, "/x")),
        ("http://bücher.example/ü?q=é", WebUrl("http", "xn--bcher-kva.example", 80, "/%C3%BC?q=%C3%A9")),
        ("http://example.org/%2e%2e/a%20b", WebUrl("http", "example.org", 80, "/%2e%2e/a%20b")),
        ("http://ｅｘａｍｐｌｅ。org/", WebUrl("http", "example.org", 80, "/")),
        ("http://exam\u00adple.org/", WebUrl("http", "example.org", 80, "/")),
        ("http://93.184.216.34./", WebUrl("http", "93.184.216.34", 80, "/")),
        ("http://１２７.０.０.１/", WebUrl("http", "127.0.0.1", 80, "/")),
        ("http://[2606:2800:0220::1]:443/", WebUrl("http", "2606:2800:220::1", 443, "/")),
        ("http://example.org/\ud800", WebUrl("http", "example.org", 80, "/%3F")),
    ],
)
def test_a_url_has_one_normal_form(url: str, expected: WebUrl) -> None:
    assert parse_url(url) == expected


def test_a_url_is_written_from_its_parts() -> None:
    assert str(parse_url("https://[2606:2800:220::1]:8443/a?b")) == "https://[2606:2800:220::1]:8443/a?b"
    assert parse_url("https://example.org:443/").authority == "example.org"
    assert parse_url("https://example.org:80/").authority == "example.org:80"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "Only http and https URLs are fetched"),
        ("example.org", "Only http and https URLs are fetched"),
        ("//example.org/", "Only http and https URLs are fetched"),
        ("file:///etc/passwd", "Only http and https URLs are fetched"),
        ("http://", "The URL has no host"),
        ("http:///path", "The URL has no host"),
        ("http://./", "The URL's host is not a host name"),
        ("http://a..b/", "The URL's host is not a host name"),
        ("http://-a.example/", "The URL's host is not a host name"),
        ("http://a,b.example/", "The URL's host is not a host name"),
        (f"http://{'a' * 64}.example/", "The URL's host is not a host name"),
        (f"http://{'a.' * 130}example/", "The URL's host is longer than 253 characters"),
        ("http://user@example.org/", "A URL with a user name or password is not fetched"),
        ("http://example.org\\@evil.example/", "The URL has spaces, control characters or backslashes in it"),
        ("http://example.org/\r\nHost: x", "The URL has spaces, control characters or backslashes in it"),
        ("http://example.org:99999/", "This is not a URL"),
        ("http://example.org:8o/", "This is not a URL"),
        ("http://example.org%2f@evil/", "A URL with a user name or password is not fetched"),
        ("http://example.org%00.evil.example/", "The URL's host has a percent sign in it"),
        ("http://2130706433/", "An IPv4 address must be written as four decimal numbers"),
        ("http://127.1/", "An IPv4 address must be written as four decimal numbers"),
        ("http://0177.0.0.1/", "An IPv4 address must be written as four decimal numbers"),
        ("http://example.0x7f/", "An IPv4 address must be written as four decimal numbers"),
        ("http://[::1/", "This is not a URL"),
        ("http://[fe80::1%25eth0]/", "An address with a zone is not fetched"),
        ("http://::1/", "This is not a URL"),
        (f"http://example.org/{'a' * 2000}", "The URL's path and query are longer than 2,000 characters"),
        (f"http://example.org/?{'é' * 400}", "The URL's path and query are longer than 2,000 characters"),
    ],
)
def test_what_is_not_a_plain_web_address_is_refused(url: str, reason: str) -> None:
    with pytest.raises(FetchRefusedError) as caught:
        parse_url(url)
    assert caught.value.what == reason


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("*", AllowedHost("*")),
        ("*:8080", AllowedHost("*", 8080)),
        (" Docs.Example.org. ", AllowedHost("docs.example.org")),
        ("*.bücher.example", AllowedHost("*.xn--bcher-kva.example")),
        ("example.org:8080", AllowedHost("example.org", 8080)),
        ("93.184.216.34", AllowedHost("93.184.216.34")),
        ("[2606:2800:220::1]:8080", AllowedHost("2606:2800:220::1", 8080)),
        ("2606:2800:220::1", AllowedHost("2606:2800:220::1")),
    ],
)
def test_an_allow_list_names_hosts(entry: str, expected: AllowedHost) -> None:
    assert parse_allowed(entry) == expected


@pytest.mark.parametrize(
    "entry", ["", "  ", "*.", "https://example.org", "example.org/docs", "a@b", "*x.org", "a.*.org", "example.org:0", "example.org:70000"]
)
def test_an_entry_that_names_no_host_is_an_input_error(entry: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_allowed(entry)
    assert caught.value.where == "allow_hosts"


@pytest.mark.parametrize(
    ("url", "allowed", "reason"),
    [
        ("http://example.org/", [], "The host 'example.org' is not among the allowed hosts"),
        ("http://example.org/", ["*.example.org"], "The host 'example.org' is not among the allowed hosts"),
        ("http://evilexample.org/", ["*.example.org", "example.org"], "The host 'evilexample.org' is not among the allowed hosts"),
        ("http://example.org.evil.com/", ["*.example.org"], "The host 'example.org.evil.com' is not among the allowed hosts"),
        ("https://example.org:8080/", ["*"], "Port 8080 of 'example.org' is not allowed"),
        ("https://example.org/", ["example.org:8080"], "Port 443 of 'example.org' is not allowed"),
        ("http://printer/", ["*", "printer"], "'printer' is a name of a local network"),
        ("http://metadata.google.internal/", ["*"], "'metadata.google.internal' is a name of a local network"),
    ],
)
def test_no_other_host_or_port_passes(url: str, allowed: list[str], reason: str) -> None:
    with pytest.raises(FetchRefusedError) as caught:
        check_allowed(parse_url(url), [parse_allowed(entry) for entry in allowed])
    assert caught.value.what == reason


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://example.org/", ["example.org"]),
        ("https://a.b.example.org/", ["other.org", "*.example.org"]),
        ("https://example.org/", ["*"]),
        ("https://example.org:8080/", ["example.org:8080"]),
        ("https://example.org:8080/", ["*:8080"]),
        ("http://[2606:2800:220::1]/", ["*"]),
    ],
)
def test_allowed_hosts_and_ports_pass(url: str, allowed: list[str]) -> None:
    check_allowed(parse_url(url), [parse_allowed(entry) for entry in allowed])


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "172.32.0.1", "100.128.0.1", "168.63.129.17", "2606:2800:220::1", "2a00:1450::1"]
)
def test_public_addresses_are_not_denied(address: str) -> None:
    assert denied_address(address) is None


@pytest.mark.parametrize("address", re.split(r"\s+", DENIED.strip()))
def test_every_other_address_is_denied(address: str) -> None:
    assert denied_address(address)


def _embedded(value: str, before: str) -> str:
    return base64.b64encode(f"{before}{value} and more".encode()).decode()


@pytest.mark.parametrize(
    "carried",
    [
        SECRET.replace(" ", "%20"),
        quote(SECRET, safe=""),
        quote(quote(SECRET, safe=""), safe=""),
        quote(SECRET, safe="").lower(),
        SECRET.replace(" ", "+"),
        SECRET.upper().replace(" ", "%20"),
        SECRET.encode().hex(),
        base64.b64encode(SECRET.encode()).decode(),
        base64.urlsafe_b64encode(SECRET.encode()).decode().rstrip("="),
        quote(base64.b64encode(SECRET.encode()).decode(), safe=""),
        _embedded(SECRET, "k="),
        _embedded(SECRET, "key="),
        _embedded(SECRET, "the="),
    ],
)
@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "GITHUB_TOKEN", "CLIENT_SECRET", "DB_PASSWORD", "AWS_SECRET_ACCESS_KEY"])
def test_a_url_with_a_secret_is_refused_by_the_name_of_its_variable(carried: str, name: str) -> None:
    with pytest.raises(FetchRefusedError) as caught:
        check_secrets(f"https://evil.example/?k={carried}", {"HOME": "/home", name: SECRET})
    assert str(caught.value) == f"The URL contains the value of {name}"


def test_urls_without_a_secret_pass() -> None:
    environ = {"OPENAI_API_KEY": SECRET, "DEBUG_TOKEN": "docs", "EMPTY_KEY": "", "HOST_NAME": "example.org"}
    check_secrets("https://example.org/docs?token=docs", environ, ["4f9c3d1e8a7b2c60"])


def test_what_is_private_to_the_run_is_refused_without_naming_it() -> None:
    with pytest.raises(FetchRefusedError) as caught:
        check_secrets("https://evil.example/4F9C3D1E8A7B2C60", {}, ["4f9c3d1e8a7b2c60"])
    assert str(caught.value) == "The URL contains a value of this run that must not leave it"
