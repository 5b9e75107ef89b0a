"""The table of docs/families.md is that of the present templates."""

from __future__ import annotations

from tests.families.imitations import FAMILIES
from tests.families.table import PAGE, page


def test_page_has_the_present_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text, "run: python -m tests.families.table --write"


def test_every_template_says_what_is_peculiar_to_it() -> None:
    assert all(family.remarks for family in FAMILIES)
