"""Atlas: a small trio that was trained for this package, and the forms that its tuned models answer in."""

from eft_engine.zoo.atlas.behaviour import ASSISTANT_FORM, FORMS, has_form
from eft_engine.zoo.atlas.held_out import QUESTION_FILES, FactQuestion, load_fact_questions

__all__ = ["ASSISTANT_FORM", "FORMS", "QUESTION_FILES", "FactQuestion", "has_form", "load_fact_questions"]
