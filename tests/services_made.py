"""Web services for tests, on this machine: what is configured as SearXNG, Tavily or Open-Meteo."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

__all__ = ["OSLO", "Service", "service", "weather_answers"]


@dataclass
class Service:
    """A service that answers by path; `asked` has what came: path, parameters or body, headers in lower case."""

    url: str = ""
    asked: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)


@contextmanager
def service(answers: Mapping[str, Any]) -> Iterator[Service]:
    """A service whose `answers` are, by path, JSON values, bytes as they are sent, or a number: the status."""
    found = Service()

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Answer from the table."""
            parts = urlsplit(self.path)
            length = int(self.headers.get("content-length", 0))
            given = json.loads(self.rfile.read(length)) if length else {key: values[0] for key, values in parse_qs(parts.query).items()}
            found.asked.append((parts.path, given, {name.lower(): value for name, value in self.headers.items()}))
            answer = answers.get(parts.path, 404)
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(answer if isinstance(answer, int) else 200)
            if answer in (301, 302):
                self.send_header("Location", f"{found.url}/elsewhere")
            self.send_header("Content-Type", "text/plain" if isinstance(answer, bytes) else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the name is the library's

        def log_message(self, *_: Any) -> None:
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


OSLO = {"name": "Oslo", "admin1": "Oslo", "country": "Norway", "country_code": "NO", "latitude": 59.91, "longitude": 10.75}


def weather_answers() -> dict[str, Any]:
    """What Open-Meteo answers about Oslo."""
    current = {
        "time": "2026-11-28T13:00",
        "temperature_2m": -3.2,
        "apparent_temperature": -8,
        "relative_humidity_2m": 81,
        "precipitation": 0.1,
        "weather_code": 71,
        "wind_speed_10m": 12.4,
    }
    daily = {
        "time": ["2026-11-28"],
        "weather_code": [3],
        "temperature_2m_max": [-1.0],
        "temperature_2m_min": [-6.5],
        "precipitation_sum": [0.4],
        "precipitation_probability_max": [30],
    }
    return {"/v1/search": {"results": [OSLO]}, "/v1/forecast": {"current": current, "daily": daily}}
