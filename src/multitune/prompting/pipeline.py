"""PCP from beginning to end: few labels, pseudo-labels, corpus, continued pre-training, few labels again.

Every stage leaves a folder of its own and is not done twice:

    1-few-shot       fine-tuned on the labelled rows from the original checkpoint; also the answer without PCP
    2-labels         a label for every unlabelled row, by 1-few-shot or by hand
    3-corpus         train.txt and development.txt, one line a row
    4-pretrained     the original checkpoint, pre-trained further on the corpus
    5-fine-tuned     4-pretrained, fine-tuned on the labelled rows
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multitune.errors import MultituneError
from multitune.models.config import ModelConfig
from multitune.prompting.config import FineTuning, Pretraining, Way
from multitune.prompting.corpus import CorpusKind, build_corpus, histogram
from multitune.prompting.encoding import PromptEncoder, encoder_of
from multitune.prompting.learning import agreement, continue_pretraining, digest, fine_tune, predict
from multitune.prompting.sampling import split
from multitune.prompting.template import Row, Template, cleaned
from multitune.prompting.verbalizer import Verbalizer

logger = logging.getLogger("multitune.prompting")

RESULTS_VERSION = 1
"""Raised when the same settings would give other results, so that kept stages are not taken for new ones."""

Labelled = tuple[Sequence[Row], Sequence[float]]
"""Rows, and their classes or values."""


@dataclass(frozen=True)
class Prompt:
    """What is asked and how it is answered.

    Attributes:
        template, verbalizer: fields, mask, words.
        soft: whether template and label words become tokens of their own.
        causal: whether the label word continues the text (an extension: the paper has masked models).
    """

    template: Template
    verbalizer: Verbalizer
    soft: bool = False
    causal: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return what is saved beside a model, so that it can be asked again."""
        told = {"template": self.template.text, "words": self.verbalizer.mapping, "bounds": self.verbalizer.bounds}
        return {**told, "soft": self.soft, "causal": self.causal}


@dataclass(frozen=True)
class Data:
    """Rows by what they are for; no row of ``test`` is ever trained on, labelled or not.

    Attributes:
        train, development: labelled rows, and their classes or values.
        unlabelled: rows that get pseudo-labels.
        gold: classes or values of the unlabelled rows, for the fully supervised setting.
        test: labelled rows that are only scored.
    """

    train: Labelled
    development: Labelled
    unlabelled: Sequence[Row]
    gold: Sequence[float] | None = None
    test: Labelled = field(default=((), ()))


def pcp_pipeline(
    model: ModelConfig,
    prompt: Prompt,
    data: Data,
    fine_tuning: FineTuning,
    pretraining: Pretraining,
    folder: Path,
    *,
    seed: int,
    way: Way = "pcp",
    held_out: float = 0.1,
) -> dict[str, Any]:
    """Return what every stage found; stages that stand already are not done again.

    Args:
        model: the original checkpoint. Both fine-tunings and the pre-training begin at it: the last one through
            4-pretrained, never through 1-few-shot.
        prompt: the same for both fine-tunings and for the corpus.
        data: labelled and unlabelled rows.
        fine_tuning, pretraining: how.
        folder: of the stages.
        seed: of the split, the order, the masks, dropout.
        way: ``pcp``, ``tapt`` for the baseline on raw texts, or ``none`` for the first stage alone.
        held_out: share of the unlabelled rows on which the pre-training's loss is looked at.

    Returns:
        by stage: ``few_shot`` and ``fine_tuned`` with the scores on development and test rows, ``labels`` with the
        histogram of words, ``corpus`` with numbers of lines,
        ``pretrained`` with steps, best loss and the score without any fine-tuning behind it (``zero_shot``).

    Raises:
        MultituneError: see the functions that it calls.
        Interrupted: after SIGINT or SIGTERM, when the checkpoint is whole; the same call goes on.
    """
    run = _Run(model.model_copy(update={"dtype": "float32"}), prompt, data, fine_tuning, pretraining, folder, seed)
    rows, gold = _without_test(data)
    if way != "none" and len(rows) < 2:
        raise MultituneError(
            "There are no unlabelled texts.", "unlabelled", "Give rows that are not in the test split."
        )
    facts: dict[str, Any] = {}
    base = digest([RESULTS_VERSION, run.model.model_dump(mode="json"), prompt.as_json(), list(map(list, data.train))])
    facts["few_shot"], few_shot = run.stage("1-few-shot", [base, _told(fine_tuning)], run.few_shot)
    if way == "none":
        _write(folder / "result.json", facts)
        return facts
    parts = split(len(rows), held_out, seed)
    kind: CorpusKind = "pcp" if way == "pcp" else "tapt"
    labels: list[float] = []
    upstream: list[Any] = [base, way, [dict(row) for row in rows]]
    if way == "pcp":
        facts["labels"], found = run.stage(
            "2-labels", [few_shot, gold, *upstream], lambda at: run.label(at, rows, gold)
        )
        labels = [float(each) for each in json.loads((run.folder / "2-labels" / "labels.json").read_text())]
        upstream.append(found)
    facts["corpus"], corpus = run.stage("3-corpus", upstream, lambda at: run.corpus(at, kind, rows, labels, parts))
    facts["pretrained"], pretrained = run.stage("4-pretrained", [corpus, _told(pretraining)], run.pretrain)
    facts["fine_tuned"], _ = run.stage("5-fine-tuned", [pretrained, _told(fine_tuning)], run.fine_tune_again)
    _write(folder / "result.json", facts)
    return facts


@dataclass(frozen=True)
class _Run:
    """What the stages share."""

    model: ModelConfig
    prompt: Prompt
    data: Data
    fine_tuning: FineTuning
    pretraining: Pretraining
    folder: Path
    seed: int

    def stage(self, name: str, identity: Any, do: Callable[[Path], dict[str, Any]]) -> tuple[dict[str, Any], str]:
        """Do a stage unless it stands; return its facts, and a digest of all that made it."""
        place, made_of = self.folder / name, digest([name, identity, self.seed, [list(map(list, self.data.test))]])
        if (done := _read(place / "done.json")) and done["fingerprint"] == made_of:
            logger.info("%s stands already", name)
            return done["facts"], made_of
        if (_read(place / "begun.json") or {}).get("fingerprint") != made_of:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            _write(place / "begun.json", {"fingerprint": made_of})
        (place / "done.json").unlink(missing_ok=True)
        logger.info("%s", name)
        facts = do(place)
        _write(place / "done.json", {"fingerprint": made_of, "facts": facts})
        for left in sorted(place.glob("work*")):  # checkpoints, which only take space now
            shutil.rmtree(left)
        return facts, made_of

    def few_shot(self, place: Path) -> dict[str, Any]:
        return self._fine_tuned(self.model, place)

    def fine_tune_again(self, place: Path) -> dict[str, Any]:
        start = self.model.model_copy(update={"name": str(self.folder / "4-pretrained" / "model")})
        return self._fine_tuned(start, place)

    def _fine_tuned(self, start: ModelConfig, place: Path) -> dict[str, Any]:
        model, encoder = self._opened(start, tuned=False)
        trained = fine_tune(
            model,
            encoder,
            self.data.train,
            self.data.development if self.data.development[0] else None,
            self.fine_tuning,
            place / "work",
            seed=self.seed,
        )
        _save(model, encoder, self.prompt, place / "model")
        score = {"development": trained.best, "test": self._score(model, encoder)}
        return {"steps": trained.steps, "best_step": trained.best_step, **score}

    def label(self, place: Path, rows: Sequence[Row], gold: Sequence[float] | None) -> dict[str, Any]:
        tuned = self.model.model_copy(update={"name": str(self.folder / "1-few-shot" / "model")})
        model, encoder = self._opened(tuned, tuned=True)
        found = list(gold) if gold is not None else predict(model, encoder, rows, self.fine_tuning.max_length)
        counts = histogram(found, encoder)
        logger.info("labels: %s", ", ".join(f"{word} {count}" for word, count in counts.items()))
        if max(counts.values()) == len(found):
            logger.warning("all %d texts got one label: what is learned from them can tell nothing apart", len(found))
        _write(place / "labels.json", found)
        return {"by": "gold" if gold is not None else "1-few-shot", "histogram": counts}

    def corpus(
        self,
        place: Path,
        kind: CorpusKind,
        rows: Sequence[Row],
        labels: list[float],
        parts: tuple[list[int], list[int]],
    ) -> dict[str, Any]:
        model, tokenizer = load_language_model(self.model, causal=self.prompt.causal)
        encoder = encoder_of(tokenizer, self.prompt.template, self.prompt.verbalizer, causal=self.prompt.causal)
        length = min(each for each in (self.pretraining.max_length, _positions(model), 100_000) if each)
        counts = {}
        for name, places in zip(("train", "development"), parts, strict=True):
            own = [labels[n] for n in places] if labels else []
            lines = build_corpus(kind, [rows[n] for n in places], encoder, own, max_length=length) if places else []
            _write_text(place / f"{name}.txt", "".join(f"{line}\n" for line in lines))
            counts[name] = len(lines)
        return counts

    def pretrain(self, place: Path) -> dict[str, Any]:
        model, tokenizer = load_language_model(self.model, causal=self.prompt.causal)
        lines = {
            name: (self.folder / "3-corpus" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
            for name in ("train", "development")
        }
        trained = continue_pretraining(
            model,
            tokenizer,
            lines["train"],
            self.pretraining,
            place / "work",
            seed=self.seed,
            development=lines["development"],
            causal=self.prompt.causal,
        )
        hard = encoder_of(tokenizer, self.prompt.template, self.prompt.verbalizer, causal=self.prompt.causal)
        _save(model, hard, self.prompt, place / "model")
        loss = {"development_loss": trained.best, "best_step": trained.best_step}
        return {"steps": trained.steps, **loss, "zero_shot": self._score(model, hard)}

    def _opened(self, start: ModelConfig, *, tuned: bool) -> tuple[Any, PromptEncoder]:
        """Load a model and the encoder of its prompt; the soft tokens are added where none were trained yet."""
        model, tokenizer = load_language_model(start, causal=self.prompt.causal)
        how = {"causal": self.prompt.causal, "soft": self.prompt.soft}
        if self.prompt.soft and not tuned:
            from multitune.prompting.soft import add_soft_tokens

            add_soft_tokens(model, tokenizer, self.prompt.template, self.prompt.verbalizer)
        return model, encoder_of(tokenizer, self.prompt.template, self.prompt.verbalizer, **how)

    def _score(self, model: Any, encoder: PromptEncoder) -> float | None:
        """Return the accuracy, or Pearson's correlation, on the test rows; None without any."""
        if not self.data.test[0]:
            return None
        found = predict(model, encoder, self.data.test[0], self.fine_tuning.max_length)
        return agreement(found, self.data.test[1], encoder)


def load_language_model(model: ModelConfig, *, causal: bool) -> tuple[Any, Any]:
    """Return model and tokenizer, the model with the head that fills masks, or that writes on.

    Raises:
        MultituneError: the model cannot be loaded, or has no such head.
    """
    if not causal:
        from multitune.models.masked_lm import load_masked_lm

        return load_masked_lm(model)
    from multitune.models.pretrained import load_pretrained

    backbone = load_pretrained(model.model_copy(update={"form": "causal"}))
    return backbone.model, backbone.tokenizer


def load_prompted(folder: Path) -> tuple[Any, PromptEncoder]:
    """Return a model that a stage saved, and the encoder of its prompt, ready for ``learning.predict``.

    Raises:
        MultituneError: no stage saved it.
    """
    from multitune.prompting.template import parse_template

    told = _read(folder / "prompt.json")
    if told is None:
        raise MultituneError("No prompt lies beside the model.", str(folder), "Name the model folder of a stage.")
    model, tokenizer = load_language_model(ModelConfig(name=str(folder)), causal=told["causal"])
    bounds = tuple(told["bounds"]) if told["bounds"] else None
    verbalizer = Verbalizer(tuple(told["words"]), tuple(told["words"].values()), bounds)
    soft = told["soft"] and (folder.parent.name != "4-pretrained")
    return model, encoder_of(tokenizer, parse_template(told["template"]), verbalizer, causal=told["causal"], soft=soft)


def _without_test(data: Data) -> tuple[list[Row], list[float] | None]:
    """Return the unlabelled rows without those whose texts stand in the test split, and their gold labels."""
    tested = {_texts(row) for row in data.test[0]}
    kept = [n for n, row in enumerate(data.unlabelled) if _texts(row) not in tested]
    if left_out := len(data.unlabelled) - len(kept):
        logger.warning("%d unlabelled rows stand in the test split too and are left out", left_out)
    gold = None if data.gold is None else [data.gold[n] for n in kept]
    return [data.unlabelled[n] for n in kept], gold


def _texts(row: Row) -> tuple[str, ...]:
    return tuple(cleaned(value) for value in row.values())


def _told(config: FineTuning | Pretraining) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude={"save_every"})


def _positions(model: Any) -> int | None:
    from multitune.models.positions import usable_positions

    return usable_positions(model)


def _save(model: Any, encoder: PromptEncoder, prompt: Prompt, folder: Path) -> None:
    """Write a model as transformers knows it, with the prompt beside it; whole or absent."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    encoder.tokenizer.save_pretrained(partial)
    _write(partial / "prompt.json", prompt.as_json())
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def _write(path: Path, value: Any) -> None:
    _write_text(path, json.dumps(value, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
