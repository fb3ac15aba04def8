"""The order of the house: who may import whom, and what may stand where."""

import ast
import builtins
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import gratis
from gratis.methods import METHODS
from gratis.names import METHOD_NUMBERS

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "gratis"

LAYERS = [
    {
        "names",
        "budget",
        "scaling",
        "balls",
        "losses",
        "figures",
        "checkpoint",
        "files",
        "launched",
        "held",
    }
    | {"batch", "metrics", "quantiser", "boxes", "trials", "clock", "gathered", "origins"},
    {"comm_hooks", "schema", "nn", "tasks", "run", "sections", "weights", "casts"},
    {"fits", "merging", "optim", "data", "prober", "recipe", "report", "distributed"},
    {"passes", "training_data"},
    {"attacks"},
    {"methods", "evaluate"},
    {"learner"},
    {"journal", "unfinished", "compiling", "precision", "graphs"},
    {"capturing"},
    {"setting"},
    {"answers", "detection", "asked"},
    {"guard", "assess"},
    {"transfer", "pseudo", "shifts"},
    {"training"},
    {"train", "terminal", "lr_range", "verify", "pictures", "given", "export"},
    {"reproduce"},
    {"cli"},
    {"__main__"},
]
"""Low to high: a file imports from strictly lower layers or from its own package."""

LAYER = {part: height for height, parts in enumerate(LAYERS) for part in parts}
FILES = {str(p.relative_to(SOURCE)): ast.parse(p.read_text()) for p in SOURCE.rglob("*.py")}

files = pytest.mark.parametrize("file", sorted(FILES))


def part_of(file: str) -> str:
    """The top-level module or package of a file: attacks/pgd.py is part of attacks."""
    return file.split("/")[0].removesuffix(".py")


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def nodes(tree: ast.AST, *, at_import: bool) -> Iterator[ast.AST]:
    """Every node; with at_import those that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        later = isinstance(node, ast.FunctionDef | ast.Lambda) or is_type_checking(node)
        if not (at_import and later):
            yield node
            yield from nodes(node, at_import=at_import)


def imports(tree: ast.AST, *, at_import: bool = False) -> set[str]:
    """Dotted names of the modules that are imported, and of what is taken from them."""
    found = set()
    for node in nodes(tree, at_import=at_import):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_parts(names: set[str]) -> set[str]:
    """The parts of gratis among imported names; "__init__" for a public name of the package."""
    parts = {name.split(".")[1] for name in names if name.startswith("gratis.")}
    return {part if part in LAYER else "__init__" for part in parts}


def calls(tree: ast.AST) -> set[str]:
    """What is called, as written without arguments: print, loss.backward."""
    return {
        ast.unparse(node.func)
        for node in nodes(tree, at_import=False)
        if isinstance(node, ast.Call)
    }


# --- layers


def test_every_part_has_its_layer_and_every_layer_its_parts() -> None:
    assert {part_of(file) for file in FILES} - {"__init__"} == set(LAYER)
    assert len(LAYER) == sum(map(len, LAYERS))


@files
def test_imports_come_from_lower_layers(file: str) -> None:
    part = part_of(file)
    # recipe names methods and balls, but must not import torch before they are asked for;
    # the package itself loads its public names when they are first used
    found = own_parts(imports(FILES[file], at_import=part in ("recipe", "__init__")))
    if part == "__init__":
        assert not found
    else:
        assert {p for p in found - {part} if LAYER.get(p, 99) >= LAYER[part]} == set()


def test_the_check_itself_sees_what_it_should() -> None:
    tree = ast.parse(
        "from typing import TYPE_CHECKING\n"
        "from gratis import cli\n"
        "from gratis.balls import Linf\n"
        "if TYPE_CHECKING:\n    from gratis.train import run\n"
        "def f():\n    import gratis.learner\n    print(1); loss.backward()\n"
    )
    assert own_parts(imports(tree, at_import=True)) == {"cli", "balls"}
    assert own_parts(imports(tree)) == {"cli", "balls", "train", "learner"}
    assert calls(tree) == {"print", "loss.backward"}


# --- what may stand where


@files
def test_only_the_command_line_prints(file: str) -> None:
    assert part_of(file) == "cli" or "print" not in calls(FILES[file])


@pytest.mark.parametrize("file", sorted(f for f in FILES if f.startswith("methods/")))
def test_methods_own_no_backward_and_no_optimizer(file: str) -> None:
    assert not [call for call in calls(FILES[file]) if call.endswith(".backward")]
    text = ast.unparse(FILES[file])
    assert "torch.optim" not in text
    assert "optimizer" not in {n.id for n in ast.walk(FILES[file]) if isinstance(n, ast.Name)}


@pytest.mark.parametrize("file", ["figures.py", *(f for f in FILES if f.startswith("report/"))])
def test_reports_never_import_torch(file: str) -> None:
    assert not [name for name in imports(FILES[file]) if name.split(".")[0] == "torch"]


@pytest.mark.parametrize(
    "file",
    [
        "names.py",
        "reproduce/__init__.py",
        "reproduce/console.py",
        "reproduce/drawings.py",
        "reproduce/outcome.py",
        "reproduce/page.py",
        "reproduce/cells.py",
        "reproduce/columns.py",
        "reproduce/papers.py",
        "reproduce/settings.py",
        "scaling.py",
        "schema.py",
        "sections/__init__.py",
        "checkpoint.py",
        "recipe.py",
        "run.py",
        "terminal.py",
        "cli/__init__.py",
        "cli/arguments.py",
        "cli/judging.py",
        "cli/judging_arguments.py",
        "cli/kinds.py",
        "cli/paths.py",
        "cli/training.py",
        "cli/training_arguments.py",
        "__init__.py",
    ],
)
def test_quick_answers_import_torch_late_if_at_all(file: str) -> None:
    found = imports(FILES[file], at_import=True)
    assert not [name for name in found if name.split(".")[0] in ("torch", "torchvision")]


@files
def test_collectives_stand_in_two_files(file: str) -> None:
    if file not in ("distributed.py", "comm_hooks.py"):
        assert "torch.distributed" not in ast.unparse(FILES[file])
        assert not [n for n in imports(FILES[file]) if n.startswith("torch.distributed")]


# --- names


def test_every_method_has_a_name_and_every_name_a_method() -> None:
    assert METHODS.keys() == METHOD_NUMBERS.keys()


def test_public_names_are_stated_once_and_load() -> None:
    assert set(gratis.__all__) == {*gratis._HOMES, "__version__"}
    assert len(set(gratis.__all__)) == len(gratis.__all__)
    assert dir(gratis) == sorted(gratis.__all__)
    for name, home in gratis._HOMES.items():
        assert getattr(gratis, name) is getattr(importlib.import_module(home), name)
    with pytest.raises(AttributeError, match="has no attribute 'Fre'"):
        gratis.Fre  # noqa: B018


def test_type_checkers_see_the_same_public_names() -> None:
    (block,) = [node for node in FILES["__init__.py"].body if is_type_checking(node)]
    assert imports(block) == {f"{home}.{name}" for name, home in gratis._HOMES.items()}


@pytest.mark.parametrize(
    "package", ["attacks", "data", "evaluate", "methods", "nn", "optim", "verify"]
)
def test_packages_export_what_they_say(package: str) -> None:
    module = importlib.import_module(f"gratis.{package}")
    assert all(hasattr(module, name) for name in module.__all__)


def test_the_readme_names_only_what_there_is() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    inline = "\n".join(re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text))
    named = {
        name.strip()
        for line in re.findall(r"from gratis import (.+)", code)
        for name in line.split(",")
    }
    named |= set(re.findall(r"\bgratis\.([A-Za-z_]\w*)", code + inline))
    called = set(re.findall(r"(?<![\w.])([A-Za-z_]\w*)\(", code + inline)) - set(dir(builtins))
    named |= {name for name in called if "_" in name or name[0].isupper()}  # not model(x)
    assert named - set(gratis.__all__) == set()
    assert not text or "robust_accuracy" in named
