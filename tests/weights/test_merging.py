"""Merges from folders to folders."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from multitune.errors import MultituneError
from multitune.weights.config import MergeConfig
from multitune.weights.merging import merge
from multitune.weights.methods import METHODS, merge_tensors
from multitune.weights.parameters import METHOD_PARAMETERS, WITHOUT_BASE
from multitune.weights.writing import Writer
from tests.weights.folders import family, random_tensors, read, write


def config_of(method: str, base: Path, models: list[Path], **fields: object) -> MergeConfig:
    models = models[: {"passthrough": 1, "half_reset": 1, "slerp": 2}.get(method, len(models))]
    own_base = None if method in WITHOUT_BASE else str(base)
    return MergeConfig(method=method, base=own_base, models=[str(each) for each in models], **fields)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "half_reset"])  # draws over all tensors
def test_files_merge_as_tensors_do(method: str, tmp_path: Path) -> None:
    base, models = family(tmp_path, 3, shards=2)
    by_tensor = {"granularity": "layer"} if "granularity" in METHOD_PARAMETERS[method] else {}
    config = config_of(method, base, models, parameters=by_tensor)
    merge(config, tmp_path / "out")
    weights, tensors = [read(each) for each in models], read(base)
    result = read(tmp_path / "out")
    assert result.keys() == tensors.keys()
    for name, values in result.items():
        reference = torch.zeros_like(tensors[name]) if config.base is None else tensors[name]
        deltas = [each[name] - reference for each in weights[: len(config.models)]]
        assert torch.equal(values, merge_tensors(method, reference, deltas, by_tensor, name=name)), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_and_threads_change_no_bit(method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base, models = family(tmp_path, 3, dtype, width=70)  # tensors of several blocks, with an odd rest
    config = config_of(method, base, models)
    first = None
    for number, (chunk, threads) in enumerate([(4096, 1), (8192, 3), (1 << 20, 2)]):
        merge(config, tmp_path / str(number), chunk=chunk, threads=threads)
        written = (tmp_path / str(number) / "model.safetensors").read_bytes()
        first = first or written
        assert written == first


def test_the_result_keeps_types_companions_and_tells_its_making(tmp_path: Path) -> None:
    base, models = family(tmp_path, 2, torch.bfloat16)
    (base / "tokenizer.json").write_text("{}")
    (base / "chat_template.jinja").write_text("{{ messages }}")
    (base / "modeling_own.py").write_text("raise SystemExit")
    report = merge(config_of("task_arithmetic", base, models), tmp_path / "out")
    out = tmp_path / "out"
    assert {tensor.dtype for tensor in read(out).values()} == {torch.bfloat16}
    assert sorted(file.name for file in out.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    header = (out / "model.safetensors").read_bytes()
    metadata = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]
    assert json.loads(metadata["merge"])["method"] == "task_arithmetic"
    assert [told["model"] for told in json.loads(metadata["inputs"])] == ["base", "model0", "model1"]
    assert str(tmp_path) not in json.dumps(metadata), "equal merges have equal bytes, wherever their models lie"
    assert report.tensors == len(read(out))
    assert report.bytes_written == sum(tensor.nbytes for tensor in read(out).values())
    assert report.parameters["lm_head.weight"] == {"weight": [1.0, 1.0], "lambda": 1.0, "normalize": 0.0}


def test_the_output_type_can_be_chosen(tmp_path: Path) -> None:
    base, models = family(tmp_path, 2, torch.bfloat16)
    merge(config_of("linear", base, models, dtype="float32"), tmp_path / "out")
    values = read(tmp_path / "out")["lm_head.weight"]
    assert values.dtype == torch.float32
    assert torch.equal(values, sum(read(each)["lm_head.weight"].float() for each in models) / 2)


def test_integers_are_copied_where_equal_and_refused_where_not(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / name, {"a.weight": torch.ones(3), "steps": torch.tensor([7, number])})
        for name, number in (("base", 1), ("same", 1), ("other", 2))
    ]
    merge(config_of("task_arithmetic", paths[0], paths[1:2]), tmp_path / "out")
    assert read(tmp_path / "out")["steps"].tolist() == [7, 1]
    with pytest.raises(MultituneError, match=r"'steps' is I64 and differs"):
        merge(config_of("task_arithmetic", paths[0], paths[1:]), tmp_path / "out2")
    assert not (tmp_path / "out2").exists()
    assert not (tmp_path / ".out2.partial").exists()


def test_negation_unlearns(tmp_path: Path) -> None:
    base, models = family(tmp_path, 1)
    merge(config_of("task_arithmetic", base, models, parameters={"weight": -1.0}), tmp_path / "out")
    before, tuned, after = read(base), read(models[0]), read(tmp_path / "out")
    for name in before:
        torch.testing.assert_close(after[name], 2 * before[name] - tuned[name])


def killed(config: MergeConfig, out: Path, monkeypatch: pytest.MonkeyPatch, after: int = 5) -> None:
    """Merge until so many tensors are written, and stop there as a kill would."""
    close, count = Writer.close_tensor, iter(range(after))

    def close_a_few(self: Writer, name: str) -> None:
        if next(count, None) is None:
            raise KeyboardInterrupt
        close(self, name)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Writer, "close_tensor", close_a_few)
        merge(config, out, threads=1)
    assert not out.exists()


def test_a_killed_merge_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, models = family(tmp_path, 2)
    config = config_of("ties", base, models)
    merge(config, tmp_path / "whole")
    killed(config, tmp_path / "out", monkeypatch)
    report = merge(config, tmp_path / "out")
    assert report.resumed == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "model0", "model1", "out", "whole"]
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_what_lies_beside_the_weights_decides_too_whether_a_merge_goes_on(tmp_path: Path, monkeypatch) -> None:
    base, models = family(tmp_path, 2)
    config = config_of("linear", base, models)
    killed(config, tmp_path / "out", monkeypatch)
    (models[0] / "tokenizer.json").write_text("{}")
    assert merge(config, tmp_path / "out").resumed == 0


def test_two_merges_do_not_write_to_one_folder(tmp_path: Path) -> None:
    base, models = family(tmp_path, 2)
    refused: list[str] = []

    def second(done: int, total: int) -> None:
        if not refused:
            with pytest.raises(MultituneError) as error:
                merge(config_of("ties", base, models), tmp_path / "out")
            refused.append(error.value.what)

    merge(config_of("linear", base, models), tmp_path / "out", progress=second)
    assert refused == ["Another merge is writing to this folder."]
    merge(config_of("linear", base, models), tmp_path / "again")
    assert read(tmp_path / "out").keys() == read(tmp_path / "again").keys()
    for name, tensor in read(tmp_path / "out").items():
        assert torch.equal(tensor, read(tmp_path / "again")[name])


def test_a_result_below_a_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    base, models = family(tmp_path, 2)
    (tmp_path / "file").write_text("")
    with pytest.raises(MultituneError, match="cannot be written"):
        merge(config_of("linear", base, models), tmp_path / "file" / "out")


def test_norms_of_what_is_not_finite_blame_the_model(tmp_path: Path) -> None:
    base, models = family(tmp_path, 2)
    tensors = read(models[1])
    tensors["lm_head.weight"][0, 0] = float("nan")
    write(models[1], tensors)
    with pytest.raises(MultituneError, match="not finite") as error:
        merge(config_of("task_arithmetic", base, models, lines={"alpha": "norm"}), tmp_path / "out")
    assert error.value.where == str(models[1])


def test_what_does_not_have_its_checksum_is_written_again(tmp_path: Path) -> None:
    base, models = family(tmp_path, 2)
    config = config_of("ties", base, models)
    merge(config, tmp_path / "whole")

    def stop_at_end(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(config, tmp_path / "out", progress=stop_at_end)
    partial = tmp_path / ".out.partial" / "model.safetensors"
    with partial.open("r+b") as file:
        file.seek(-16, os.SEEK_END)
        file.write(bytes(16))
    report = merge(config, tmp_path / "out")
    assert report.resumed == report.tensors - 1
    written = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert written == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_integers_that_only_some_models_hold_are_no_obstacle(tmp_path: Path) -> None:
    """Older libraries saved position ids beside the weights."""
    ids = torch.arange(5)[None]
    base = write(tmp_path / "base", random_tensors(0) | {"model.position_ids": ids})
    others = [{}, {"model.counts": ids}]
    models = [write(tmp_path / f"m{n}", random_tensors(n + 1) | other) for n, other in enumerate(others)]
    report = merge(config_of("task_arithmetic", base, models), tmp_path / "out")
    assert torch.equal(read(tmp_path / "out")["model.position_ids"], ids)
    assert report.left_out == {"m1: model.counts": "integers that the result does not need"}
