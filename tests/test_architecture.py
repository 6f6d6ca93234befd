"""The rules of the house, read from the source: who may import whom, and what library code never does."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# folder in the checkout -> package once installed
PACKAGES = {"tokenprune": "tokenprune", "adapters": "tokenprune.adapters", "eval": "tokenprune.eval", "demos": "demos"}
LEAVES = ["errors", "budget", "projection", "tokens", "layers", "blocks", "registry", "report", "fingerprint"]
INPUT = ["readers", "video"]
LOADING = ["checkpoints", "encoding"]
VIEW = ["view", "view_merges"]
LIBRARY = [*LEAVES, *INPUT, "ops", "predictors", "policies", "adapters", "stages", "wrap", ""]
# part of the library ("" is its __init__) -> parts it may import
MAY_IMPORT = {
    **dict.fromkeys(LEAVES, LEAVES),
    "ops": [*LEAVES, "ops"],
    "predictors": [*LEAVES, "ops", "predictors"],
    "policies": [*LEAVES, "ops", "predictors", "policies"],
    "adapters": [*LEAVES, "adapters"],
    "stages": [*LEAVES, "ops", "predictors", "policies", "adapters", "stages"],
    "wrap": [*LEAVES, "ops", "predictors", "policies", "adapters", "stages", "wrap"],
    "": LIBRARY,
    **{part: ["errors", "report", *INPUT] for part in (*INPUT, "view")},
    "view_merges": [*LIBRARY, "view", "view_merges"],
    "calibrate": [*LIBRARY, "calibrate"],
    **{part: ["errors", "video"] for part in LOADING},
    "learn": [*LIBRARY, *LOADING, "calibrate", "learn"],
    "describe": LIBRARY,
    "command": [*LIBRARY, *LOADING, "command"],
    "train_cli": [*LIBRARY, *LOADING, "calibrate", "learn", "command", "train_cli"],
    "view_cli": [*LIBRARY, "command", "view", "view_merges", "view_cli"],
    "cli": [*LIBRARY, "describe", "command", "train_cli", "view_cli", "cli"],
    "__main__": ["cli"],
    "eval": [*LIBRARY, *LOADING, "calibrate", "learn", "command", "eval"],
    "demos": ["demos", "", "wrap", "errors", "registry", *INPUT, *LOADING, "describe", "command", "cli", *VIEW, "eval"],
}
TRANSFORMERS = {"adapters", "stages", "learn", "checkpoints", "command", "video", "eval", "demos"}

SOURCES = sorted(path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py"))
LIBRARY_SOURCES = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in ("tokenprune", "adapters")]


def name(path):
    return str(path.relative_to(ROOT))


def module(path):
    """Dotted name once installed; a package's own name for its __init__."""
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([PACKAGES[folder], *(part for part in rest if part != "__init__")])


def part(dotted):
    """`tokenprune.ops.greedy` -> `ops`; "" for the package itself and the names its __init__ gives out."""
    if dotted.split(".")[0] == "demos":
        return "demos"
    below = dotted.split(".")[1:2]
    return below[0] if below and below[0] in MAY_IMPORT else ""


def imports(path):
    """Absolute names of all modules a file imports, at whatever depth."""
    package = module(path) if path.name == "__init__.py" else module(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield from (f"{base}.{alias.name}" for alias in node.names)


every_source = pytest.mark.parametrize("path", SOURCES, ids=name)
library_source = pytest.mark.parametrize("path", LIBRARY_SOURCES, ids=name)


def test_the_sources_are_found():
    assert {"ops", "policies", "stages", "adapters", "wrap", "cli", "eval", "demos", *LEAVES} <= {
        part(module(path)) for path in SOURCES
    }


@every_source
def test_imports_run_one_way(path):
    here = part(module(path))
    wrong = [x for x in imports(path) if x.split(".")[0] in ("tokenprune", "demos") and part(x) not in MAY_IMPORT[here]]
    assert not wrong, f"{name(path)} ({here or '__init__'}) may not import {wrong}"


@every_source
def test_only_adapters_and_stages_know_transformers(path):
    known = {x.split(".")[0] for x in imports(path)}
    assert part(module(path)) in TRANSFORMERS or "transformers" not in known


@library_source
def test_library_code_never_asserts_and_reads_no_environment(path):
    for node in ast.walk(ast.parse(path.read_text())):
        where = f"{name(path)}:{getattr(node, 'lineno', 0)}"
        assert not isinstance(node, ast.Assert), f"{where} asserts: raise an error with a sentence."
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("environ", "getenv"), f"{where} reads the environment."
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            assert not {alias.name for alias in node.names} & {"environ", "getenv"}, f"{where} reads the environment."


@library_source
def test_files_stay_short(path):
    lines = len(path.read_text().splitlines())
    assert lines <= (120 if part(module(path)) == "policies" else 400)
