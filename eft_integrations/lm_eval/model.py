"""The model: an engine of this process that answers what the harness's tasks ask."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs, postprocess_generated_text
from tqdm import tqdm

from eft_engine import EngineConfig, PromptOptions, TokenIds
from eft_engine.errors import InvalidOptionError
from eft_integrations.backends.trio_source import TrioSource
from eft_integrations.lm_eval.options import sampling_of, weights_of

if TYPE_CHECKING:
    from eft_engine import Engine

ItemT = TypeVar("ItemT")
DoneT = TypeVar("DoneT")
Scored = tuple[float, bool]
"""Log-probability of a continuation, and whether greedy decoding would write it."""

HARNESS_DEVICE = "cuda:0"
"""What the harness says where its user said nothing; the engine then chooses."""

logger = logging.getLogger(__name__)


class TrioLM(TemplateLM):  # type: ignore[misc]
    """A trio at fixed weights.

    Args:
        preset: a preset's name; or
        base, tuned, reference: the models of a trio with one pair, called `chat`.
        engine: or an engine that is loaded already.
        weight: a number for every pair, or `pair:0.5+other:1`; None: the pairs' own. `weights` is another name of it.
        max_length: most tokens of a text; None: the engine's context.
        max_gen_toks: most tokens of an answer where a task does not say.
        add_bos_token: whether texts begin with the tokenizer's start token; None: as the tokenizer has it.
        batch_size: requests in hand at once; None, `auto` and 1: as many as the engine steps together.
        think_end_token: the text that ends a thought; answers are what stands behind it.
        device: where the engine computes; `cuda:0` (the harness's default) and None: where it finds best.
        dtype, max_num_seqs, max_context_len, ...: of the engine (docs/configuration.md).

    Raises:
        InvalidOptionError: an argument is unknown or wrong.
        LoadError: as for `Engine.load`.
    """

    def __init__(
        self,
        *,
        preset: str | None = None,
        base: str | None = None,
        tuned: str | None = None,
        reference: str | None = None,
        engine: Engine | None = None,
        weight: object = None,
        weights: object = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        think_end_token: str | None = None,
        device: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if weight is not None and weights is not None:
            raise InvalidOptionError("weights is another name of weight; give one of them", option="weight")
        self._weights = weights_of(weight if weight is not None else weights)
        self._max_gen_toks = max_gen_toks
        self._add_bos_token = add_bos_token
        self._think_end_token = think_end_token
        if engine is None:
            placed: dict[str, Any] = {} if device in (None, HARNESS_DEVICE) else {"device": device}
            config = EngineConfig(**options, **placed)
            source = TrioSource.of(preset=preset, base=base, tuned=tuned, reference=reference, engine_config=config)
            self._name, self.engine = source.name, source.load()
        else:
            if options or preset or base or tuned or reference:
                raise InvalidOptionError("an engine is loaded already; give it alone, or what to load", option="engine")
            self._name, self.engine = "eft", engine
        self.max_length = min(max_length or self.engine.context_len, self.engine.context_len)
        size = 0 if batch_size is None or not str(batch_size).isdecimal() else int(batch_size)
        self.batch_size = size if size > 1 else self.engine.config.max_num_seqs

    # ---- tokens --------------------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        """What reads generated tokens, a tokenizer of transformers."""
        return self.engine.tokenizer

    @property
    def eot_token_id(self) -> int:
        """The token that ends texts."""
        return int(self._named("eos_token_id"))

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context: the token that begins texts, else the one that ends them."""
        found = getattr(self.tokenizer, "bos_token_id", None)
        return self.eot_token_id if found is None else int(found)

    def _named(self, name: str) -> Any:
        found = getattr(self.tokenizer, name, None)
        if found is None:
            raise InvalidOptionError(
                f"the tokenizer of {self._name} has no {name}, which the harness needs", option=name
            )
        return found

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **kwargs: Any
    ) -> list[int]:
        """A text as tokens; its last ones, where a length is given."""
        wanted = add_special_tokens if add_special_tokens is not None else self._add_bos_token
        if add_special_tokens is None and has_bos_prefix(string, getattr(self.tokenizer, "bos_token", None)):
            wanted = False
        options = PromptOptions(add_special_tokens=True if wanted is None else wanted)
        token_ids = self.engine.prompt_ids(string, prompt_options=options) if string else []
        return token_ids[-left_truncate_len:] if left_truncate_len else token_ids

    # ---- chats ---------------------------------------------------------------------------------------------------------

    @property
    def tokenizer_name(self) -> str:
        """What the harness calls the tokenizer where it stores what it has rendered."""
        return self._name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The text of the template, which is the tuned model's."""
        return self.engine.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text."""
        template = self.engine.chat_template
        if template is None:
            raise InvalidOptionError(
                f"{self._name} has no chat template; leave --apply_chat_template out", option="apply_chat_template"
            )
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                chat_template=template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    # ---- what tasks ask ------------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[Scored]:
        def score(request: tuple[Any, list[int], list[int]]) -> Scored:
            asked, context_ids, continuation_ids = request
            room = self.max_length - len(continuation_ids)
            if room < 1 or not continuation_ids:
                raise InvalidOptionError(
                    f"a continuation has {len(continuation_ids)} tokens; texts have 2 to {self.max_length}, one of them before it",
                    option="max_length",
                )
            if len(context_ids) > room:
                logger.warning("a context of %d tokens was cut to its last %d", len(context_ids), room)
            output = self.engine.score(
                TokenIds(ids=tuple(context_ids[-room:])),
                TokenIds(ids=tuple(continuation_ids)),
                reward_weights=self._weights,
                every_member=False,
            )
            scored = output.composed, output.is_greedy
            if asked is not None:
                self.cache_hook.add_partial("loglikelihood", asked, scored)
            return scored

        return self._all(score, requests, "Scoring continuations", disable_tqdm)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probabilities of whole texts, in windows as long as the context."""

        def score(text: str) -> float:
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1,
                context_len=1,
            )
            parts = [(None, *utils.make_disjoint_window(window)) for window in windows]
            found = sum(logprob for logprob, _ in self._loglikelihood_tokens(parts, disable_tqdm=True))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), found)
            return found

        return [score(request.args[0]) for request in tqdm(requests, desc="Scoring texts", disable=disable_tqdm)]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers to prompts, each up to one of its stop texts."""

        def answer(asked: tuple[str, dict[str, Any]]) -> str:
            context, gen_kwargs = asked
            wanted = normalize_gen_kwargs(gen_kwargs, self._max_gen_toks)
            stop = handle_stop_sequences(wanted.get("until"), eos=str(self._named("eos_token")))
            room = self.max_length - int(wanted["max_gen_toks"])
            if room < 1:
                raise InvalidOptionError(
                    f"max_gen_toks={wanted['max_gen_toks']} leaves no room for a prompt in {self.max_length} tokens",
                    option="max_gen_toks",
                )
            token_ids = self.tok_encode(context) or [self.prefix_token_id]
            if len(token_ids) > room:
                logger.warning("a prompt of %d tokens was cut to its last %d", len(token_ids), room)
            output = self.engine.generate(
                TokenIds(ids=tuple(token_ids[-room:])),
                sampling=sampling_of(dict(wanted), stop=stop),
                reward_weights=self._weights,
            )
            text = str(postprocess_generated_text(output.text, stop, self._think_end_token))
            self.cache_hook.add_partial("generate_until", (context, gen_kwargs), text)
            return text

        return self._all(answer, [request.args for request in requests], "Writing answers", disable_tqdm)

    def _all(
        self, work: Callable[[ItemT], DoneT], items: Sequence[ItemT], name: str, disable_tqdm: bool
    ) -> list[DoneT]:
        """The engine steps together what comes from several threads. The first error ends all."""
        with ThreadPoolExecutor(self.batch_size, thread_name_prefix="lm-eval") as threads:
            try:
                done: Iterable[DoneT] = threads.map(work, items)
                return list(tqdm(done, total=len(items), desc=name, disable=disable_tqdm))
            except BaseException:
                threads.shutdown(wait=True, cancel_futures=True)
                raise
