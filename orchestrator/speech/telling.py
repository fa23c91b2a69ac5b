"""The tokens of an answer as the sentences that are to be spoken, each once."""

from collections.abc import Callable, Sequence

from orchestrator.events import Event
from orchestrator.speech.sentences import Sentences

__all__ = ["Telling"]


class Telling:
    """Feeds the sentences of an answer as its tokens come; those that were fed before a model was asked again are not fed twice."""

    def __init__(self, role: str, feed: Callable[[str], None]) -> None:
        self._role, self._feed = role, feed
        self._begin()
        self._again: list[str] = []

    def _begin(self) -> None:
        self._sentences, self._text, self._fed = Sentences(), "", list[str]()

    def __call__(self, event: Event) -> None:
        """Take the tokens of `role` among a run's events."""
        if event.role != self._role:
            return
        if event.kind == "model_started":
            self._restart()
        elif event.kind == "token":
            self._take(str(event.fields.get("text") or ""))

    def finish(self, answer: str) -> None:
        """The whole answer is there: what was not told in tokens is fed."""
        if self._text.strip() != answer.strip():
            self._restart()
            self._take(answer)
        self._pass(self._sentences.rest())

    def _restart(self) -> None:
        self._again = self._fed or self._again
        self._begin()

    def _take(self, text: str) -> None:
        self._text += text
        self._pass(self._sentences.feed(text))

    def _pass(self, sentences: Sequence[str]) -> None:
        for sentence in sentences:
            self._fed.append(sentence)
            if self._again[:1] == [sentence]:
                del self._again[0]
                continue
            self._again = []
            self._feed(sentence)
