"""Where every tensor of a checkpoint stands: its layer, its category and its part, from names and shapes alone.

A stack is a list of numbered modules that are alike, found by its module path: the outermost such list on the way to a
tensor. The first number in a name proves nothing: it may count an expert, a convolution or a member of a Sequential.

Rules by architecture, where a name leaves a choice:

- encoder-decoder models have two stacks, each counted from its own 0;
- stages (Swin, ResNet, ConvNeXt) are one stack that counts the blocks through; what stands beside the blocks of a stage
  (its downsampling) belongs to the stage's last block;
- fused matrices are one tensor with one part: ``qkv`` (GPT-2, BLOOM, Phi-3), ``gate_up`` (Phi-3, fused experts);
- norms of queries and keys are norms; a router is ``other``, as are tables of relative positions inside a layer;
- experts are told apart by ``group``: "experts.3", "shared_expert"; cross-attention has the group "cross".
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Category = Literal["attention", "feed_forward", "norm", "embedding", "head", "other"]

PARTS: dict[Category, dict[str, tuple[str, ...]]] = {
    "attention": {
        "q": ("q", "q_proj", "query", "query_proj", "q_lin", "q_b_proj", "wq"),
        "k": ("k", "k_proj", "key", "key_proj", "k_lin", "wk"),
        "v": ("v", "v_proj", "value", "value_proj", "v_lin", "wv"),
        "o": ("o", "o_proj", "out_proj", "out_lin", "dense", "c_proj", "proj", "wo", "to_out"),
        "qkv": ("qkv", "qkv_proj", "query_key_value", "c_attn", "wqkv", "in_proj"),
        "kv": ("kv", "kv_proj", "kv_b_proj"),
    },
    "feed_forward": {
        "up": ("up_proj", "up", "fc1", "fc_in", "c_fc", "wi", "wi_1", "w3", "lin1", "linear1", "dense_h_to_4h"),
        "gate": ("gate_proj", "gate", "wi_0", "w1"),
        "down": ("down_proj", "down", "fc2", "fc_out", "c_proj", "wo", "w2", "lin2", "linear2", "dense_4h_to_h"),
        "gate_up": ("gate_up_proj", "gate_up"),
    },
}
"""Part -> the names that libraries give the module, in lower case."""

ATTENTION = re.compile(r"attn|attention")
FEED_FORWARD = re.compile(r"mlp|ffn|feed_?forward|^ff$|densereludense|intermediate|^output$|expert|moe")
NORM = re.compile(r"norm|layrnorm|^ln(_?\w{1,5})?$|^bn\d*$|_ln$")
EMBEDDING = re.compile(r"embed|^wte$|^wpe$|^shared$|_token$|^conv1$")
HEAD = re.compile(
    r"^(lm_|\w+_)?heads?$|^classifier$|^score$|^cls$|^pooler$|^qa_outputs$|_projection$|^proj$|^fc$|^summary$"
)
CROSS = re.compile(r"cross|encdec|encoder_attn")
ROUTER = re.compile(r"^router$|^wg$|expert_gate$")
RELATIVE = re.compile(r"relative|rel_pos")
LEAF = re.compile(r"[._](weight|bias)$")


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where a tensor stands in its model.

    Attributes:
        name: as in the state dict.
        stack: module path of the layer list; "" outside every list (and for a list that is the model itself).
        layer: position in the stack, from 0; None outside.
        layers: how many the stack has; 0 outside.
        category: what kind of tensor it is.
        part: which matrix of attention or feed-forward; None where the name is unknown, and for other categories.
        group: tells several networks of one category in one layer apart; mostly "".
    """

    name: str
    stack: str
    layer: int | None
    layers: int
    category: Category
    part: str | None
    group: str = ""

    @property
    def unit(self) -> str:
        """The matrix or norm that the tensor belongs to: its name without a last ``weight`` or ``bias``."""
        return LEAF.sub("", self.name)


def architecture_index(
    shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any] | None = None
) -> dict[str, TensorPlace]:
    """Return the place of every tensor, in the order of ``shapes``; the order changes nothing else.

    Args:
        shapes: the names of a state dict with their shapes.
        config: the parsed ``config.json``; where it ties the word embeddings, an output layer that is listed
            nevertheless counts as the embedding that it is.
    """
    stacks = _stacks(shapes)
    matrices = {LEAF.sub("", name) for name, shape in shapes.items() if len(shape) > 1}
    mixtures = {name.split(".experts.")[0] for name in shapes if ".experts." in name}
    tied = bool(config and config.get("tie_word_embeddings"))
    places = {}
    for name in shapes:
        stack, layer, layers = _layer_of(name, stacks)
        inner = LEAF.sub("", name.removeprefix(f"{stack}.") if layer is not None else name).lower().split(".")
        unit = LEAF.sub("", name)
        lone_vector = len(shapes[name]) == 1 and name.endswith(".weight") and unit not in matrices
        is_router = inner[-1] == "gate" and unit.rpartition(".")[0] in mixtures
        category = _category(inner, layer is not None, lone_vector, is_router)
        if tied and name.split(".")[-2:] in (["lm_head", "weight"], ["decoder", "weight"]) and category == "head":
            category = "embedding"
        places[name] = TensorPlace(
            name, stack, layer, layers, category, _part(category, inner), _group(category, inner)
        )
    return places


def _category(inner: list[str], in_layer: bool, lone_vector: bool, is_router: bool) -> Category:
    """Name the category from the lower-case path below the layer, or the whole path outside.

    A weight that is a vector is a norm's, whatever its name.
    """
    last = inner[-1]
    if lone_vector or any(NORM.search(word) for word in inner[-2:]):
        return "norm"
    if in_layer:
        if is_router or ROUTER.search(last) or any(RELATIVE.search(word) for word in inner):
            return "other"
        if any(ATTENTION.search(word) for word in inner):
            return "attention"
        if any(last in names for names in PARTS["feed_forward"].values()):
            return "feed_forward"
        if any(FEED_FORWARD.search(word) for word in inner):
            return "feed_forward"
        return "other"
    if any(HEAD.search(word) for word in inner):
        return "head"
    if any(EMBEDDING.search(word) for word in inner):
        return "embedding"
    return "other"


def _part(category: Category, inner: list[str]) -> str | None:
    last = inner[-1]
    if category == "feed_forward" and last == "dense":  # BERT names the halves of its feed-forward by their module
        return {"intermediate": "up", "output": "down"}.get(inner[-2]) if len(inner) > 1 else None
    if category == "feed_forward" and inner[-2:] == ["mlp", "wi"]:  # ModernBERT's is gate and up in one
        return "gate_up"
    for part, names in PARTS.get(category, {}).items():
        if last in names:
            return part
    return None


def _group(category: Category, inner: list[str]) -> str:
    if category == "attention" and any(CROSS.search(word) for word in inner):
        return "cross"
    if category == "feed_forward":
        for position, word in enumerate(inner[:-1]):
            if word == "experts" and inner[position + 1].isdigit():
                return f"experts.{inner[position + 1]}"
            if word.startswith("shared_expert"):
                return "shared_expert"
            if word == "experts":
                return "experts"
    return ""


@dataclass(frozen=True, slots=True)
class _Stack:
    """A list of layers: the number of the layer for every path below the list that opens one."""

    layer_of_path: Mapping[str, int]
    layers: int


def _layer_of(name: str, stacks: Mapping[str, _Stack]) -> tuple[str, int | None, int]:
    words = name.split(".")
    for position in range(len(words) - 1):
        stack = ".".join(words[:position])
        if stack in stacks and words[position].isdigit():
            found = stacks[stack]
            # the block of a stage if the tensor lies in one, else what the stage itself stands for
            for end in range(len(words), position, -1):
                layer = found.layer_of_path.get(".".join(words[:end]))
                if layer is not None:
                    return stack, layer, found.layers
    return "", None, 0


def _stacks(names: Mapping[str, Any]) -> dict[str, _Stack]:
    """Return the outermost lists of alike children by module path."""
    lists: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in names:
        words = name.split(".")
        for position, word in enumerate(words):
            if word.isdigit():
                below = ".".join("#" if each.isdigit() else each for each in words[position + 1 :])
                lists[".".join(words[:position])][word].add(below)
    alike = {path: children for path, children in lists.items() if _are_alike(children)}
    # Sequential heads and single convolutions are lists of bare layers: they are stacks only where nothing deeper is
    deep = {path: c for path, c in alike.items() if any("." in below for names in c.values() for below in names)}
    candidates = deep or {path: c for path, c in alike.items() if len(c) > 1}
    candidates = {path: c for path, c in candidates.items() if len(c) > 1 or not _holds_longer(path, c, candidates)}
    outermost = [path for path in candidates if not any(_is_below(path, other) for other in candidates)]
    return {path: _numbered(path, candidates[path], candidates) for path in sorted(outermost)}


def _are_alike(children: Mapping[str, set[str]]) -> bool:
    """Tell whether every child shares at least half of its names with its siblings; an only child does."""
    if len(children) == 1:
        return True
    owners = Counter(name for names in children.values() for name in names)
    return all(2 * sum(owners[name] > 1 for name in names) >= len(names) for names in children.values())


def _is_below(path: str, other: str) -> bool:
    return path != other and (path.startswith(f"{other}.") or other == "")


def _holds_longer(
    path: str, children: Mapping[str, set[str]], candidates: Mapping[str, Mapping[str, set[str]]]
) -> bool:
    """Tell whether a list of one (a Sequential around a model) holds a list of several."""
    only = f"{path}.{next(iter(children))}".removeprefix(".")
    return any(len(inner) > 1 and inner_path.startswith(f"{only}.") for inner_path, inner in candidates.items())


def _numbered(path: str, children: Mapping[str, set[str]], candidates: Mapping[str, Mapping[str, set[str]]]) -> _Stack:
    """Number the children in the order of their numbers; of stages, the blocks within."""
    layer_of_path: dict[str, int] = {}
    count = 0
    for number in sorted(children, key=int):
        child = f"{path}.{number}".removeprefix(".")
        blocks_path = _blocks(child, children[number], candidates)
        blocks = sorted(candidates[blocks_path], key=int) if blocks_path else []
        for block in blocks:
            layer_of_path[f"{blocks_path}.{block}"] = count
            count += 1
        layer_of_path[child] = count - 1 if blocks else count
        count += 0 if blocks else 1
    return _Stack(layer_of_path, count)


def _blocks(child: str, names: set[str], candidates: Mapping[str, Mapping[str, set[str]]]) -> str | None:
    """Return the path of a stage's list of blocks, or None where the child is a layer itself.

    A stage is little more than its blocks: what lies beside them is fewer tensors than one block has. Beside a list of
    experts lies a whole attention.
    """
    for path in sorted(candidates):
        if path.startswith(f"{child}.") and "." not in path.removeprefix(f"{child}."):
            word = path.removeprefix(f"{child}.")
            block = max(len(each) for each in candidates[path].values())
            beside = sum(not each.startswith(f"{word}.#.") for each in names)
            if beside < block:
                return path
    return None
