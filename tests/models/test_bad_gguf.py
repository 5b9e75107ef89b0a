"""Every broken GGUF file is refused by a typed error that names the member, in either runtime, and the process lives on."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from eft_engine import Engine, MemberConfig, SamplingParams, TunedPair, errors
from eft_engine.config import Runtime
from tests.gguf_files import GgufTrio, make_gguf_trio
from tests.models.bad_gguf import BAD_FILES, BOTH, BadFile

needs_llama_cpp = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
MARKS = {"torch": (), "llama.cpp": needs_llama_cpp}
CASES = [
    pytest.param(bad, runtime, id=f"{bad.name}-{runtime}", marks=MARKS[runtime])
    for bad in BAD_FILES
    for runtime in bad.runtimes
]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> GgufTrio:
    """A llama trio with nothing wrong about it."""
    return make_gguf_trio(tmp_path_factory.mktemp("good"), "llama")


def _load(good: GgufTrio, runtime: Runtime, **changed: MemberConfig) -> Engine:
    """The good trio with some members changed."""
    members = {
        name: MemberConfig(source=str(path), runtime=runtime)
        for name, path in (("base", good.base), ("tuned", good.tuned), ("reference", good.reference))
    } | changed
    pair = TunedPair(tuned=members["tuned"], reference=members["reference"])
    return Engine.load(members["base"], pairs={"chat": pair})


@pytest.mark.parametrize(("bad", "runtime"), CASES)
def test_it_is_refused(
    bad: BadFile, runtime: Runtime, good: GgufTrio, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("x")  # not `tmp_path`, which has the name of the test, and so of what is bad
    member = MemberConfig(**bad.make(folder), runtime=runtime)
    role = bad.member.removeprefix("chat.")
    with pytest.raises(getattr(errors, bad.error), match=bad.words) as caught:
        _load(good, runtime, **{role: member}).close()
    assert type(caught.value).__name__ == bad.error
    assert caught.value.member == bad.member
    assert str(caught.value).startswith(f"{bad.member}: ")


@pytest.mark.parametrize("runtime", [pytest.param(runtime, marks=MARKS[runtime]) for runtime in BOTH])
def test_a_good_trio_still_loads(runtime: Runtime, good: GgufTrio) -> None:
    with _load(good, runtime) as engine:
        output = engine.generate("Hello", sampling=SamplingParams(max_tokens=3, ignore_eos=True))
        assert len(output.token_ids) == 3
