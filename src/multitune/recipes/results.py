"""Shows finished nodes where readers look for them: run folders of variants, scoreboards, model cards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multitune.recipes.cards import estimator_card, merge_card, model_card
from multitune.recipes.graph import EstimatorNode, MergeNode, ScoreNode, TrainNode, build
from multitune.recipes.merge_search import SEARCH_FILE
from multitune.recipes.run_folder import RunFolder, write_whole
from multitune.recipes.sweep import Variant
from multitune.recipes.sweep_folder import link_results
from multitune.recipes.work import Work


class Results:
    """What stands of a run.

    Args:
        variants: of the sweep; of a plain run its recipe.
        folders: their run folders.
        works: all nodes.
        scoreboard: of the run; in a sweep that of all variants.
        swept: whether the nodes lie in folders of their own.

    Attributes:
        finished: keys of the nodes that are done.
    """

    def __init__(
        self,
        variants: Sequence[Variant],
        folders: Sequence[RunFolder],
        works: Sequence[Work],
        scoreboard: Path,
        *,
        swept: bool,
    ) -> None:
        self.variants = variants
        self.folders = folders
        self.works = works
        self.scoreboard = scoreboard
        self.swept = swept
        self.finished: set[str] = set()
        self._measured: dict[str, list[dict[str, Any]]] = {}
        self._candidates: dict[str, dict[str, list[dict[str, Any]]]] = {}

    def show(self, works: Sequence[Work], *, new: bool) -> None:
        """Take in finished nodes.

        Args:
            works: the nodes.
            new: whether they were done just now: then a model's card learns its scores.
        """
        self.finished |= {work.key for work in works}
        scored = [work for work in works if isinstance(work.node, ScoreNode)]
        for work in scored:
            written = (work.place / "scores.json").read_text(encoding="utf-8")
            self._measured[work.key] = json.loads(written)["rows"]
            if new and self._tells_the_card(work):
                self._write_card(work)
        merged = [work for work in works if isinstance(work.node, MergeNode)]
        searched = [work for work in merged if (work.place / SEARCH_FILE).is_file()]
        for work in searched:
            told = json.loads((work.place / SEARCH_FILE).read_text(encoding="utf-8"))
            self._candidates[work.key] = {one["name"]: one["rows"] for one in told["candidates"]}
        if self.swept:
            self._link(works)
        if scored or searched:
            self._write_scoreboards({index for work in (*scored, *searched) for index in work.variants})

    # -- model cards ---------------------------------------------------------------------------------------------------

    def _tells_the_card(self, work: Work) -> bool:
        """Whether a model's card shows these scores: the ones every model gets, of the first variant that has it.

        Where the model is a link, the run is a variant that is run by itself, and the card belongs to its sweep.
        """
        model = work.models[work.node.model] if isinstance(work.node, ScoreNode) else None
        if model is None or model.is_symlink() or not (model / "README.md").exists():
            return False
        own = [w for w in self.works if w.needs == work.needs and w.node.name == f"{work.node.reads[0]}@score"]
        return own[:1] == [work]

    def _write_card(self, work: Work) -> None:
        recipe = self.variants[work.variant].recipe
        assert isinstance(work.node, ScoreNode)
        model = work.models[work.node.model]
        assert model is not None
        facts = json.loads((model.parent / "artifact.json").read_text(encoding="utf-8"))
        made = next(node for node in build(recipe) if node.name == work.node.model)
        if isinstance(made, MergeNode):
            card = merge_card(recipe, made, model, facts, self._measured[work.key])
        elif isinstance(made, EstimatorNode):
            card = estimator_card(recipe, made, facts, self._measured[work.key])
        else:
            assert isinstance(made, TrainNode)
            card = model_card(recipe, made, model, facts, self._measured[work.key])
        write_whole(model / "README.md", card)

    # -- run folders of variants ---------------------------------------------------------------------------------------

    def _link(self, works: Sequence[Work]) -> None:
        """Lead the steps of variants to the nodes' folders."""
        changed = {self.folders[index].node(node.name) for work in works for index, node in work.users}
        places: dict[Path, list[Path]] = {}
        for work in self.works:
            for index, node in work.users:
                step = self.folders[index].node(node.name)
                if step in changed and work.key in self.finished:
                    places.setdefault(step, []).append(work.place)
        for step, found in places.items():
            link_results(step, found)

    # -- scoreboards ---------------------------------------------------------------------------------------------------

    def _write_scoreboards(self, changed: set[int]) -> None:
        from multitune.scoring.scoreboard import Scoreboard

        for index in sorted(changed):
            Scoreboard(self._rows(index)).save(self.folders[index].scoreboard)
        if self.swept:
            rows = [
                row | {"variant": variant.name}
                for index, variant in enumerate(self.variants)
                for row in self._rows(index)
            ]
            Scoreboard(rows).save(self.scoreboard)

    def _rows(self, index: int) -> list[dict[str, Any]]:
        """Return the scoreboard's rows of a variant, in the order of its nodes."""
        from multitune.scoring.scoreboard import score_rows

        recipe = self.variants[index].recipe
        order = [node.name for node in build(recipe)]
        scored = [
            (order.index(node.name), node, self._measured[work.key])
            for work in self.works
            for i, node in work.users
            if i == index and work.key in self._measured and isinstance(node, ScoreNode)
        ]
        rows = []
        for _, node, measured in sorted(scored, key=lambda one: one[0]):
            step = node.name.removesuffix("@score")
            rows += score_rows(measured, run=recipe.name, step=step, model=node.model, seed=recipe.seed)
        for work in self.works:
            for step in (node.name for i, node in work.users if i == index and work.key in self._candidates):
                for name, measured in self._candidates[work.key].items():
                    rows += score_rows(
                        measured, run=recipe.name, step=f"{step}@{name}", model=f"{step}@{name}", seed=recipe.seed
                    )
        return rows
