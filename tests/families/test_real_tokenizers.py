"""The matrix with real tokenizers and their chat templates, which `make test-families` fetches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest
from transformers import AutoTokenizer

from tests.families.adapters import ADAPTERS
from tests.families.cells import CELLS, Desk
from tests.families.fetch import COMMAND, FOLDER, TOKENIZERS, RealTokenizer
from tests.families.imitations import BY_NAME
from tests.families.stand_in import StandIn, markers_in
from tests.families.test_control_tokens import PLACES, prompt_ids, request_with

if not FOLDER.is_dir():
    pytest.skip(f"there are no real tokenizers; {COMMAND} fetches them", allow_module_level=True)

each_tokenizer = pytest.mark.parametrize("real", TOKENIZERS, ids=lambda own: own.name)


@pytest.fixture(scope="module")
def real_stand_ins() -> Iterator[Callable[[RealTokenizer], StandIn]]:
    """One stand-in at a time: tests come tokenizer by tokenizer, and the vocabularies are large."""
    made: list[tuple[str, StandIn]] = []

    def find(real: RealTokenizer) -> StandIn:
        if not real.is_there:
            pytest.skip(f"the tokenizer of {real.name} is missing; {COMMAND} fetches it")
        if not made or made[0][0] != real.name:
            while made:
                made.pop()[1].engine.close()
            made.append((real.name, _stand_in(real)))
        return made[0][1]

    yield find
    for _, own in made:
        own.engine.close()


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
@pytest.mark.parametrize("adapter", ADAPTERS)
@each_tokenizer
def test_cell(real: RealTokenizer, adapter: str, cell: str, real_stand_ins: Callable[[RealTokenizer], StandIn]) -> None:
    stand_in = real_stand_ins(real)
    desk = Desk(stand_in.family, stand_in, ADAPTERS[adapter](stand_in))
    try:
        CELLS[cell](desk)
    finally:
        desk.adapter.close()


@pytest.mark.parametrize("place", PLACES)
@each_tokenizer
def test_structure_stays(real: RealTokenizer, place: str, real_stand_ins: Callable[[RealTokenizer], StandIn]) -> None:
    stand_in = real_stand_ins(real)
    text = f"alpha {' and '.join(stand_in.family.all_markers)} omega"
    harmless = markers_in(prompt_ids(stand_in, request_with("nowhere", "")), stand_in)
    assert markers_in(prompt_ids(stand_in, request_with(place, text)), stand_in) == harmless
