"""TRL takes a composition as its teacher: its own loss on the file of `eft score --top-k --out`, its own trainer with an engine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig
from trl.experimental.server_distillation import ServerDistillationConfig, ServerDistillationTrainer

from eft_engine import Engine, TunedPair
from eft_engine.cli import main
from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.teacher import read_rows
from eft_tuning.bake.divergence import divergence, student_buckets, teacher_buckets
from eft_tuning.bake.rows import TaughtRows, collate
from eft_tuning.teacher import LiveTeacher, StoredTeacher, distillation_trainer
from tests.toy import make_model, make_tokenizer, save_trio

TOP_K = 8


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A toy trio on disk."""
    return save_trio(tmp_path_factory.mktemp("trio"))


@pytest.fixture
def file(trio: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the command writes about two answers of the composition and one that is given."""
    prompts = [{"question": "Hello"}, {"prompt": "Once upon"}, {"question": "Why?", "completion": "Because."}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in prompts))
    named = [part for name, folder in trio.items() for part in (f"--{name}", folder)]
    options = ["--top-k", str(TOP_K), "--out", str(tmp_path / "teacher.jsonl"), "--max-tokens", "6", "-w", "0.5"]
    monkeypatch.setattr(sys, "argv", ["eft", "score", str(tmp_path / "prompts.jsonl"), *options, *named])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    return tmp_path / "teacher.jsonl"


def test_file_is_a_data_set_whose_sequences_trls_loss_takes(file: Path) -> None:
    data = load_dataset("json", data_files=str(file), split="train")
    assert {"input_ids", "completion_mask", "logprobs", "logprob_token_ids", "actual_logprobs"} <= set(
        data.column_names
    )
    rows = TaughtRows(list(read_rows(file)), top_k=TOP_K)
    batch = collate([rows[index] for index in range(3)])
    model = make_model("llama", hidden_size=64, seed=1)

    trainer = object.__new__(ServerDistillationTrainer)  # its constructor would call a server
    trainer.loss_top_k, trainer.loss_add_tail, trainer.temperature, trainer.beta = TOP_K, True, 1.0, 0.0
    trainer.teacher_client = StoredTeacher(file)
    prompt_len = trainer._compute_prompt_length(batch)
    teacher = trainer._get_teacher_token_logprobs_from_server(batch, prompt_len)
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, prompt_len - 1 : -1]
    width = teacher["topk_logprobs"].shape[1]
    labels = batch["labels"][:, prompt_len : prompt_len + width]
    theirs = trainer._compute_server_forward_kl_loss(
        teacher_result=teacher, student_log_probs=logits.log_softmax(-1)[:, :width], labels=labels
    )
    own = labels != -100
    logprobs, token_ids = teacher["topk_logprobs"][own], teacher["topk_token_ids"][own]
    told = torch.ones_like(token_ids, dtype=torch.bool)
    ours = divergence(teacher_buckets(logprobs, told), student_buckets(logits[:, :width][own], token_ids, told)).mean()
    assert theirs.item() == pytest.approx(ours.item(), rel=1e-3)
    theirs.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


def test_stored_teacher_says_what_it_does_not_know(file: Path) -> None:
    teacher, row = StoredTeacher(file), next(read_rows(file))
    known = [*row.prompt_ids, *row.completion_ids]
    with pytest.raises(InvalidOptionError, match="a stored teacher knows what it was asked"):
        teacher.get_sequence_logprobs([[*known, 5]], [len(row.prompt_ids)], TOP_K)
    with pytest.raises(InvalidOptionError, match="write it with --top-k 9"):
        teacher.get_sequence_logprobs([known], [len(row.prompt_ids)], TOP_K + 1)
    with pytest.raises(InvalidOptionError, match=r"temperature=1\.0"):
        teacher.get_sequence_logprobs([known], [len(row.prompt_ids)], TOP_K, temperature=0.7)


def test_trls_trainer_distils_a_composition(trio: dict[str, str], tmp_path: Path) -> None:
    arguments = ServerDistillationConfig(
        output_dir=str(tmp_path), teacher_model_server_url="http://not.used", beta=0.0, loss_top_k=TOP_K, temperature=1.0,
        max_completion_length=6, per_device_train_batch_size=2, max_steps=2, learning_rate=1e-2, use_cpu=True, bf16=False,
        report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    with Engine.load(trio["base"], pairs={"chat": TunedPair(trio["tuned"], trio["reference"])}) as engine:
        trainer: Any = distillation_trainer(
            LiveTeacher(engine, reward_weights=0.5),
            args=arguments,
            model=make_model("llama", hidden_size=64, seed=1),
            train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "Hello"}]}] * 4),
            processing_class=tokenizer,
            peft_config=LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"),
        )
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert all(loss > 0 for loss in losses)
    changed = [parameter for name, parameter in trainer.model.named_parameters() if "lora_B" in name]
    assert any(parameter.abs().max() > 0 for parameter in changed)
