"""The matrix with real tokenizers and their chat templates, which `make test-families` fetches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
from transformers import AutoTokenizer

from tests.families.adapters import ADAPTERS
from tests.families.cells import CELLS, Desk
from tests.families.cells_reasoning import REASONING_CELLS
from tests.families.fetch import COMMAND, FOLDER, TOKENIZERS, RealTokenizer
from tests.families.imitations import BY_NAME
from tests.families.stand_in import StandIn
from tests.families.test_control_tokens import broken_places

if not FOLDER.is_dir():
    pytest.skip(f"there are no real tokenizers; {COMMAND} fetches them", allow_module_level=True)


@pytest.fixture(
    scope="module",
    params=[pytest.param(own, marks=pytest.mark.xdist_group(own.name), id=own.name) for own in TOKENIZERS],
)
def stand_in(request: pytest.FixtureRequest) -> Iterator[StandIn]:
    """One stand-in at a time: tests come tokenizer by tokenizer, and the vocabularies are large."""
    real: RealTokenizer = request.param
    if not real.is_there:
        pytest.skip(f"the tokenizer of {real.name} is missing; {COMMAND} fetches it")
    own = _stand_in(real)
    yield own
    own.engine.close()


@pytest.fixture(scope="module", params=ADAPTERS)
def desk(request: pytest.FixtureRequest, stand_in: StandIn) -> Desk:
    """An adapter over it."""
    return Desk(stand_in.family, stand_in, ADAPTERS[request.param](stand_in))


def _stand_in(real: RealTokenizer) -> StandIn:
    """The family that is imitated, with this tokenizer and its template."""
    tokenizer = AutoTokenizer.from_pretrained(real.folder)
    family = BY_NAME[real.imitation]
    tokenizer.chat_template = tokenizer.chat_template or family.template
    control_tokens = tuple(own.content for own in tokenizer.added_tokens_decoder.values() if own.special)
    vocab = tokenizer.get_vocab()
    own = dataclasses.replace(
        family,
        name=f"{real.name} (real)",
        template=tokenizer.chat_template,
        start=tokenizer.bos_token,
        end=tokenizer.eos_token,
        control_tokens=tuple(token for token in control_tokens if token in tokenizer.chat_template)
        or tuple(token for token in family.control_tokens if token in vocab),
        markers=tuple(token for token in family.markers if token in vocab),
    )
    return StandIn(own, tokenizer)


@pytest.mark.parametrize("cell", CELLS)
def test_cell(desk: Desk, cell: str) -> None:
    CELLS[cell](desk)


@pytest.mark.parametrize("cell", REASONING_CELLS)
def test_reasoning(desk: Desk, cell: str) -> None:
    if desk.family.thought is None:
        pytest.skip(f"{desk.family.name} does not think")
    REASONING_CELLS[cell](desk)


def test_structure_stays(stand_in: StandIn) -> None:
    assert broken_places(stand_in) == []


def test_template_ends_answers_as_the_model_does(stand_in: StandIn) -> None:
    assert stand_in.engine._trio.ends.warnings == ()
