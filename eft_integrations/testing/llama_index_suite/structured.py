"""Structured output: objects of a pydantic class by every mode and every way of asking."""

from __future__ import annotations

import asyncio
from enum import Enum

import pytest
from llama_index.core.llms import LLM
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.prompts import PromptTemplate
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel

from eft_integrations.testing.llama_index_suite.asking import gather, user
from eft_integrations.testing.llama_index_suite.properties import SuiteProperties


class Person(BaseModel):
    """A person."""

    name: str
    age: int


class Mood(Enum):
    """How someone feels."""

    GLAD = "glad"
    SAD = "sad"


class Crew(BaseModel):
    """People who travel together."""

    captain: Person
    mood: Mood
    is_ready: bool
    motto: str | None = None


PROMPT = PromptTemplate("Who is {who}?")
MODES = pytest.mark.parametrize("mode", PydanticProgramMode, ids=lambda mode: mode.value)


class StructuredTests(SuiteProperties):
    """An object comes whatever the model would have liked to say."""

    def _structuring_llm(self, mode: PydanticProgramMode) -> LLM:
        self.needs(has=mode in self.program_modes, what=f"the mode {mode.value}")
        return self.make_llm(pydantic_program_mode=mode)

    @MODES
    @pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
    @pytest.mark.parametrize("output_cls", [Person, Crew])
    def test_prediction_is_an_object(
        self, output_cls: type[BaseModel], is_async: bool, mode: PydanticProgramMode
    ) -> None:
        llm = self._structuring_llm(mode)
        output = (
            asyncio.run(llm.astructured_predict(output_cls, PROMPT, who="Ann"))
            if is_async
            else llm.structured_predict(output_cls, PROMPT, who="Ann")
        )
        assert isinstance(output, output_cls)

    @MODES
    @pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
    def test_streamed_prediction_grows_into_an_object(self, is_async: bool, mode: PydanticProgramMode) -> None:
        llm = self._structuring_llm(mode)
        outputs = (
            asyncio.run(gather(llm.astream_structured_predict(Person, PROMPT, who="Ann")))
            if is_async
            else list(llm.stream_structured_predict(Person, PROMPT, who="Ann"))
        )
        assert len(outputs) > 1
        assert isinstance(outputs[-1], Person)

    @MODES
    def test_llm_of_a_class_answers_with_its_objects(self, mode: PydanticProgramMode) -> None:
        structured = self._structuring_llm(mode).as_structured_llm(Person)
        whole = structured.chat(user())
        assert isinstance(whole.raw, Person)
        assert Person.model_validate_json(whole.message.content or "") == whole.raw
        assert asyncio.run(structured.achat(user())).raw == whole.raw
        assert Person.model_validate_json(structured.complete("Hello").text) == whole.raw
        assert list(structured.stream_chat(user()))[-1].raw == whole.raw
        assert asyncio.run(gather(structured.astream_chat(user())))[-1].raw == whole.raw

    def test_keywords_of_the_call_reach_the_model(self) -> None:
        self.needs(has=self.has_call_keywords, what="keywords of a call")
        with pytest.raises(Exception, match="temprature"):
            self.make_llm().structured_predict(Person, PROMPT, llm_kwargs={"temprature": 0.1}, who="Ann")

    def test_function_calling_program_makes_objects(self) -> None:
        self.needs(has=self.has_tools, what="tools")
        program = FunctionCallingProgram.from_defaults(
            output_cls=Person,
            prompt=PROMPT,
            llm=self.make_llm(),
            tool_required=True,
        )
        assert isinstance(program(who="Ann"), Person)
        assert isinstance(asyncio.run(program.acall(who="Ann")), Person)
