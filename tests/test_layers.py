"""The layering of the package: every file imports from its own level or lower, without cycles, and help stays light.

Levels are those of the parts directly below mgmae_cli/; a part that is not listed here fails the first test.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "mgmae_cli"
LEVELS = {
    "__init__": 0,
    "errors": 0,
    "grid": 0,
    "processor": 0,
    "seeds": 0,
    "yaml_files": 0,
    "explain": 0,
    "interfaces": 1,
    "hookspecs": 1,
    "config": 1,
    "model": 2,
    "motion": 2,
    "masking": 3,
    "video": 3,
    "registry": 4,
    "settings": 4,
    "engine": 5,
    "bench": 6,
    "downstream": 6,
    "diagnose": 6,
    "ablation": 7,
    "cli": 8,
    "__main__": 8,
}
HEAVY = {"torch", "torchvision", "timm", "numpy", "cv2", "decord", "pydantic", "pluggy", "matplotlib", "tensorboard"}


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in sorted(ROOT.rglob("*.py"))}


def part(module: str) -> str:
    """Return the part of the package that a module belongs to: 'masking' for mgmae_cli.masking.tube."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(module: str, when_loaded: bool) -> Iterator[str]:
    """Yield the modules of the package that a module imports.

    Args:
        when_loaded: only what runs as the module loads; leaves out functions and `if TYPE_CHECKING` blocks.
    """
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    pending: list[ast.AST] = [ast.parse(FILES[module].read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if when_loaded and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if when_loaded and isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending += node.orelse
            continue
        pending += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            above = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, (above, node.module)))
            named = [f"{source}.{alias.name}" if f"{source}.{alias.name}" in FILES else source for alias in node.names]
        else:
            continue
        yield from (name for name in named if name in FILES)


def cycle(graph: dict[str, set[str]]) -> str:
    """Return a cycle of a graph as 'a > b > a', or an empty string."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " > ".join(reversed(error.args[1]))
    return ""


def test_every_part_of_the_package_has_a_level() -> None:
    parts = {part(module) for module in FILES}
    assert parts <= set(LEVELS), f"give these parts a level in {Path(__file__).name}: {sorted(parts - set(LEVELS))}"


@pytest.mark.parametrize("module", FILES)
def test_a_file_imports_only_from_its_own_level_or_lower(module: str) -> None:
    level = LEVELS[part(module)]
    higher = [other for other in imports(module, when_loaded=False) if LEVELS[part(other)] > level]
    assert not higher, f"{module} (level {level}) imports {', '.join(higher)}"


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {module: set(imports(module, when_loaded=True)) - {module} for module in FILES}
    assert not cycle(graph)


def test_no_parts_of_the_package_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for module in FILES:
        others = {part(other) for other in imports(module, when_loaded=True)}
        graph.setdefault(part(module), set()).update(others - {part(module)})
    assert not cycle(graph)


def test_imports_and_cycles_are_seen() -> None:
    """Guard the checks above against seeing nothing."""
    assert "mgmae_cli.masking.motion" in imports("mgmae_cli.masking.plugin", when_loaded=True)
    assert "mgmae_cli.hookspecs" in imports("mgmae_cli.registry", when_loaded=True)
    assert "mgmae_cli.interfaces" in imports("mgmae_cli.hookspecs", when_loaded=False)
    assert "mgmae_cli.interfaces" not in imports("mgmae_cli.hookspecs", when_loaded=True)
    assert "mgmae_cli.registry" in imports("mgmae_cli.cli.plugins", when_loaded=False)
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}).count(">") == 3
    assert not cycle({"a": {"b"}, "b": {"c"}})


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["pretrain", "--help"], ["plugins", "--help"], ["bench", "--help"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys; from mgmae_cli.cli.app import main; sys.argv = ['mgmae', *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit as end: print('end', end.code, *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    word, code, *modules = done.stdout.splitlines()[-1].split()
    assert (word, code) == ("end", "0"), done.stderr
    assert "typer" in modules
    # Recent versions of Typer import pydantic themselves to read a command's arguments.
    assert not (HEAVY - {"pydantic"} if len(arguments) > 1 else HEAVY) & set(modules)
