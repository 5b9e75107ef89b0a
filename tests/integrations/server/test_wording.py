"""Clients learn of an error what they can do about it, and nothing of the server's files, addresses or code."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eft_engine import errors
from eft_integrations.backends.scripted import Broken, ScriptedBackend
from eft_integrations.server.errors import error_fields, kind_of
from eft_integrations.server.seen.wording import clean, told
from tests.integrations.server.serving import in_process

FIELDS: dict[str, Any] = {
    "member": "base", "source": "s", "needed_bytes": 1, "available_bytes": 1, "device": "cpu", "token_id": 1, "prompt_len": 1,
    "context_len": 1, "name": "n", "known": (), "value": 1, "position": 1, "max_bytes": 1, "num_queued": 1, "limit": 1,
    "text": "t", "rank": 0, "status": None, "pid": 1, "differences": (), "num_differences": 0,
}  # fmt: skip
SECRETS = [
    "/home/eft/models/base/config.json",
    "/srv/models/llama-70b",
    "~/.cache/huggingface/hub",
    r"C:\Users\eft\models",
    r"\\files\models\base",
    "http://10.1.2.3:8000/v1",
    "https://gpu-7.internal/v1/models",
    "file:///data/keys.txt",
    "/opt/venv/lib/python3.11/site-packages/torch/nn/modules/module.py",
    "site-packages/transformers/modeling_utils.py:123",
    "alloc_cpu.cpp:121",
    "models/base/model.safetensors",
]


def every_error() -> list[type[errors.EFTError]]:
    """All types of the engine's errors."""
    found = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.EFTError)]
    return sorted(found, key=lambda kind: kind.__name__)


def made(kind: type[errors.EFTError], message: str) -> errors.EFTError:
    """An error of a type, with whatever fields it wants."""
    wanted = inspect.signature(kind.__init__).parameters
    return kind(
        message,
        **{name: FIELDS[name] for name, own in wanted.items() if own.kind is own.KEYWORD_ONLY and name in FIELDS},
    )


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("secret", SECRETS)
def test_no_type_of_error_tells_a_place(kind: type[errors.EFTError], secret: str) -> None:
    for message in (f"cannot read {secret}", f"[{secret}] is lost", f"'{secret}': no, see {secret}, and {secret}:12"):
        said = str(error_fields(made(kind, message))["message"])
        assert secret not in said, said
        assert not any(part in said for part in ("eft/models", "10.1.2.3", "internal", "site-packages", "huggingface"))


@settings(max_examples=300, deadline=None)
@given(
    words=st.lists(
        st.sampled_from(["the", "error in", "(", '"', "'", ":", "at", "\n", "got", "=", "<", "[1]"]), max_size=8
    ),
    folders=st.lists(st.from_regex(r"[A-Za-z0-9._-]{1,12}", fullmatch=True), min_size=1, max_size=5),
    root=st.sampled_from(["home", "usr", "srv", "tmp", "data", "work", "mnt", "root", "Users", "var"]),
    kind=st.sampled_from(every_error()),
)
def test_no_path_comes_through_whatever_stands_around_it(
    words: list[str], folders: list[str], root: str, kind: type[errors.EFTError]
) -> None:
    path = f"/{root}/" + "/".join(folders)
    around = " ".join(words)
    for message in (
        f"{around} {path}",
        f"{path} {around}",
        f"{around}({path})",
        f"{around}={path}:7",
        f"[{path!r}]{around}",
    ):
        assert f"/{root}/" not in str(error_fields(made(kind, message))["message"])


@pytest.mark.parametrize(
    "message",
    [
        "the prompt has 5003 tokens and the context holds 512, so there is no room for an answer; shorten the prompt",
        "there is no pair 'other'; 'm' has 'chat'",
        "response_format: at #/properties/home/items: 'x/y' is no type",
        "at /properties/data/anyOf/0: 3/4 of them; a.b.c, messages.0.content and 'application/json'",
        "tool_choice names 'search/web'; use either/or, and/or",
        "logit_bias has the token id 1000000000, and the vocabulary has the ids 0 to 259; leave it out",
    ],
)
def test_what_a_caller_can_mend_is_told_as_it_is(message: str) -> None:
    assert clean(message) == message
    assert told(errors.InvalidOptionError(message)) == message


def test_types_that_the_server_is_at_fault_for_are_told_by_a_sentence() -> None:
    for kind in every_error():
        said = told(made(kind, "whatever it says"))
        if kind_of(made(kind, "")).status >= 500 and kind not in (errors.EFTError, errors.GenerationError):
            own = issubclass(kind, errors.NonFiniteLogitsError | errors.OutputError)
            assert (said == "whatever it says") == own, kind.__name__
    assert told(ValueError("inside")) == "the server failed; its log says why"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
async def test_no_answer_tells_a_place_whole_or_streamed(path: str) -> None:
    asked: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
        "/v1/completions": {"prompt": "hi"},
        "/v1/responses": {"input": "hi"},
    }
    failures = [
        errors.LoadError("no config.json in /srv/models/base"),
        errors.RemoteServerError("http://inside:8000/v1 cannot be reached", status=None),
        errors.ChatTemplateError("line 3 of /srv/models/base/chat_template.jinja"),
        OSError(2, "No such file", "/srv/models/base"),
    ]
    for error in failures:
        backend = ScriptedBackend([error, error, Broken("one two", error, after=1)])
        async with in_process({"m": backend}) as client:
            for stream in (False, True, True):
                response = await client.post(path, json={"model": "m", "stream": stream, **asked[path]})
                assert "error" in response.text
                assert "/srv" not in response.text
                assert "inside" not in response.text
