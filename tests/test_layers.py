"""The import graph points one way; the numbers are the layers of docs/architecture.md."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"lib.units", "lib.errors", "lib.files", "lib.locks", "lib.names", "lib"},
    {"lib.organs", "lib.geometry", "lib.recipes", "lib.recipe_files", "lib.volumes", "lib.config"},
    {
        "lib.networks",
        "lib.losses",
        "lib.metrics",
        "lib.uncertainty",
        "lib.consensus",
        "lib.plausibility",
        "lib.transforms",
        "lib.phantom",
        "lib.activelearning.selection",
        "lib.activelearning.pool",
        "lib.edit_cost",
        "lib.state",
    },
    {
        "lib.dicom",
        "lib.scans",
        "lib.volume_files",
        "lib.studies",
        "lib.registry",
        "lib.serving",
        "lib.inference",
        "lib.deep_inference",
        "lib.training",
        "lib.pictures",
        "lib.phantom.cohort",
        "lib.phantom.dicom_cohort",
        "lib.archives",
        "lib.backup",
        "lib.retrain",
        "lib.background",
        "lib.rehearsal",
        "lib.importers",
        "lib.evaluation",
        "lib.comparison",
        "lib.activelearning",
        "lib.simulation",
        "lib.pacs",
    },
    {
        "lib.infers",
        "lib.trainers",
        "lib.datastores",
        "lib.activelearning.strategies",
        "lib.server",
    },
    {"lib.app"},
    {"main", "apps"},
]
MAY_IMPORT_MONAILABEL = (
    "lib.infers",
    "lib.trainers",
    "lib.datastores",
    "lib.activelearning.strategies",
    "lib.server",
    "lib.app",
)
STANDARD_NAMES = {"types", "queue", "random", "io", "logging", "json"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module: str) -> int | None:
    found = [
        (len(name), number)
        for number, members in enumerate(LAYERS)
        for name in members
        if module == name or (module.startswith(f"{name}.") and name != "lib")
    ]
    return max(found)[1] if found else None


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def project_imports(path: Path) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] in {"lib", "apps", "main"}}


SOURCES = [
    ROOT / "main.py",
    *sorted((ROOT / "lib").rglob("*.py")),
    *sorted((ROOT / "apps").rglob("*.py")),
]
GRAPH = {module_name(path): project_imports(path) for path in SOURCES}


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_module_imports_no_layer_above_its_own(module: str) -> None:
    own = layer(module)
    assert own is not None, "every module has its place in LAYERS"
    assert not {name for name in GRAPH[module] if (layer(name) or 0) > own}


def test_imports_form_no_circle() -> None:
    TopologicalSorter(GRAPH).prepare()


def test_monai_label_stays_in_the_adapters() -> None:
    for path in SOURCES:
        if not module_name(path).startswith(MAY_IMPORT_MONAILABEL):
            used = {name for name in imports(path) if name.split(".")[0] == "monailabel"}
            assert not used, path


def test_no_module_hides_one_of_the_standard_library() -> None:
    assert not {path.stem for path in (ROOT / "lib").glob("*.py")} & STANDARD_NAMES
