"""The harness's tasks over a trio: in this process, and over a real server through `local-completions`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval.tasks import TaskManager

from eft_engine import Engine, SamplingParams
from eft_engine.cli import main
from eft_engine.errors import InvalidOptionError
from eft_integrations.backends.engine import EngineBackend
from eft_integrations.lm_eval.model import TrioLM
from tests.integrations.server.serving import running
from tests.lm_eval.conftest import CHOICES
from tests.toy import END_ID, ToyTrio

WEIGHT = 0.5


def evaluated(model: Any, tasks: Path, *names: str, **options: Any) -> dict[str, Any]:
    """Results and samples of tasks."""
    found = lm_eval.simple_evaluate(
        model, tasks=list(names), task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        log_samples=True, bootstrap_iters=0, **options,
    )  # fmt: skip
    assert found is not None
    return found


def answers_of(found: dict[str, Any], task: str) -> list[list[Any]]:
    """What the model answered to every request of a task, in the order of its documents."""
    samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
    return [[own[0] for own in sample["resps"]] for sample in samples]


@torch.inference_mode()
def judged(trio: ToyTrio, before: Sequence[int], behind: Sequence[int], weight: float) -> tuple[float, bool]:
    """Log-probability of tokens under the composition, and whether each is the most probable."""
    ids = torch.tensor([[*before, *behind]])
    base, tuned, reference = (
        model(ids).logits[0, len(before) - 1 : -1].log_softmax(dim=-1)
        for model in (trio.base, trio.tuned, trio.reference)
    )
    composed = (base + weight * (tuned - reference)).log_softmax(dim=-1)
    wanted = torch.tensor(list(behind))
    return float(composed.gather(-1, wanted[:, None]).sum()), bool((composed.argmax(dim=-1) == wanted).all())


def bytes_of(text: str, trio: ToyTrio) -> list[int]:
    """A text as tokens of the toy tokenizer."""
    return trio.tokenizer.encode(text, add_special_tokens=False)


def test_choices_have_the_log_probabilities_of_the_composition(engine: Engine, judge: ToyTrio, tasks: Path) -> None:
    found = evaluated(TrioLM(engine=engine, weight=WEIGHT), tasks, "toy_choices")
    for own, answers in zip(CHOICES, answers_of(found, "toy_choices"), strict=True):
        question = str(own["question"])
        spaces = len(question) - len(question.rstrip())
        for choice, (logprob, is_greedy) in zip(own["choices"], answers, strict=True):
            text = question[len(question) - spaces :] + choice
            want, greedy = judged(judge, bytes_of(question.rstrip(), judge), bytes_of(text, judge), WEIGHT)
            assert (logprob, is_greedy) == (pytest.approx(want, abs=1e-3), greedy)
    assert 0.0 <= found["results"]["toy_choices"]["acc,none"] <= 1.0


def test_weights_change_what_is_told(engine: Engine, judge: ToyTrio) -> None:
    before, behind = bytes_of("A cat", judge), bytes_of(" sat", judge)
    for weight, number in (("chat:1.5", 1.5), (0, 0.0), (None, 1.0)):
        ((logprob, _),) = TrioLM(engine=engine, weight=weight)._loglikelihood_tokens([(None, before, behind)])
        assert logprob == pytest.approx(judged(judge, before, behind, number)[0], abs=1e-3)


@torch.inference_mode()
def greedy(trio: ToyTrio, token_ids: Sequence[int], count: int) -> list[int]:
    """The most probable tokens behind these, one after the other."""
    found = list(token_ids)
    for _ in range(count):
        base, tuned, reference = (
            model(torch.tensor([found])).logits[0, -1].log_softmax(dim=-1)
            for model in (trio.base, trio.tuned, trio.reference)
        )
        found.append(int((base + WEIGHT * (tuned - reference)).argmax()))
    return found[len(token_ids) :]


def test_greedy_continuations_are_found(engine: Engine, judge: ToyTrio) -> None:
    before = bytes_of("A cat", judge)
    behind = greedy(judge, before, 3)
    ((_, is_greedy),) = TrioLM(engine=engine, weight=WEIGHT)._loglikelihood_tokens([(None, before, behind)])
    assert is_greedy


def test_whole_texts_are_scored_in_windows(engine: Engine, judge: ToyTrio, tasks: Path) -> None:
    found = evaluated(TrioLM(engine=engine, weight=WEIGHT), tasks, "toy_texts")
    for own, (logprob,) in zip(CHOICES, answers_of(found, "toy_texts"), strict=True):
        text = bytes_of(f"{own['question']}{own['choices'][0]}", judge)
        assert logprob == pytest.approx(judged(judge, [END_ID], text, WEIGHT)[0], abs=1e-3)
    long = "a long text " * 30
    windowed = TrioLM(engine=engine, weight=WEIGHT, max_length=64)
    request = type("Request", (), {"args": (long,)})
    ids = bytes_of(long, judge)
    (logprob,) = windowed.loglikelihood_rolling([request])
    want = judged(judge, [END_ID], ids[:63], WEIGHT)[0]
    for start in range(63, len(ids), 63):
        stop = min(start + 63, len(ids))
        context = ids[max(0, stop - 64) : start]
        want += judged(judge, context, ids[start:stop], WEIGHT)[0]
    assert logprob == pytest.approx(want, abs=1e-2)


def test_answers_are_the_engines_own_up_to_their_stop(engine: Engine, tasks: Path) -> None:
    found = evaluated(TrioLM(engine=engine, weight=WEIGHT), tasks, "toy_answers")
    for own, (text,) in zip(CHOICES, answers_of(found, "toy_answers"), strict=True):
        sampling = SamplingParams(max_tokens=8, temperature=0.0, stop=("\n",))
        want = engine.generate(str(own["question"]), sampling=sampling, reward_weights=WEIGHT).text
        assert text == want


def test_chat_templates_are_applied(engine: Engine, tasks: Path) -> None:
    model = TrioLM(engine=engine)
    assert model.apply_chat_template([{"role": "user", "content": "hi"}]) == "<|user|>hi<|end|><|assistant|>"
    found = evaluated(model, tasks, "toy_answers", apply_chat_template=True)
    arguments = found["samples"]["toy_answers"][0]["arguments"]
    assert "<|assistant|>" in str(arguments)


def test_what_cannot_be_done_is_said(engine: Engine) -> None:
    with pytest.raises(InvalidOptionError, match="pair:0.5"):
        TrioLM(engine=engine, weight="much")
    with pytest.raises(InvalidOptionError, match="one of them"):
        TrioLM(engine=engine, weight=1, weights=2)
    with pytest.raises(InvalidOptionError, match="base"):
        TrioLM()
    request = type("Request", (), {"args": ("a", {"until": [], "max_gen_toks": 8, "num_beams": 4})})
    with pytest.raises(InvalidOptionError, match="num_beams"):
        TrioLM(engine=engine).generate_until([request])
    with pytest.raises(InvalidOptionError, match="continuation"):
        TrioLM(engine=engine)._loglikelihood_tokens([(None, [1], [2] * 300)])


def test_local_completions_over_a_server_says_the_same(engine: Engine, tasks: Path) -> None:
    names = ("toy_choices", "toy_texts", "toy_answers")
    own = evaluated(TrioLM(engine=engine, weight=WEIGHT), tasks, *names)
    with running({"toy": EngineBackend.of(engine, model_name="toy")}) as url:
        arguments = {
            "model": f"toy@chat={WEIGHT}",
            "base_url": f"{url}/v1/completions",
            "max_length": 256,
            "batch_size": 2,
        }
        served = evaluated("local-completions", tasks, *names, model_args={**arguments, "tokenizer_backend": "remote"})
    for name in names:
        for here, there in zip(answers_of(own, name), answers_of(served, name), strict=True):
            for mine, other in zip(here, there, strict=True):
                if isinstance(mine, str):
                    assert mine == other
                else:
                    assert other == pytest.approx(mine, abs=1e-4)


def test_the_command_line_knows_the_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tasks: Path
) -> None:
    line = "eft lm-eval run --model eft --model_args preset=atlas,weight=0.5 --tasks toy_choices --limit 1"
    monkeypatch.setattr(sys, "argv", [*line.split(), "--include_path", str(tasks)])
    with contextlib.suppress(SystemExit):
        main()
    assert "toy_choices" in capsys.readouterr().out
