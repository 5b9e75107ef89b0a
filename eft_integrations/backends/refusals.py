"""What servers say instead of answers, as this package's errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from eft_engine import errors


@dataclass(frozen=True)
class Refusal:
    """What a server says instead of an answer: by a status, or by an event of a stream (`status` is None then)."""

    status: int | None
    message: str
    code: str | int | None = None
    param: str | None = None

    @classmethod
    def of(cls, response: httpx.Response) -> Refusal:
        """Out of an answer in OpenAI's form, or of any other one."""
        try:
            body = response.json()
        except ValueError:
            body = None
        error = body.get("error") if isinstance(body, Mapping) else None
        if not isinstance(error, Mapping):
            return cls(response.status_code, response.text[:300])
        return cls(response.status_code, str(error.get("message")), error.get("code"), error.get("param"))

    @classmethod
    def of_event(cls, error: object) -> Refusal:
        """Out of the last event of a stream that failed; some servers write the status as its code."""
        if not isinstance(error, Mapping):
            return cls(None, str(error))
        code = error.get("code")
        return cls(code if isinstance(code, int) else None, str(error.get("message")), code, error.get("param"))

    def meaning(self) -> errors.EFTError:
        """What the status means.

        ModelNotFoundError: 404. InvalidOptionError: another refusal of what was asked. RemoteServerError: anything else.
        """
        if self.status == 404:
            return errors.ModelNotFoundError(self.message)
        if self.status in (400, 413, 422):
            return errors.InvalidOptionError(self.message, option=self.param)
        hint = "; give the api_key that it wants" if self.status in (401, 403) else ""
        said = "failed" if self.status is None else f"answered {self.status}"
        return errors.RemoteServerError(f"the server {said}: {self.message}{hint}", status=self.status)


# ---- codes of eft serve ---------------------------------------------------------------------------------------------------

TOO_LONG = re.compile(r"prompt has ([\d,]+) tokens and .*?(?:the context holds|a context of) ([\d,]+)")
TOO_MANY = re.compile(
    r"([\d,]+) (?:requests wait .*max_queued_requests is|answers are in hand .*there is room for"
    r"|(?:answers in hand|tokens in flight) .*(?:one key may have|it may have)) ([\d,]+)"
)
FULL_CODES = frozenset({"rate_limit_exceeded", "key_limit_exceeded"})
TOO_LARGE = re.compile(r"need ([\d,]+) bytes .*allows ([\d,]+)")

PLAIN_ERRORS: Mapping[str, type[errors.EFTError]] = {
    "invalid_grammar": errors.InvalidGrammarError,
    "invalid_messages": errors.ChatTemplateError,
    "unknown_token": errors.RequestError,
    "empty_prompt": errors.EmptyPromptError,
    "out_of_memory": errors.StepOutOfMemoryError,
    "generation_failed": errors.GenerationError,
    "kv_cache_budget_exceeded": errors.GenerationError,
}
"""Errors without numbers, by the server's code."""
INVALID_CODES = frozenset(
    {
        "invalid_value", "unknown_pair", "invalid_weight", "weight_forbidden", "prompt_pairs_forbidden",
        "min_plausibility_forbidden", "tuned_plausibility_forbidden", "too_many_answers", "too_many_tokens",
        "too_many_prompt_pairs",
    }
)  # fmt: skip


def _numbers(pattern: re.Pattern[str], message: str) -> tuple[int, int] | None:
    found = pattern.search(message)
    return None if found is None else (int(found[1].replace(",", "")), int(found[2].replace(",", "")))


def eft_meaning(refusal: Refusal, context_len: int) -> errors.EFTError:
    """The engine's error out of the code of `eft serve`; its numbers stand in the message, as the engine wrote it."""
    message, code = refusal.message, refusal.code
    if code == "context_length_exceeded":  # at least as many, if it does not say
        prompt_len, limit = _numbers(TOO_LONG, message) or (context_len, context_len)
        return errors.ContextOverflowError(message, prompt_len=prompt_len, context_len=limit)
    if code in FULL_CODES and (numbers := _numbers(TOO_MANY, message)):
        return errors.QueueFullError(message, num_queued=numbers[0], limit=numbers[1])
    if code == "kv_cache_budget_exceeded" and (numbers := _numbers(TOO_LARGE, message)):
        return errors.KVCacheBudgetError(message, needed_bytes=numbers[0], max_bytes=numbers[1])
    if isinstance(code, str) and code in PLAIN_ERRORS:
        return PLAIN_ERRORS[code](message)
    if isinstance(code, str) and code in INVALID_CODES:
        return errors.InvalidOptionError(message, option=refusal.param)
    return refusal.meaning()
