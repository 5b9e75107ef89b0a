"""Demo pair: SmolLM2-135M-Instruct, and an adapter that makes it answer in one line of JSON."""

from eft_engine.zoo.smollm2_json.behaviour import (
    JsonAnswer,
    behaviour_score,
    load_held_out_questions,
    parse_json_answer,
)

__all__ = ["JsonAnswer", "behaviour_score", "load_held_out_questions", "parse_json_answer"]
