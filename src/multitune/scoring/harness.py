"""A model of ours as lm-evaluation-harness asks it: likelihoods and generations through our own scorer.

The harness tokenises context and continuation as one text and splits behind the context's tokens; spaces at the end of
a context move to the continuation. Contexts that ask for several continuations are read once.

The package lm-eval (MIT, EleutherAI) has to be installed: importing this module needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from multitune.decoding.generate import generate
from multitune.decoding.prompt_batches import context_length
from multitune.errors import MultituneError
from multitune.models.tuners.task_ids import set_tasks
from multitune.scoring.choices import choice_scores

if TYPE_CHECKING:
    from multitune.models.loading import Backbone

Pair = tuple[tuple[str, str], list[int], list[int]]
"""(context, continuation), and the token ids of both."""

KNOWN_SETTINGS = {"do_sample", "temperature", "top_p", "until", "max_gen_toks"}


class HarnessModel(TemplateLM):
    """A causal or encoder-decoder model under the harness's interface.

    Args:
        backbone: as `load_saved` and `load_backbone` give it; adapters that route by task answer as their average.
        batch_tokens: tokens of a batch, padding included.
        seed: of sampling, where a task asks for it.

    Raises:
        MultituneError: the model is an encoder.
    """

    def __init__(self, backbone: Backbone, *, batch_tokens: int = 4096, seed: int = 0) -> None:
        super().__init__()
        if backbone.form == "encoder":
            raise MultituneError(
                "An encoder with heads neither continues texts nor writes them, which is what the harness asks for.",
                "--harness",
                "Take a causal or an encoder-decoder model, or score your own tasks with --tasks.",
            )
        self.backbone, self.tokenizer, self.backend = backbone, backbone.tokenizer, backbone.form
        self._batch_tokens, self._seed = batch_tokens, seed
        set_tasks(backbone.model, ["lm-evaluation-harness"])

    @property
    def eot_token_id(self) -> int:
        """The end of a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What a text without a context is read after: the beginning of a text, or its end."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def max_length(self) -> int:
        """Positions of the model."""
        return context_length(self.backbone.model)

    @property
    def tokenizer_name(self) -> str:
        """For the harness's cache of requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return a text's tokens; a text that begins with the token of a beginning gets no second one."""
        if add_special_tokens is None:
            add_special_tokens = not has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def _loglikelihood_tokens(self, requests: Sequence[Pair], **kwargs: Any) -> list[tuple[float, bool]]:
        """Return (log p of the continuation, whether greedy decoding writes it) of every request."""
        asked: dict[tuple[int, ...], list[int]] = {}
        for place, ((_, continuation), context_ids, ids) in enumerate(requests):
            if not ids:
                raise MultituneError(
                    f"The continuation {continuation!r} has no tokens.", "--harness", "Give the task's choices a text."
                )
            asked.setdefault(tuple(context_ids), []).append(place)
        found = choice_scores(
            self.backbone,
            [list(context) for context in asked],
            [[requests[place][2] for place in places] for places in asked.values()],
            batch_tokens=self._batch_tokens,
        )
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for places, (log_p_K, greedy_K) in zip(asked.values(), found, strict=True):
            for place, log_p, greedy in zip(places, log_p_K.tolist(), greedy_K.tolist(), strict=True):
                answers[place] = (log_p, greedy)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return log p of whole texts, read in windows of the model's positions."""
        windows: list[Pair] = []
        counts = []
        for (text,) in (request.args for request in requests):
            parts = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            own = [make_disjoint_window(part) for part in parts]
            windows += [((text, ""), list(context), list(predicted)) for context, predicted in own]
            counts.append(len(own))
        scores = iter(self._loglikelihood_tokens(windows))
        return [sum(next(scores)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what the model writes after every context, up to the first stop string.

        Raises:
            MultituneError: a task asks for a way of writing that is not known here.
        """
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(place)
        texts = [""] * len(requests)
        for places in groups.values():
            settings = dict(normalize_gen_kwargs(requests[places[0]].args[1], 256))
            if unknown := sorted(set(settings) - KNOWN_SETTINGS):
                raise MultituneError(
                    f"The task asks to generate with '{unknown[0]}', which is not known here.",
                    "generation_kwargs of the task",
                    f"Use {', '.join(sorted(KNOWN_SETTINGS))}.",
                )
            written = generate(
                self.backbone,
                [self.tok_encode(requests[place].args[0]) for place in places],
                max_new_tokens=int(settings["max_gen_toks"]),
                stop=tuple(stop for stop in settings["until"] if stop),
                batch_tokens=self._batch_tokens,
                temperature=float(settings.get("temperature") or 0.0),
                top_p=float(settings.get("top_p") or 1.0),
                seed=self._seed,
            )
            for place, text in zip(places, written, strict=True):
                texts[place] = text
        return texts

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a chat as the text that the model reads."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )
