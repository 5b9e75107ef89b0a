"""What trios cannot do inside vLLM is refused when vLLM reads its configuration, before a model is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from tests.vllm.trios import CONTEXT_LEN, TrioFolders, save_trio


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> TrioFolders:
    return save_trio("llama", tmp_path_factory.mktemp("llama"))


def configure(trio: TrioFolders, overrides: dict[str, Any] | None = None, **options: Any) -> Any:
    """The whole configuration of a trio; nothing is loaded."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    arguments = EngineArgs(model=str(trio.base), hf_overrides=overrides or trio.overrides, dtype="float32", **options)
    return arguments.create_engine_config()


def test_plain_trio_is_configured(trio: TrioFolders) -> None:
    config = configure(trio)
    assert config.parallel_config.worker_cls.endswith("EFTCPUWorker")
    assert config.model_config.max_model_len == CONTEXT_LEN
    assert config.model_config.hf_config.head_dtype == "float32"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline parallelism"),
        ({"enable_lora": True}, "LoRA"),
        ({"enable_prompt_embeds": True}, "prompt embeddings"),
        ({"load_format": "sharded_state"}, "load format"),
        ({"max_model_len": CONTEXT_LEN + 1}, "max"),
    ],
)
def test_unsupported_option_is_refused(trio: TrioFolders, options: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        configure(trio, **options)


@pytest.mark.parametrize(
    ("eft", "message"),
    [
        (None, "needs its pairs"),
        ({"pairs": {}}, "eft.pairs"),
        ({"pairs": {"chat": {"tuned": "somewhere"}}}, "eft.pairs.chat.reference"),
        ({"pairs": {"chat": {"tuned": "a", "reference": "b", "scale": 1}}}, "eft.pairs.chat.scale"),
    ],
)
def test_wrong_pairs_are_refused(trio: TrioFolders, eft: Any, message: str) -> None:
    overrides = {"architectures": ["EFTForCausalLM"], **({} if eft is None else {"eft": eft})}
    with pytest.raises(Exception, match=message):
        configure(trio, overrides)


def test_eagle_is_refused() -> None:
    """The head of a drafter is read before vLLM asks us, so the check is asked by itself."""
    from types import SimpleNamespace

    from eft_integrations.vllm import checks

    fine = {"pipeline_parallel_size": 1, "prefill_context_parallel_size": 1, "use_ubatching": False}
    for method in ("eagle", "eagle3", "mtp", "medusa", "dflash", "suffix"):
        config = SimpleNamespace(
            parallel_config=SimpleNamespace(**fine),
            model_config=SimpleNamespace(enable_prompt_embeds=False, runner_type="generate"),
            speculative_config=SimpleNamespace(method=method),
            lora_config=None,
            load_config=SimpleNamespace(load_format="auto"),
        )
        with pytest.raises(ValueError, match=method):
            checks._refuse_unsupported(config)


def test_trio_is_no_longer_than_its_shortest_member(trio: TrioFolders, tmp_path: Any) -> None:
    import json
    import shutil

    tuned, reference = trio.pairs["chat"]
    short = tmp_path / "short"
    shutil.copytree(tuned, short)
    file = short / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "max_position_embeddings": 128}))
    pairs = {"chat": {"tuned": str(short), "reference": str(reference)}}
    config = configure(trio, {"architectures": ["EFTForCausalLM"], "eft": {"pairs": pairs}})
    assert config.model_config.max_model_len == 128
    with pytest.raises(Exception, match="more than the members allow"):
        configure(trio, {"architectures": ["EFTForCausalLM"], "eft": {"pairs": pairs}}, max_model_len=256)
