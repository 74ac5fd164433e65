from pathlib import Path

import pytest

from lib.errors import ConfigError
from lib.recipe_files import find_recipe, recipe_from_dict
from lib.recipes import OPENKBP, PDDCA, RECIPES


def write(folder: Path, text: str) -> str:
    path = folder / "clinic.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_pddca_is_the_papers() -> None:
    assert PDDCA.crop_vox == (256, 256, 48)
    assert PDDCA.network.width == 16
    assert PDDCA.schedule.learning_rate == 1e-3
    assert (PDDCA.schedule.decay, PDDCA.schedule.decay_epochs) == ("step", 50)
    assert PDDCA.schedule.batch_size == 2
    assert (PDDCA.loss.focal_gamma, PDDCA.loss.dice_weight) == (2.0, 1.0)
    weights = [PDDCA.loss.background_weight, *PDDCA.loss.class_weights.values()]
    assert weights == [0.5, 1, 4, 1, 4, 4, 1, 1, 3, 3]
    assert list(PDDCA.loss.class_weights) == list(PDDCA.labels)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_survives_being_written_down(name: str) -> None:
    assert recipe_from_dict(RECIPES[name].as_dict(), source="card") == RECIPES[name]


def test_a_file_changes_what_it_names_and_keeps_the_rest(tmp_path: Path) -> None:
    path = write(
        tmp_path, "extends: openkbp\nname: clinic\nspacing_mm: [1, 1, 2.5]\nnetwork:\n  width: 16\n"
    )
    recipe = find_recipe(path)
    assert (recipe.name, recipe.spacing_mm, recipe.network.width) == ("clinic", (1, 1, 2.5), 16)
    assert recipe.network.dilations == OPENKBP.network.dilations
    assert recipe.schedule == OPENKBP.schedule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: openkbp\nname: a\nwindow: 3\n", r"clinic.yaml:3: window: no such field"),
        (
            "extends: openkbp\nnetwork:\n  widht: 3\n",
            r"clinic.yaml:3: network.widht: no such field",
        ),
        ("extends: openkbp\nspacing_mm: [1, 1]\n", r"clinic.yaml:2: spacing_mm"),
        (
            "extends: openkbp\nspacing_mm:\n  - 1\n  - x\n  - 2\n",
            r"clinic.yaml:4: spacing_mm.1.*'x'",
        ),
        ("extends: openkbp\nspacing_mm: [1, 1, -2]\n", r"spacing_mm must be in \(0, 20\] mm"),
        ("extends: openkbp\norgan_set: liver\n", r"organ set 'liver' is not known"),
        ("extends: nnunet\n", r"clinic.yaml:1: extends: 'nnunet' is none of pddca, openkbp"),
        ("name: a\n", r"clinic.yaml:1: organ_set: this field is missing"),
        ("extends: openkbp\nschedule: {patience: -1}\n", r"patience must be at least 0"),
        ("extends: openkbp\nloss: {class_weights: {Liver: 2}}\n", r"no organ of ours: Liver"),
        ("extends: openkbp\nhu_windows: [[200, 100]]\n", r"lower < upper"),
        ("- a\n- b\n", r"clinic.yaml:1: a recipe is a mapping"),
        ("extends: [openkbp\nname: x\n", r"clinic.yaml:2"),
        ("", r"clinic.yaml:1: a recipe is a mapping"),
    ],
)
def test_a_wrong_file_is_refused_with_the_line_and_the_reason(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        find_recipe(write(tmp_path, text))


def test_a_name_that_is_no_recipe_and_no_file_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"neither one of ours \(pddca, openkbp\) nor a file"):
        find_recipe("clinic")
