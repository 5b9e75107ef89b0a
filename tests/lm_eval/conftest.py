"""A toy trio, tasks in files of this machine, and nothing of any hub."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_EVALUATE_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

import pytest

from eft_engine import Engine
from eft_integrations.lm_eval import register
from tests.toy import ToyTrio, make_trio

if importlib.util.find_spec("lm_eval") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    register()

CHOICES = [
    {"question": "The cat sat on the", "choices": [" mat", " moon and slept", " é"], "answer": 0},
    {"question": "Once upon a ", "choices": ["time", "table"], "answer": 1},
]


@pytest.fixture(scope="session")
def judge() -> ToyTrio:
    """Three models without an engine."""
    return make_trio("llama")


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The engine of the same three models."""
    with make_trio("llama").engine(max_num_seqs=4) as own:
        yield own


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tasks: choices, whole texts, and answers."""
    folder = tmp_path_factory.mktemp("tasks")
    lines = "".join(json.dumps({**own, "text": own["question"] + own["choices"][0]}) + "\n" for own in CHOICES)
    (folder / "data.jsonl").write_text(lines, encoding="utf-8")
    data = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder / 'data.jsonl'}\ntest_split: test\n"
    (folder / "choices.yaml").write_text(
        f"task: toy_choices\n{data}output_type: multiple_choice\ndoc_to_text: '{{{{question}}}}'\n"
        "doc_to_choice: '{{choices}}'\ndoc_to_target: '{{answer}}'\ntarget_delimiter: ''\nmetric_list:\n  - metric: acc\n"
    )
    (folder / "texts.yaml").write_text(
        f"task: toy_texts\n{data}output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{{{text}}}}'\n"
        "metric_list:\n  - metric: word_perplexity\n  - metric: bits_per_byte\n"
    )
    (folder / "answers.yaml").write_text(
        f"task: toy_answers\n{data}output_type: generate_until\ndoc_to_text: '{{{{question}}}}'\n"
        "doc_to_target: '{{choices[0]}}'\n"
        "generation_kwargs:\n  until: ['\\n']\n  max_gen_toks: 8\n  do_sample: false\nmetric_list:\n  - metric: exact_match\n"
    )
    return folder
