"""The offline model: a chat model without weights, for a machine that has no key and no network.

It reads the tagged blocks of the shipped prompts and answers the schemas of the shipped agents and workflows by rule, always the same way.
Agents cannot tell it from any other chat model: tool calls, structured output, streaming and usage are LangChain's own.
"""

import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import ToolCall, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel

from orchestrator.errors import ModelSpecError
from orchestrator.models.offline_compare import comparison
from orchestrator.models.offline_draft import draft
from orchestrator.models.offline_findings import answer_findings, findings
from orchestrator.models.offline_judge import judgement
from orchestrator.models.offline_plan import clarification, plan
from orchestrator.models.offline_prompt import Prompt, read_prompt
from orchestrator.models.offline_summary import summary
from orchestrator.models.offline_text import sentiment

__all__ = ["OfflineModel"]

_ANSWERS: Mapping[str, Callable[[Prompt], dict[str, Any]]] = {
    "Plan": plan,
    "PlanOrQuestion": plan,
    "ConversationPlan": plan,
    "ConversationPlanOrQuestion": plan,
    "Clarification": clarification,
    "Findings": findings,
    "AnswerFindings": answer_findings,
    "Judgement": judgement,
    "Draft": draft,
    "Comparison": comparison,
    "Summary": summary,
    "Sentiment": sentiment,
}
_SEARCH = "search_documents"
_REMEDY = "name a language model: --model openai:NAME, or another provider:model"
_PIECE = 64  # characters of a streamed chunk


class OfflineModel(BaseChatModel):
    """Answers the schemas of the shipped agents and workflows without a model; ModelSpecError for any other schema."""

    model_name: str = "offline"

    @property
    def _llm_type(self) -> str:
        return "offline"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_name": self.model_name}

    def get_num_tokens(self, text: str) -> int:
        """An estimate: four characters a token, which is about what English costs with the usual tokenizers."""
        return -(-len(text) // 4)

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with `tools` as OpenAI tool definitions; `tool_choice` as ChatOpenAI takes it."""
        if tool_choice:
            kwargs["tool_choice"] = tool_choice
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._answer(messages, kwargs))])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        # A few milliseconds of computing: a thread would cost more than it frees.
        return ChatResult(generations=[ChatGeneration(message=self._answer(messages, kwargs))])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        yield from _chunks(self._answer(messages, kwargs))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in _chunks(self._answer(messages, kwargs)):
            yield chunk

    def _answer(self, messages: list[BaseMessage], kwargs: Mapping[str, Any]) -> AIMessage:
        prompt = read_prompt(messages)
        name, arguments, as_call = _choose(prompt, kwargs)
        text = json.dumps(arguments, ensure_ascii=False)
        read = sum(self.get_num_tokens(message.text) for message in messages)
        written = self.get_num_tokens(name + text if as_call else text)
        usage = UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)
        metadata = {"finish_reason": "tool_calls" if as_call else "stop", "model_name": self.model_name}
        if not as_call:
            return AIMessage(content=text, usage_metadata=usage, response_metadata=metadata)
        # The id tells calls of one conversation apart and is the same in every run.
        digest = hashlib.sha256(f"{len(messages)} {name} {text}".encode(errors="replace")).hexdigest()
        call = ToolCall(name=name, args=arguments, id=f"call_{digest[:24]}", type="tool_call")
        return AIMessage(content="", tool_calls=[call], usage_metadata=usage, response_metadata=metadata)


def _choose(prompt: Prompt, kwargs: Mapping[str, Any]) -> tuple[str, dict[str, Any], bool]:
    """What to answer: a name, its arguments, and whether as a tool call (else as JSON content)."""
    tools = [tool["function"]["name"] for tool in kwargs.get("tools") or ()]
    choice = kwargs.get("tool_choice")
    forced = _forced(choice, tools)
    if forced is not None:
        tools = [forced]
    elif choice == "none":
        tools = []
    schema = next((name for name in tools if name in _ANSWERS), None)
    if forced == _SEARCH or (_SEARCH in tools and not prompt.passages and not prompt.searched):
        return _SEARCH, {"query": prompt.question}, True
    if schema is not None and _fits(answer := _ANSWERS[schema](prompt), kwargs.get("tools") or (), schema):
        return schema, answer, True
    wanted = _format_name(kwargs.get("response_format"))
    if wanted in _ANSWERS:
        return wanted, _ANSWERS[wanted](prompt), False
    unknown = wanted or forced or next((name for name in tools if name != _SEARCH), "")
    if unknown:
        raise ModelSpecError(
            f"the offline model cannot answer the schema {unknown!r}", where=f"it answers {', '.join(_ANSWERS)}", remedy=_REMEDY
        )
    raise ModelSpecError("the offline model cannot write free text", remedy=_REMEDY)


def _fits(answer: Mapping[str, Any], tools: Sequence[Any], name: str) -> bool:
    """Whether the tool that stands for a schema takes this answer: a user's own schema may have a name that we know."""
    parameters = next(tool["function"].get("parameters") or {} for tool in tools if tool["function"]["name"] == name)
    fields = parameters.get("properties", {})
    return {*parameters.get("required", ())} <= answer.keys() <= fields.keys() and all(
        value in fields[key].get("enum", (value,)) for key, value in answer.items()
    )


def _forced(choice: Any, tools: Sequence[str]) -> str | None:
    if isinstance(choice, str) and choice in tools:
        return choice
    if isinstance(choice, Mapping):
        return str(choice.get("function", {}).get("name", "")) or None
    return None


def _format_name(wanted: Any) -> str:
    """The schema's name of an OpenAI `response_format`: a model class, a `json_schema` dict, or a plain JSON schema."""
    if isinstance(wanted, type) and issubclass(wanted, BaseModel):
        return wanted.__name__
    if not isinstance(wanted, Mapping):
        return ""
    schema = wanted.get("json_schema", wanted)
    return str(schema.get("name") or schema.get("title") or wanted.get("type", ""))


def _chunks(message: AIMessage) -> Iterator[ChatGenerationChunk]:
    """`message` in pieces that add up to it; the usage and the finish reason are on the last."""
    if message.tool_calls:
        call = message.tool_calls[0]
        text = json.dumps(call["args"], ensure_ascii=False)
        head = tool_call_chunk(name=call["name"], args="", id=call["id"], index=0)
        yield ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=[head]))
        for start in range(0, len(text), _PIECE):
            piece = tool_call_chunk(name=None, args=text[start : start + _PIECE], id=None, index=0)
            yield ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=[piece]))
    else:
        text = message.text
        for start in range(0, len(text), _PIECE):
            yield ChatGenerationChunk(message=AIMessageChunk(content=text[start : start + _PIECE]))
    last = AIMessageChunk(
        content="", usage_metadata=message.usage_metadata, response_metadata=message.response_metadata, chunk_position="last"
    )
    yield ChatGenerationChunk(message=last, generation_info={"finish_reason": message.response_metadata["finish_reason"]})
