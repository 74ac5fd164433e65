"""Tests of image ids: which names are ids, and which ids other names get."""

import hashlib
import unicodedata

import pytest

from lib.errors import DatastoreError
from lib.storage.identifiers import image_id_of, printable, require_image_id

ODD = ["DOE^JOHN_123", "_anon01", "Case%20", "A{1}", "Pat 1 - 2019!", "M\u00fcller", "\u75c5\u4eba3", ".", "..",
       "....", "a..b", "a.", "a ", " a", "-", "", "x" * 255, "../etc", "a/b", "a\\b", "a\nb", "a\0b",
       "\u202eabc", "\ufb01", "I\u0307", "\U0001f480", "\udcff", "CON?", "a*b", "$(id)", "\u0661"]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["a", "3: NECK  3.0  B30f", "pt_1", "x" * 200, "Case.v2 (1)[a]+=,:;#&@'~-"]
)
def test_a_name_that_can_be_an_id_is_its_own_id(name: str) -> None:
    assert image_id_of(name) == require_image_id(name) == name


@pytest.mark.parametrize("name", ODD)
def test_any_other_name_has_an_id_that_ends_in_the_digest_of_the_name(name: str) -> None:
    with pytest.raises(DatastoreError):
        require_image_id(name)
    image_id = image_id_of(name)
    assert require_image_id(image_id) == image_id
    composed = unicodedata.normalize("NFC", name).encode("utf-8", "surrogatepass")
    assert image_id.endswith("-" + hashlib.sha256(composed).hexdigest()[:8])
    assert image_id_of(unicodedata.normalize("NFD", name)) == image_id
    assert len(image_id) <= 109


def test_ids_of_different_names_differ() -> None:
    assert len({image_id_of(name) for name in ODD}) == len(ODD)


def test_an_id_shows_what_can_be_shown_of_the_name() -> None:
    kept = {name: image_id_of(name).rpartition("-")[0] for name in ODD}
    assert kept["DOE^JOHN_123"] == "DOE_JOHN_123"
    assert kept["M\u00fcller"] == "Muller"
    assert kept["Pat 1 - 2019!"] == "Pat 1 - 2019"
    assert kept["\u75c5\u4eba3"] == "3"
    assert kept["../etc"] == "etc"
    assert kept[".."] == "scan"


def test_a_name_that_is_not_utf8_can_be_printed() -> None:
    assert printable("M\udcfcller") == "M\\xfcller"
    assert printable("M\u00fcller") == "M\u00fcller"
