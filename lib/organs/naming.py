"""Recognition of organ names in the spellings of the field.

All other modules use TG-263 names only.

A name is taken for an organ only if all of it is understood: every letter, of any script, belongs to a word of
the organ or of its side, and every other character is a separator. So `SpinalCord` with two Chinese letters for
"expanded", `Parotid_L_old` and `Cord+5` are no organs. Digits, `~`, `^`, `+` mark margins, parts and versions
(AAPM TG-263); `_` or `z` before the name marks a structure of the optimisation.

Full-width and other compatibility forms of a letter (Unicode NFKC) are the same letter, as East Asian input
methods type them. Letters of other scripts that only look alike, such as a Cyrillic `a`, are other letters.
"""

import re
import unicodedata
from collections.abc import Mapping

from lib.organs.table import ORGANS

_STEMS: Mapping[str, str] = {
    "brainstem": "Brainstem",
    "bs": "Brainstem",
    "chiasm": "OpticChiasm",
    "opticchiasm": "OpticChiasm",
    "chiasma": "OpticChiasm",
    "mandible": "Bone_Mandible",
    "bonemandible": "Bone_Mandible",
    "mandiblebone": "Bone_Mandible",
    "opticnerve": "OpticNrv",
    "opticnrv": "OpticNrv",
    "optnerve": "OpticNrv",
    "optnrv": "OpticNrv",
    "parotid": "Parotid",
    "parotidgland": "Parotid",
    "glndparotid": "Parotid",
    "submandibular": "Glnd_Submand",
    "submandibulargland": "Glnd_Submand",
    "glndsubmand": "Glnd_Submand",
    "submand": "Glnd_Submand",
    "submandgland": "Glnd_Submand",
    "submandglnd": "Glnd_Submand",
    "spinalcord": "SpinalCord",
    "cord": "SpinalCord",
    "esophagus": "Esophagus",
    "oesophagus": "Esophagus",
    "larynx": "Larynx",
    "brain": "Brain",
    "cochlea": "Cochlea",
    "lacrimal": "Glnd_Lacrimal",
    "lacrimalgland": "Glnd_Lacrimal",
    "glndlacrimal": "Glnd_Lacrimal",
    "lacrimalglnd": "Glnd_Lacrimal",
    "lens": "Lens",
    "eyelens": "Lens",
    "lung": "Lung",
    "eye": "Eye",
    "eyeball": "Eye",
    "orbit": "Eye",
    "spinalcanal": "SpinalCanal",
    "vertebralcanal": "SpinalCanal",
}
"""Letters of a name without its side, in lower case -> TG-263 name without its side.

Nikolov et al. contour the eyeball and call it orbit, after the atlas of Brouwer et al. 2015.
"""

_SIDES = {"l": "_L", "lt": "_L", "left": "_L", "r": "_R", "rt": "_R", "right": "_R"}

_WORD = re.compile(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+(?![^\W\d_A-Z])")
"""A word of letters of any script; a capital letter begins a new one (`OpticNrv`, `LTParotid`)."""
_SEPARATORS = re.compile(r"[\s_.,()\[\]\u2010-\u2015-]*")


def tg263_name(spelling: str) -> str | None:
    """Return the TG-263 name that `spelling` means, None if not all of it is understood.

    Recognises PDDCA (`OpticNerve_L`), OpenKBP (`RightParotid`), Nikolov et al. (`Optic-Nerve-Lt`), the reverse
    order of TG-263 (`L_Submand_Glnd`) and free spellings (`LT PAROTID`, `Parotid (L)`): upper and lower case,
    spaces and `-`, `_`, `.`, `,` and brackets do not matter.
    """
    if spelling.startswith("_") or any(unicodedata.category(c)[0] == "N" for c in spelling):
        return None
    text = unicodedata.normalize("NFKC", spelling)
    if not _SEPARATORS.fullmatch(_WORD.sub("", text)):
        return None
    words = [word.lower() for word in _WORD.findall(text)]
    sides = [_SIDES[word] for word in words if word in _SIDES]
    stem = "".join(word for word in words if word not in _SIDES)
    if not sides and stem not in _STEMS:
        stem, sides = _without_side(stem)
    if len(sides) > 1:
        return None
    name = _STEMS.get(stem, "") + "".join(sides)
    return name if name in ORGANS else None


def _without_side(letters: str) -> tuple[str, list[str]]:
    """Return the stem and the sides in letters without capitals or spaces between them."""
    for prefix in ("", *_SIDES):
        for suffix in ("", *_SIDES):
            stem = letters.removeprefix(prefix).removesuffix(suffix)
            if prefix + stem + suffix == letters and stem in _STEMS:
                return stem, [_SIDES[side] for side in (prefix, suffix) if side]
    return letters, []
