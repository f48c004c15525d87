"""What holds for the repository as a whole: floors, doors, sizes, safety, documentation, tested versions."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "multitune"
MODULES = sorted(SOURCE.rglob("*.py"))
OURS = sorted(path for folder in ("src", "tests", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# Loading these at the door would cost every command seconds.
HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "pyarrow", "pandas", "sklearn", "sacrebleu")
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
LONGEST_FILE = 450


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_floors_name_every_room():
    (contract,) = PROJECT["tool"]["importlinter"]["contracts"]
    named = {name.strip().removeprefix("multitune.") for layer in contract["layers"] for name in layer.split("|")}
    rooms = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert named == rooms | {"errors"}


def loaded_after(code: str) -> list[str]:
    """The heavy packages that a fresh interpreter holds after running the code."""
    script = f"{code}\nimport json, sys\nprint(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "module", ["multitune", *(f"multitune.{path.parent.name}" for path in sorted(SOURCE.glob("*/__init__.py")))]
)
def test_importing_a_room_loads_nothing_heavy(module):
    assert loaded_after(f"import {module}") == []


def test_reading_a_recipe_loads_nothing_heavy():
    code = "import multitune.recipes.loading\nfrom multitune.recipes.schema import json_schema\njson_schema()"
    assert loaded_after(code) == []


def test_help_loads_nothing_heavy():
    code = """
import multitune.cli
try:
    multitune.cli.main(["--help"])
except SystemExit:
    pass
"""
    assert loaded_after(code) == []


@pytest.mark.parametrize("path", OURS, ids=relative)
def test_files_are_short_enough_to_read(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= LONGEST_FILE, f"{relative(path)} has {lines} lines; cut it where its subject splits"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_sources_are_safe_and_annotated(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [complaint for node in ast.walk(tree) if (complaint := unsafe(node))]
    assert not found, f"{relative(path)}: {', '.join(found)}"
    futures = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    only_docstring = all(isinstance(node, ast.Expr) for node in tree.body)
    assert futures or only_docstring, f"{relative(path)} lacks `from __future__ import annotations`"


def unsafe(node: ast.AST) -> str:
    """What a node does that the house forbids, or ""."""
    match node:
        case ast.Import(names=names) if any(name.name.split(".")[0] in FORBIDDEN_IMPORTS for name in names):
            return f"line {node.lineno} imports {names[0].name}"
        case ast.ImportFrom(module=str(module)) if module.split(".")[0] in FORBIDDEN_IMPORTS:
            return f"line {node.lineno} imports {module}"
        case ast.Call(func=ast.Name(id=name)) if name in FORBIDDEN_CALLS:
            return f"line {node.lineno} calls {name}"
        case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load")):
            return f"line {node.lineno} calls torch.load"
        case ast.Call(func=ast.Attribute(value=ast.Name(id="yaml"), attr="load" | "unsafe_load" | "full_load")):
            keywords = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "Loader"]
            return "" if keywords and "Safe" in keywords[0] else f"line {node.lineno} reads YAML unsafely"
        case ast.keyword(arg="trust_remote_code", value=ast.Constant(value=True)):
            return f"line {node.lineno} trusts remote code"
        case ast.keyword(arg="shell", value=ast.Constant(value=True)):
            return f"line {node.lineno} starts a shell"
    return ""


def test_no_room_is_a_drawer():
    drawers = {"utils", "util", "helpers", "common", "core", "base", "misc", "manager"}
    assert [relative(path) for path in MODULES if {path.stem, path.parent.name} & drawers] == []


def test_constraints_pin_what_the_project_names():
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    )
    assert pinned["torch"] == "2.13.0"
    assert not [version for version in pinned.values() if "+" in version or "/" in version]
    untested = {"bitsandbytes", "liger-kernel"}  # for GPUs; the tested set-up has none
    wanted = [*PROJECT["project"]["dependencies"]]
    wanted += [name for extra in PROJECT["project"]["optional-dependencies"].values() for name in extra]
    names = {re.split(r"[<>=!~ ;\[]", requirement)[0].lower() for requirement in wanted}
    assert names - untested - {name.lower() for name in pinned} == set()


def test_every_dependency_has_its_line_in_the_docs():
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").lower()
    wanted = [*PROJECT["project"]["dependencies"]]
    wanted += [name for extra in PROJECT["project"]["optional-dependencies"].values() for name in extra]
    names = {re.split(r"[<>=!~ ;\[]", requirement)[0].lower() for requirement in wanted}
    assert [name for name in sorted(names) if name not in page] == []


def test_the_package_carries_its_licence():
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["project"]["license"] == "Apache-2.0"


def source_phrases() -> str:
    """Every piece of text in the sources, one per line."""
    pieces = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                pieces.append(node.value)
    return "\n".join(pieces)


def quoted_messages() -> list[str]:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    return [line for block in re.findall(r"```text\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]


def test_the_messages_of_the_troubleshooting_page_exist():
    phrases = source_phrases()
    missing = [
        message for message in quoted_messages() if not all(part.strip(" '") in phrases for part in message.split("…"))
    ]
    assert missing == []


RECIPE_BLOCK = re.compile(r'```yaml title="([\w-]+\.yaml)"\n(.*?)```', re.DOTALL)
RECIPES = [
    pytest.param(text, id=f"{relative(page)}:{name}")
    for page in PAGES
    for name, text in RECIPE_BLOCK.findall(page.read_text(encoding="utf-8"))
    if name not in ("suite.yaml", "tune.yaml")
]


@pytest.mark.parametrize("text", RECIPES)
def test_recipes_in_the_documentation_are_valid(text, tmp_path):
    from multitune.recipes.loading import load

    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    for name in re.findall(r"[\w/-]+\.(?:jsonl|csv|parquet)", text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}\n", encoding="utf-8")
    load(path)


def test_the_prompt_in_the_documentation_is_valid(tmp_path):
    from multitune.recipes.prompt_file import prompt_of, read_prompt_file

    page = (ROOT / "docs" / "prompt-based-fine-tuning.md").read_text(encoding="utf-8")
    ((name, text),) = RECIPE_BLOCK.findall(page)
    (tmp_path / name).write_text(text, encoding="utf-8")
    prompt = prompt_of(read_prompt_file(tmp_path / name).prompt, causal=False)
    assert prompt.template.fields == ("text",) and prompt.verbalizer.words == ("terrible", "great")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*/recipe.yaml")), ids=relative)
def test_example_recipes_are_valid(path):
    from multitune.recipes.loading import load

    rows = '{generator: "synthetic:copy_letters"}'
    overrides = [] if path.parent.name != "instructions" else [f"tasks={{copy: {{train: {rows}, test: {rows}}}}}"]
    assert load(path, overrides, many=True).name == path.parent.name
