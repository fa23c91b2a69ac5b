"""What a terminal would obey, put wherever the command line shows something that was not its own: none of it comes out."""

import json
import os
import pty
import re
import subprocess
import termios
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Python, environ, python

from orchestrator.cli import main
from orchestrator.testing import ModelServer, Reply, agents_script, model_server

ROOT = Path(__file__).parent.parent
PAYLOADS = {
    "clipboard (OSC 52)": "\x1b]52;c;cHduZWQ=\x07",
    "link (OSC 8)": "\x1b]8;;x:y\x1b\\click\x1b]8;;\x1b\\",
    "clear (CSI 2J)": "\x1b[2J\x1b[H",
    "colour": "\x1b[38;5;201m",
    "cursor up": "\x1b[9A\x1b[2K",
    "title": "\x1b]0;owned\x07",
    "answerback": "\x1b[21t\x1b[6n\x1bZ",
    "string (DCS)": '\x1bP$q"p\x1b\\',
    "reset": "\x1bc",
    "not ended": "\x1b]0;owned ",
    "8-bit CSI": "\x9b2J",
    "8-bit OSC": "\x9d0;owned\x9c",
    "next line": "\x85",
    "overwrite": "\rover",
    "backspace": "\x08\x08",
    "bell": "\x07",
    "delete": "\x7f",
    "bidirectional": "\u202egpj\u202c\u2066x\u2069\u200f",
    "zero-width": "a\u200bb\u200dc\u2060d\ufeff\u00ad",
    "tag characters": "".join(chr(0xE0000 + ord(c)) for c in "obey"),
    "separators": "x\u2028y\u2029z",
}
HOSTILE = "".join(PAYLOADS.values())
CLAIM = f"The journal was designed by Ada {HOSTILE.replace(chr(13), '').replace(PAYLOADS['tag characters'], '')} Byron."  # as it is read
ANSWERED = "Byron."  # the end of the claim: a sequence without an end has not swallowed what follows
OWN = re.compile(r"\x1b\[(?:[\d;]*m|\?25[lh]|1A|2K)|\r(?=\x1b\[2K|\n)")  # rich: styles, the cursor, and the live view's own lines
# The real command line; only where a name leads, and that nothing answers there, is set.
CODE = """
import sys
import orchestrator.fetch

async def resolve(host, port):
    return ["93.184.216.34"]

async def connect(address, port):
    raise OSError(sys.argv[1])

orchestrator.fetch.resolve_host, orchestrator.fetch.connect_to = resolve, connect
from orchestrator.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Documents with payloads in their text, titles and names; one that is read, one whose title hides, one that is skipped."""
    documents = tmp_path / "documents"
    documents.mkdir()
    filler = "Nothing else is known of it, and nobody has asked. " * 100
    (documents / f"notes {HOSTILE}.md").write_text(
        f"# On {HOSTILE} journals\n\nThe journal was designed by Ada {HOSTILE.replace(chr(13), '')} Byron.\n\n{filler}\n", encoding="utf-8"
    )
    (documents / "page.html").write_text(f"<title>On {HOSTILE} pages</title><p>A page on a journal.<p>{filler}", encoding="utf-8")
    (documents / f"picture {HOSTILE}.png").write_bytes(b"png")
    return documents


@pytest.fixture
def server() -> Iterator[ModelServer]:
    """A model that calls tools with payloads in their names and arguments, then claims what the document says, payloads and all."""
    calls: list[tuple[str, dict[str, str]]] = [
        (f"run_{HOSTILE}", {"x": HOSTILE}),
        ("search_documents", {"query": f"journal {HOSTILE}"}),
        ("fetch_url", {"url": f"http://evil.example/{HOSTILE}"}),
        ("fetch_url", {"url": "http://docs.example.org/"}),
        ("read_passage", {"passage_id": HOSTILE}),
    ]

    def research(request: dict[str, Any]) -> Any:
        given = str(request["messages"][1]["content"])
        passage = re.findall(r" id=\"(d\d+\.\d+)\"", given[: given.index("The journal was designed")])[-1]
        found = {"claim": CLAIM, "citations": [{"passage": passage, "quote": CLAIM}]}
        return Reply(calls=[calls.pop(0)]) if calls else {"findings": [found], "missing": ""}

    judgement = {"label": "supported", "reason": f"It {HOSTILE} does."}
    with model_server(agents_script(findings=research, judgement=judgement)) as server:
        yield server


def unfit(shown: str) -> list[str]:
    """The characters that no terminal may be sent."""
    return [ascii(c) for c in shown if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")]


def words(folder: Path, *more: str) -> list[str]:
    given = ["--documents", str(folder), "--allow-hosts", "docs.example.org", "--model", "openai:test", "--", f"Who designed {HOSTILE} it?"]
    return ["research", *more, *given]


def command(folder: Path, *more: str) -> list[str]:
    return ["-c", CODE, HOSTILE, *words(folder, *more)]


def test_pipes_carry_text(folder: Path, server: ModelServer, tmp_path: Path) -> None:
    words = command(folder, "--debug", "--output", str(tmp_path / "report.md"))
    done = python(*words, cwd=ROOT, env=environ(**server.environ), text=False)
    out, err, report = done.stdout.decode(), done.stderr.decode(), (tmp_path / "report.md").read_text(encoding="utf-8")
    assert (done.returncode, unfit(out), unfit(err), unfit(report)) == (0, [], [], [])
    assert (out, ANSWERED in report, "policy_denied" in err, "Traceback" in err) == ("", True, True, False)


def on_terminal(words: list[str], variables: dict[str, str]) -> tuple[int, str]:
    """Exit code of a command whose stdout and stderr are a terminal, and what that was sent."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (50, 160))
    process = Python(*words, cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # how Linux says that nobody holds the other end any more
        pass
    finally:
        os.close(ours)
    return process.wait(timeout=50), shown.decode()


@pytest.mark.parametrize("options", [(), ("--json", "--quiet")], ids=["report", "json"])
def test_a_terminal_is_sent_nothing_but_our_own_sequences(options: tuple[str, ...], folder: Path, server: ModelServer) -> None:
    code, shown = on_terminal(command(folder, *options), environ(**server.environ, TERM="xterm-256color", COLUMNS="160", LINES="50"))
    assert (code, unfit(OWN.sub("", shown)), "38;5;201" in OWN.sub("", shown)) == (0, [], bool(options))
    assert ANSWERED in shown


def run_here(words: list[str], capfdbinary: pytest.CaptureFixture[bytes]) -> tuple[int, str, str]:
    code = main(words)
    out, err = capfdbinary.readouterr()
    return code, out.decode(), err.decode()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory, and the network, of a command line inside this process."""
    import orchestrator.fetch

    async def resolve(host: str, port: int) -> list[str]:
        return ["93.184.216.34"]

    async def connect(address: str, port: int) -> Any:
        raise OSError(HOSTILE)

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(orchestrator.fetch, "resolve_host", resolve)
    monkeypatch.setattr(orchestrator.fetch, "connect_to", connect)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("options", [("--json",), ("--events", "--log-format", "json")], ids=" ".join)
def test_json_says_everything_and_escapes_it(
    options: tuple[str, ...], folder: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    log = folder.parent / "run.log"
    code, out, err = run_here(words(folder, *options, "--debug", "--log-file", str(log)), capfdbinary)
    logged = log.read_text(encoding="utf-8")
    assert (code, unfit(out), unfit(err), unfit(logged), "policy_denied" in logged) == (0, [], [], [], True)
    result = json.loads(out.splitlines()[-1])
    assert [finding["claim"] for finding in result["output"]["findings"]] == [CLAIM]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("options", [(), ("--quiet",), ("--debug",), ("--events",)], ids=" ".join)
@pytest.mark.parametrize("body", [HOSTILE, {"error": {"message": HOSTILE, "code": HOSTILE}}], ids=["body", "message"])
def test_a_model_s_error_is_shown_as_text(
    body: Any, options: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with model_server(lambda _: Reply(status=400, body=body)) as server:
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        code, out, err = run_here(words(folder, *options), capfdbinary)
    assert (code, unfit(out), unfit(err)) == (1, [], [])
    assert "the request was refused (400)" in out + err


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("payload", PAYLOADS)
def test_bad_input_is_shown_as_text(payload: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    text = PAYLOADS[payload]
    for given in (
        [text],
        [f"./{text}.py"],
        ["research", f"--{text}", "q"],
        ["research", "q", "--documents", text],
        ["research", "q", "--allow-hosts", f"/{text}"],
        ["research", "q", "--model", text],
        ["research", "q", "--run-id", text],
        ["research", "q", "--max-concurrency", text],
        ["research", "--input", f'{{"{text}": 1}}'],
        ["research", "--input", f"@{text}"],
    ):
        code, out, err = run_here(given, capfdbinary)
        assert (code, unfit(out), unfit(err), err != "") == (2, [], [], True)
