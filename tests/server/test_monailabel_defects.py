"""docs/monailabel-defects.md: the modules that it names exist, and it lists every defect cited in the code."""

import re

from lib.config import APP_DIR

LIST = (APP_DIR / "docs" / "monailabel-defects.md").read_text(encoding="utf-8")


def test_every_module_that_the_list_names_exists() -> None:
    named = set(re.findall(r"`(lib/[^`]+)`", LIST))
    assert named
    assert [name for name in sorted(named) if not (APP_DIR / name).exists()] == []


def test_every_defect_that_the_code_refers_to_is_in_the_list() -> None:
    listed = {int(number) for number in re.findall(r"^\| (\d+) \|", LIST, re.MULTILINE)}
    assert listed == set(range(1, 40))
    for path in (APP_DIR / "lib").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for numbers in re.findall(r"[Dd]efects? ((?:\d+(?:, | and )?)+)", text):
            assert {int(number) for number in re.findall(r"\d+", numbers)} <= listed, path
