from pathlib import Path

import pytest

from lib.errors import ConfigError
from lib.recipes.schema import NETWORK_NAMES, OPENKBP, PDDCA, RECIPES, AugmentConfig
from lib.recipes.yaml_files import find_recipe, recipe_from_dict


def write(folder: Path, text: str) -> str:
    path = folder / "clinic.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_pddca_recipe_follows_the_paper() -> None:
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
def test_a_recipe_is_restored_from_its_file(name: str) -> None:
    assert recipe_from_dict(RECIPES[name].as_dict(), source="card") == RECIPES[name]


def test_a_file_changes_the_fields_that_it_names_only(tmp_path: Path) -> None:
    path = write(
        tmp_path, "extends: openkbp\nname: clinic\nspacing_mm: [1, 1, 2.5]\nnetwork:\n  width: 16\n"
    )
    recipe = find_recipe(path)
    assert (recipe.name, recipe.spacing_mm, recipe.network.width) == ("clinic", (1, 1, 2.5), 16)
    assert recipe.network.dilations == OPENKBP.network.dilations
    assert recipe.schedule == OPENKBP.schedule


def test_an_old_recipe_without_augmentations_has_the_defaults() -> None:
    written = OPENKBP.as_dict()
    del written["augment"]
    assert recipe_from_dict(written, source="card") == OPENKBP


def test_a_file_changes_one_augmentation_only(tmp_path: Path) -> None:
    path = write(tmp_path, "extends: openkbp\naugment: {elastic_probability: 0, noise_hu: 40}\n")
    assert find_recipe(path).augment == AugmentConfig(elastic_probability=0.0, noise_hu=40.0)
    assert find_recipe(path).preparation_digest() == OPENKBP.preparation_digest()


@pytest.mark.parametrize("name", NETWORK_NAMES)
def test_a_file_may_use_every_network(tmp_path: Path, name: str) -> None:
    recipe = find_recipe(write(tmp_path, f"extends: openkbp\nnetwork: {{name: {name}}}\n"))
    assert recipe.network.name == name
    assert recipe_from_dict(recipe.as_dict(), source="card") == recipe


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
        ("extends: openkbp\norgan_set: liver\n", r"unknown organ set 'liver'"),
        (
            "extends: nnunet\n",
            r"clinic.yaml:1: extends: unknown recipe 'nnunet'; known: pddca, openkbp",
        ),
        (
            "extends: openkbp\nnetwork:\n  width: 4\n  name: nnunet\n",
            r"clinic.yaml:4: network.name: .*'organnet25d', 'dynunet'.*'anatomynet'.*'nnunet'",
        ),
        ("name: a\n", r"clinic.yaml:1: organ_set: this field is missing"),
        ("extends: openkbp\nschedule: {patience: -1}\n", r"patience must be at least 0"),
        ("extends: openkbp\nloss: {class_weights: {Liver: 2}}\n", r"unknown organs: Liver"),
        ("extends: openkbp\nhu_windows: [[200, 100]]\n", r"lower < upper"),
        (
            "extends: openkbp\naugment: {blur_sigma: 2}\n",
            r"clinic.yaml:2: augment.blur_sigma: no such",
        ),
        (
            "extends: openkbp\naugment:\n  zoom: 0.1\n  metal_probability: 2\n",
            r"augment: metal_probability must be from 0 to 1, not 2",
        ),
        ("extends: openkbp\naugment: {noise_hu: -1}\n", r"augment: noise_hu must be at least 0"),
        ("extends: openkbp\naugment: {shift_hu: .inf}\n", r"augment: shift_hu .* finite, not inf"),
        ("extends: openkbp\naugment: {rotation_deg: [4, 4]}\n", r"clinic.yaml:2: augment.rotation"),
        ("extends: openkbp\naugment: {rotation_deg: [4, 4, 91]}\n", r"at most 90 degrees"),
        ("extends: openkbp\naugment: {zoom: 1}\n", r"zoom and contrast are shares, in \[0, 1\)"),
        ("extends: openkbp\naugment: {metal_fillings: 0}\n", r"metal_fillings must be at least 1"),
        (
            "extends: openkbp\naugment: {elastic_mm: 13}\n",
            r"or tissue folds over; not 13.0 of 32.0",
        ),
        ("- a\n- b\n", r"clinic.yaml:1: a recipe is a mapping"),
        ("extends: [openkbp\nname: x\n", r"clinic.yaml:2"),
        ("", r"clinic.yaml:1: a recipe is a mapping"),
    ],
)
def test_an_invalid_file_is_refused_with_line_and_reason(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        find_recipe(write(tmp_path, text))


def test_an_unknown_recipe_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"neither a known recipe \(pddca, openkbp\) nor a file"):
        find_recipe("clinic")
