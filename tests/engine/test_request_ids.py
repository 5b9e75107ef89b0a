"""The id that a caller gives a request is that of its output and of every line that the engine logs of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from eft_engine import Engine, SamplingParams
from eft_engine.errors import EngineStepError, InvalidOptionError
from eft_engine.models.network import Block
from tests.toy import make_trio, wait_until_idle

SHORT = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """One engine for all tests."""
    with make_trio("llama").engine() as engine:
        yield engine


async def test_every_way_to_ask_carries_it(engine: Engine) -> None:
    assert engine.generate("abc", sampling=SHORT, request_id="own").request_id == "own"
    both = engine.generate(["abc", "x"], sampling=SHORT, request_id="own")
    assert [output.request_id for output in both] == ["own-0", "own-1"]
    last = list(engine.stream("abc", sampling=SHORT, request_id="streamed"))[-1]
    assert last.output is not None
    assert last.output.request_id == "streamed"
    assert (await engine.agenerate("abc", sampling=SHORT, request_id="later")).request_id == "later"
    deltas = [delta async for delta in engine.astream("abc", sampling=SHORT, request_id="both")]
    assert deltas[-1].output is not None
    assert deltas[-1].output.request_id == "both"


def test_without_one_each_request_has_its_own(engine: Engine) -> None:
    ids = {output.request_id for output in engine.generate(["abc", "abc"], sampling=SHORT)}
    assert len(ids) == 2
    assert all(own.startswith("eft-") for own in ids)


@pytest.mark.parametrize("given", ["", "a\nb", "x" * 201, 7])
def test_what_could_break_a_line_of_a_log_is_refused(engine: Engine, given: object) -> None:
    with pytest.raises(InvalidOptionError, match="request_id must be"):
        engine.generate("abc", sampling=SHORT, request_id=given)  # type: ignore[call-overload]


async def test_engine_logs_it_for_every_end(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    def broken(blocks: list[Block]) -> None:
        raise RuntimeError("cannot read this")

    with caplog.at_level(logging.DEBUG, "eft_engine"):
        engine.generate("abc", sampling=SHORT, request_id="fine")
        stream = engine.stream("abc", sampling=SHORT.model_copy(update={"max_tokens": 200}), request_id="left")
        next(stream)
        stream.close()
        engine.score("abc", "x", request_id="scored")
        wait_until_idle(engine)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine._trio.networks[0], "forward", broken)
            with pytest.raises(EngineStepError):
                engine.generate("abc", sampling=SHORT, request_id="unlucky")
    ends = {
        record.request_id: record.args[1]  # type: ignore[attr-defined, index]
        for record in caplog.records
        if record.levelno == logging.DEBUG and hasattr(record, "request_id")
    }
    assert ends == {"fine": "finished", "left": "cancelled", "scored": "finished", "unlucky": "failed"}
    (failure,) = [record for record in caplog.records if record.exc_info]
    assert failure.request_id == "unlucky"  # type: ignore[attr-defined]
    assert "unlucky" in failure.getMessage()
