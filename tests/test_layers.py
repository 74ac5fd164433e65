"""The import layers of docs/architecture.md: imports from the own layer or below, never in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"lib", "lib.errors", "lib.isolation", "lib.storage"},
    {"lib.config", "lib.imaging", "lib.organs", "lib.recipes"},
    {
        "lib.backends",
        "lib.dicom",
        "lib.importers",
        "lib.inference",
        "lib.jobs",
        "lib.labels",
        "lib.models",
        "lib.networks",
        "lib.pacs",
        "lib.prompts",
        "phantom",
    },
    {"lib.evaluation", "lib.reports", "lib.retrain", "lib.training"},
    {
        "lib.activelearning",
        "lib.assignment",
        "lib.backup",
        "lib.datastores",
        "lib.experiments",
        "lib.pacs_sync",
    },
    {"lib.monailabel_tasks", "lib.server"},
    {"lib.app"},
    {"apps", "main"},
]
MAY_IMPORT_MONAILABEL = (
    "apps.support.monailabel_path",
    "lib.monailabel_tasks",
    "lib.datastores",
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
    return {
        name for name in imports(path) if name.split(".")[0] in {"lib", "apps", "main", "phantom"}
    }


SOURCES = [
    ROOT / "main.py",
    *sorted((ROOT / "lib").rglob("*.py")),
    *sorted((ROOT / "apps").rglob("*.py")),
    *sorted((ROOT / "phantom").rglob("*.py")),
]
GRAPH = {module_name(path): project_imports(path) for path in SOURCES}


def package(module: str) -> str:
    """Return the package of a module: the first two parts of its name."""
    return ".".join(module.split(".")[:2]) if module.startswith("lib.") else module.split(".")[0]


def test_every_module_has_a_layer() -> None:
    assert not {module for module in GRAPH if layer(module) is None}


def test_no_module_imports_from_a_layer_above_its_own() -> None:
    upwards = {
        (module, name)
        for module, names in GRAPH.items()
        for name in names
        if (layer(name) or 0) > (layer(module) or 0)
    }
    assert not upwards


def test_no_import_cycle_between_modules() -> None:
    TopologicalSorter(GRAPH).prepare()


def test_no_import_cycle_between_packages() -> None:
    graph: dict[str, set[str]] = {}
    for module, names in GRAPH.items():
        others = {package(name) for name in names} - {package(module), "lib"}
        graph.setdefault(package(module), set()).update(others)
    TopologicalSorter(graph).prepare()


def test_monai_label_stays_in_the_adapters() -> None:
    for path in SOURCES:
        if not module_name(path).startswith(MAY_IMPORT_MONAILABEL):
            used = {name for name in imports(path) if name.split(".")[0] == "monailabel"}
            assert not used, path


def test_no_module_has_the_name_of_a_standard_module() -> None:
    assert not {path.stem for path in (ROOT / "lib").glob("*.py")} & STANDARD_NAMES


IN_READERS = {
    "lib.dicom.seg_pixels",
    "lib.imaging.dicom_pixels",
    "lib.imaging.dicom_series",
    "lib.imaging.nrrd_layers",
    "lib.imaging.reader_tasks",
    "lib.imaging.scans",
    "lib.imaging.volume_reading",
    "lib.dicom.reader_tasks",
}
"""Modules with functions that run in reader processes (ADR 28)."""
READS_IN_THIS_PROCESS = {"ReadImage", "ImageFileReader", "pixel_array", "parse_ct", "parse_label",
                         "parse_layers", "read_volume", "read_volume_header", "read_series",
                         "series_slices", "send_voxels"}  # fmt: skip


def test_files_are_parsed_in_reader_processes_only() -> None:
    for path in SOURCES:
        if module_name(path) in IN_READERS | {"apps.support.reading_benchmark"}:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node, "attr", None) or getattr(node, "id", None)
            assert name not in READS_IN_THIS_PROCESS, f"{path}:{node.lineno}: {name}"  # type: ignore[attr-defined]
