"""The size and shape guards of the house: run by ``make lint``, exit code 1 where one does not hold.

What is counted: a function's lines without its docstring; logical lines as Python's own tokenizer ends them, docstrings
not counted.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "deltaw"
CODE = ("src", "tests", "scripts", "benchmarks", "demo", "docs", "recipes")

FILE_LINES = 500
FUNCTION_LINES = 60
CONSTRUCTOR_PARAMETERS = 10
CORE_LINES = 1050
CORE_FILES = ("functional.py", "targets.py", "layer.py", "weight.py", "attach.py")

UPPER = {"__main__.py": 3, "cli": 3, "paper": 2, "train": 1, "ship": 1, "serve": 1}
CORE_PACKAGES = {"torch", "safetensors", "deltaw"}

Function = ast.FunctionDef | ast.AsyncFunctionDef

MACHINE_PATH = re.compile(r"(?<![\w.}])/(?:home|root|Users|work)/|/tmp/venv")
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX|NotImplementedError)\b")


@dataclass(frozen=True, kw_only=True)
class Module:
    """One Python file: where it is, its text, its tree."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def name(self) -> str:
        """The path from the repository's root."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def level(self) -> int:
        """How high it stands: 0 core, 1 train, ship, serve, 2 paper, 3 cli."""
        return UPPER.get(self.path.relative_to(SOURCE).parts[0], 0)


def main() -> int:
    """Run every guard.

    Returns:
        0 where all hold, else 1.
    """
    modules = [_read(path) for part in CODE for path in sorted((ROOT / part).rglob("*.py"))]
    source = [module for module in modules if SOURCE in module.path.parents]
    core = sum(logical_lines(module) for module in source if _in_core(module))
    problems = [problem for module in modules for problem in sizes(module)]
    problems += [problem for module in source for problem in (*dependencies(module), *manners(module))]
    problems += [*machine_paths(), *laziness()]
    if core > CORE_LINES:
        problems.append(f"{', '.join(CORE_FILES)}: {core} logical lines together, at most {CORE_LINES}")
    for problem in problems:
        print(problem)
    if problems:
        print(f"guards: {len(problems)} broken")
        return 1
    longest = max(modules, key=lambda module: module.text.count("\n"))
    span, where = max((lines, f"{m.name}:{f.name}") for m in modules for f, lines in functions(m))
    print(
        f"guards: ok ({len(modules)} files; longest file {longest.text.count(chr(10))} of {FILE_LINES} lines, "
        f"{longest.name}; longest function {span} of {FUNCTION_LINES}, {where}; "
        f"core {core} of {CORE_LINES} logical lines)"
    )
    return 0


def _read(path: Path) -> Module:
    text = path.read_text(encoding="utf-8")
    return Module(path=path, text=text, tree=ast.parse(text, str(path)))


def _in_core(module: Module) -> bool:
    return module.path.parent == SOURCE and module.path.name in CORE_FILES


def functions(module: Module) -> Iterator[tuple[Function, int]]:
    """Every function of a file with its lines, docstring not counted."""
    for node in ast.walk(module.tree):
        if isinstance(node, Function):
            yield node, node.end_lineno - node.lineno + 1 - _docstring_lines(node)


def _docstring_lines(node: Function | ast.ClassDef | ast.Module) -> int:
    first = node.body[0] if node.body else None
    if ast.get_docstring(node, clean=False) is None or first is None:
        return 0
    return first.end_lineno - first.lineno + 1


def logical_lines(module: Module) -> int:
    """Logical lines of a file: NEWLINE tokens less the docstrings."""
    tokens = tokenize.generate_tokens(io.StringIO(module.text).readline)
    ends = sum(token.type == tokenize.NEWLINE for token in tokens)
    owners = (node for node in ast.walk(module.tree) if isinstance(node, Function | ast.ClassDef | ast.Module))
    return ends - sum(ast.get_docstring(node, clean=False) is not None for node in owners)


def sizes(module: Module) -> Iterator[str]:
    """Files, functions and constructors that are too large."""
    lines = module.text.count("\n")
    if lines > FILE_LINES:
        yield f"{module.name}: {lines} lines, at most {FILE_LINES}"
    for function, span in functions(module):
        if span > FUNCTION_LINES:
            yield f"{module.name}:{function.lineno}: {function.name} has {span} lines, at most {FUNCTION_LINES}"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef) and (count := _positional(node)) > CONSTRUCTOR_PARAMETERS:
            limit = CONSTRUCTOR_PARAMETERS
            yield f"{module.name}:{node.lineno}: {node.name} takes {count} positional parameters, at most {limit}"


def _positional(node: ast.ClassDef) -> int:
    for item in node.body:
        if isinstance(item, Function) and item.name == "__init__":
            return len(item.args.posonlyargs) + len(item.args.args) - 1
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    if any("dataclass" in text and "kw_only=True" not in text for text in decorators):
        return sum(isinstance(item, ast.AnnAssign) for item in node.body)
    return 0


def dependencies(module: Module) -> Iterator[str]:
    """Imports that point upward, and imports of the core other than torch and safetensors."""
    for node, imported in _imports(module):
        parts = imported.split(".")
        if parts[0] == "deltaw" and len(parts) > 1 and UPPER.get(parts[1], 0) > module.level:
            yield f"{module.name}:{node.lineno}: imports {imported}, which stands above it"
        if module.level == 0 and parts[0] not in CORE_PACKAGES | sys.stdlib_module_names:
            yield f"{module.name}:{node.lineno}: the core imports {parts[0]}; it may use torch and safetensors only"


def _imports(module: Module) -> Iterator[tuple[ast.stmt, str]]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield (
                    node,
                    "deltaw." + ".".join([*module.path.relative_to(SOURCE).parts[: -node.level], node.module or ""]),
                )
            elif node.module == "deltaw":
                yield from ((node, f"deltaw.{alias.name}") for alias in node.names)
            else:
                yield node, node.module or ""


def manners(module: Module) -> Iterator[str]:
    """Unfinished code, branches on a variant's name, comments beyond ASCII."""
    for number, line in enumerate(module.text.splitlines(), 1):
        if UNFINISHED.search(line):
            yield f"{module.name}:{number}: unfinished: {line.strip()}"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Compare) and _names_variant(node):
            yield f"{module.name}:{node.lineno}: compares a variant's name; a variant is a registry line"
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type == tokenize.COMMENT and not token.string.isascii():
            yield f"{module.name}:{token.start[0]}: a comment beyond ASCII"


def _names_variant(node: ast.Compare) -> bool:
    sides = [node.left, *node.comparators]
    name = any(ast.unparse(side).rpartition(".")[2] in {"variant", "variant_name"} for side in sides)
    return name and any(isinstance(side, ast.Constant) and isinstance(side.value, str) for side in sides)


def machine_paths() -> Iterator[str]:
    """Absolute paths of one machine, in any text file under version control but this one."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path == Path(__file__).resolve() or not path.is_file() or path.stat().st_size > 2_000_000:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE_PATH.search(line):
                yield f"{name}:{number}: a path of one machine: {line.strip()[:100]}"


def laziness() -> Iterator[str]:
    """``import deltaw`` and the command line's frame must not import torch."""
    for module in ("deltaw", "deltaw.cli._group"):
        check = f"import sys, {module}; print(*sorted({{'torch', 'transformers', 'safetensors'}} & set(sys.modules)))"
        ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False, cwd=ROOT)
        if ran.returncode or ran.stdout.strip():
            yield f"import {module}: loads {ran.stdout.strip() or ran.stderr.strip().splitlines()[-1]}"


if __name__ == "__main__":
    sys.exit(main())
