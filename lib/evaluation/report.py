"""Report of an evaluation: table per organ, charts, pictures of the worst contours, definitions."""

import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.errors import OrganNetError, ScanError, case_failure
from lib.evaluation.case_loading import CaseContours, CroppedMask, union_box
from lib.evaluation.charts import HUMAN, NETWORKS, bland_altman
from lib.evaluation.table import Evaluation, Row, organ_statistics, overall, read_pair, stem
from lib.imaging.geometry import Grid, require_same_grid
from lib.imaging.quantities import MaskArray
from lib.imaging.scans import read_ct
from lib.imaging.volumes import CtVolume
from lib.inference.resampling import Box, closest_ras, in_ras_order
from lib.organs.table import NIKOLOV, ORGANS
from lib.reports.ct_overlays import comparison_picture, ras_spacing
from lib.reports.pages import Picture, Report, Section, Table, write_page

_log = logging.getLogger(__name__)

WORST = 6
"""Number of worst contours in the report."""
MARGIN_MM = 15.0
"""Margin around the organ in the pictures of the worst contours, in mm."""
SMALLEST_VIEW_MM = 40.0
LARGEST_VIEW_MM = 170.0
"""Limits of the width of such a picture, in mm; of a long organ only the worst part is shown."""

REFERENCES = (
    "Dice LR. Measures of the amount of ecologic association between species. Ecology 26:297-302, 1945.",
    "Nikolov S, Blackwell S, Zverovitch A, et al. Clinically applicable segmentation of head and neck anatomy "
    "for radiotherapy: deep learning algorithm development and validation study. J Med Internet Res "
    "23:e26151, 2021. Tolerances, surface DSC and the package surface-distance.",
    "Bland JM, Altman DG. Measuring agreement in method comparison studies. Stat Methods Med Res 8:135-160, "
    "1999.",
    "Mayo CS, Moran JM, Bosch W, et al. American Association of Physicists in Medicine Task Group 263: "
    "standardizing nomenclatures in radiation oncology. Int J Radiat Oncol Biol Phys 100:1057-1066, 2018.",
    "Raudaschl PF, Zaffino P, Sharp GC, et al. Evaluation of segmentation methods on head and neck CT: "
    "auto-segmentation challenge 2015 (PDDCA). Med Phys 44:2020-2036, 2017.",
)
_DEFINITIONS = (
    "**DSC**: 2|A ∩ B| / (|A| + |B|) over voxels [1].",
    "**Surface DSC**: share of the area of both surfaces that lies within the tolerance of the other surface "
    "[2].",
    "**HD95**: 95th percentile, weighted by area, of the distances from one surface to the other; the larger "
    "of both directions [2].",
    "**MSD**: mean surface distance, weighted by area; the mean of both directions [2].",
    "**Missing organs**: an organ that the reference does not contain is unknown rather than absent, and left "
    "out, whatever was predicted. An organ that the prediction does not contain is missed: its DSC and "
    "surface DSC are 0; its distances are undefined and enter no mean.",
    "**Volumes**: number of voxels times their size. Bland-Altman: bias ± 1.96 standard deviations [3].",
    "**Names**: AAPM TG-263 [4]. PDDCA is the data set of the MICCAI 2015 challenge [5].",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstCase:
    """One of the contours with the lowest agreement, with a PNG of it."""

    row: Row
    picture: bytes
    note: str
    """Source of the CT, or the reason why there is none, for the caption."""


def worst_rows(evaluation: Evaluation, count: int) -> list[Row]:
    """Return the `count` rows with the lowest surface DSC, then DSC; at most one of a left and right pair.

    The order is by surface DSC because the lowest DSC would always be that of the smallest organs.
    """
    chosen: dict[str, Row] = {}
    for row in sorted(evaluation.rows, key=lambda r: (r.surface_dsc, r.dsc, r.case, r.organ)):
        chosen.setdefault(stem(row.organ), row)
    return list(chosen.values())[:count]


def draw_worst(
    evaluation: Evaluation,
    references: Mapping[str, Path],
    predictions: Mapping[str, Path],
    images: Mapping[str, Path],
    *,
    values: Mapping[str, int] | None = None,
    count: int = WORST,
) -> list[WorstCase]:
    """Return pictures of the contours with the lowest agreement, over the CT if `images` contains it.

    If a CT cannot be read or lies on another grid than the contours, the note says so and it is left out.

    Args:
        evaluation: Result of the evaluation.
        references: Case -> path, as passed to `evaluate`.
        predictions: Likewise.
        images: Case -> CT.
        values: As passed to `evaluate`.
        count: Number of contours.
    """
    worst: dict[Row, WorstCase] = {}
    rows = worst_rows(evaluation, count)
    with ThreadPoolExecutor(2) as pool:
        for case in dict.fromkeys(row.case for row in rows):
            pair = read_pair(case, references[case], predictions[case], values, pool)
            ct, note = None, "No CT was given; other organs of the reference in grey."
            if case in images:
                try:
                    ct = read_ct(images[case], image_id=case)
                    require_same_grid(case, label=pair[0].grid, image=ct.grid)
                    note = f"CT window -160 to 240 HU ({images[case].name})."
                except (ScanError, OSError) as error:
                    ct, note = None, f"Drawn without the CT: {case_failure(error, case)}."
                    _log.warning("%s: drawn without the CT: %s", case, error)
            for row in (r for r in rows if r.case == case):
                picture = worst_picture(row.organ, *pair, ct)
                worst[row] = WorstCase(row=row, picture=picture, note=note)
    return [worst[row] for row in rows]


def worst_picture(
    organ: str, reference: CaseContours, prediction: CaseContours, ct: CtVolume | None
) -> bytes:
    """Return a PNG of one organ in three slices where the contours differ most.

    If the prediction misses the organ, only the reference is drawn. Without a CT the other organs of the
    reference are outlined in grey, for orientation.

    Args:
        organ: TG-263 name of an organ of the reference.
        reference: Reference contours of the case.
        prediction: Predicted contours, on the same grid.
        ct: The case's CT, on the same grid.
    """
    grid = reference.grid
    axes, flips = closest_ras(grid)
    box, cut_vox = _view(reference.organs[organ], prediction.organs.get(organ), grid)
    x, y, z = (
        box[a].stop - 1 - cut_vox[a] if flip else cut_vox[a] - box[a].start
        for a, flip in zip(axes, flips, strict=True)
    )
    pieces: list[CroppedMask | None] = [s.organs.get(organ) for s in (reference, prediction)]
    if ct is None:
        pieces += [piece for name, piece in reference.organs.items() if name != organ]
    empty = CroppedMask(np.zeros((0, 0, 0), bool), (0, 0, 0))
    return comparison_picture(
        [in_ras_order((piece or empty).within(box), grid) for piece in pieces],
        None if ct is None else in_ras_order(ct.array_hu[box], grid),
        cut=(x, y, z),
        spacing_mm=ras_spacing(grid),
    )


def write_report(
    path: Path,
    evaluation: Evaluation,
    pictures: Mapping[str, bytes],
    worst: Sequence[WorstCase],
    *,
    sides: tuple[str, str],
    made: str,
) -> None:
    """Write the report to `path`, atomically.

    Args:
        path: An HTML file.
        evaluation: Result of the evaluation.
        pictures: Result of `lib.evaluation.charts.charts`.
        worst: Result of `draw_worst`.
        sides: Names of reference and prediction.
        made: Program and date, for the subtitle.

    Raises:
        OrganNetError: If there is nothing to report.
    """
    if not evaluation.rows:
        raise OrganNetError(
            "there is nothing to report: no reference of a readable case contains an organ; summary.json lists "
            "what was left out"
        )
    sections = [
        Section(tables=[_organ_table(evaluation)]),
        Section(heading="Figures", pictures=_figures(evaluation, pictures)),
    ]
    if worst:
        sections.append(_worst_section(worst))
    cited = [*REFERENCES, *(f"{line.name}: {line.citation}." for line in (*NETWORKS, HUMAN))]
    sections += [
        Section(heading="Included and excluded contours", items=_left_out(evaluation)),
        Section(heading="Definitions", items=_DEFINITIONS),
        Section(heading="References", items=cited, is_numbered=True),
    ]
    report = Report(
        title=f"Agreement of {sides[1]} with {sides[0]}",
        subtitle=made,
        summary=[_summary(evaluation, sides[0])],
        sections=sections,
    )
    write_page(path, report)


def _summary(evaluation: Evaluation, reference: str) -> str:
    means = overall(evaluation)
    missed = sum(row.is_missed for row in evaluation.rows)
    return (
        f"{len(evaluation.rows)} contours of {len(evaluation.organs)} organs in {len(evaluation.cases)} cases "
        f"were compared with **{reference}** as the reference. The mean of the organs' means is "
        f"{_percent(means['dsc']['mean_of_organ_means'])} % DSC, "
        f"{_number(means['hd95_mm']['mean_of_organ_means'], 2)} mm HD95 and "
        f"{_percent(means['surface_dsc']['mean_of_organ_means'])} % surface DSC. "
        f"{missed} contour{'' if missed == 1 else 's'} of the reference "
        f"{'was' if missed == 1 else 'were'} missed by the prediction."
    )


def _organ_table(evaluation: Evaluation) -> Table:
    rows = []
    for organ in evaluation.organs:
        organ_rows = evaluation.rows_of(organ)
        stats = organ_statistics(organ_rows)
        dsc = stats["dsc"]
        rows.append(
            (
                organ,
                str(dsc["n"]),
                _mean_sd(dsc, 1, scale=100),
                f"{_percent(dsc['median'])} [{_percent(dsc['p5'])}, {_percent(dsc['p95'])}]",
                _mean_sd(stats["hd95_mm"], 2),
                _mean_sd(stats["surface_dsc"], 1, scale=100),
                f"{ORGANS[organ].tolerance_mm:.2f}",
                _mean_sd(stats["msd_mm"], 2),
                _volume(stats["volume_reference_ml"]["mean"]),
                _volume(stats["volume_difference_ml"]["mean"], sign="+"),
                str(sum(row.is_missed for row in organ_rows)),
            )
        )
    means = overall(evaluation)
    foot = (
        "Mean of organs", str(len(evaluation.rows)), _percent(means["dsc"]["mean_of_organ_means"]), "",
        _number(means["hd95_mm"]["mean_of_organ_means"], 2),
        _percent(means["surface_dsc"]["mean_of_organ_means"]), "",
        _number(means["msd_mm"]["mean_of_organ_means"], 2), "", "",
        str(sum(row.is_missed for row in evaluation.rows)),
    )  # fmt: skip
    return Table(
        "Agreement per organ: mean ± standard deviation over n contours, and median with 5th and 95th "
        "percentile of the DSC. Organs are in order of their mean DSC, both sides of a pair together. "
        "Tolerance: of the surface DSC. Difference: prediction minus reference, mean. A missed organ counts "
        "with DSC and surface DSC 0; HD95 and MSD are means over the other contours.",
        (
            "Organ", "n", "DSC (%)", "DSC (%) median [P5, P95]", "HD95 (mm)", "Surface DSC (%)",
            "Tolerance (mm)", "MSD (mm)", "Reference (mL)", "Difference (mL)", "Missed",
        ),
        rows,
        foot,
    )  # fmt: skip


def _figures(evaluation: Evaluation, pictures: Mapping[str, bytes]) -> list[Picture]:
    counts = [len(evaluation.rows_of(organ)) for organ in evaluation.organs]
    n = f"n = {min(counts)}" + (f" to {max(counts)}" if max(counts) > min(counts) else "")
    n += f" contours per organ, {len(evaluation.cases)} cases"
    box = "Boxes: quartiles and median; whiskers: 5th and 95th percentile; points: single contours"
    limits = bland_altman(evaluation.rows)
    is_published = any(o in line.dsc for o in evaluation.organs for line in (*NETWORKS, HUMAN))
    marks = (
        " Open and grey marks: mean DSC of published networks on the PDDCA test set; red line: mean DSC of two "
        "observers on 28 scans. These are other patients and, for the networks, other training sets: "
        "landmarks, not a comparison. Values per organ, except those of OrganNet2.5D, are from secondary "
        "sources."
        if is_published
        else " There are no published values for these organs."
    )
    captions = {
        "dsc": f"Dice similarity coefficient ({n}). {box}.{marks}",
        "surface-dsc": f"Surface DSC ({n}), each organ at its tolerance, printed on the right: the 95th "
        f"percentile of the distance between two experts, {NIKOLOV}, if listed there. {box}.",
        "hd95": f"95th percentile Hausdorff distance ({n}, missed contours left out). {box}.",
        "volumes": f"Bland-Altman plot of the volumes (n = {limits.n} contours, missed ones left out). Bias "
        f"{_number(limits.bias_percent, 1, sign='+')} %, limits of agreement "
        f"{_number(limits.low_percent, 1, sign='+')} to {_number(limits.high_percent, 1, sign='+')} % of the "
        "mean volume, over all organs. Contours of one patient are not independent: the limits describe these "
        "data and are not confidence bounds. The horizontal axis is logarithmic.",
    }
    return [Picture(pictures[name], caption, name) for name, caption in captions.items()]


def _worst_section(worst: Sequence[WorstCase]) -> Section:
    pictures = []
    for contour in worst:
        row = contour.row
        numbers = (
            "missed by the prediction"
            if row.is_missed
            else f"DSC {_percent(row.dsc)} %, HD95 {row.hd95_mm:.1f} mm, surface DSC "
            f"{_percent(row.surface_dsc)} % at {row.tolerance_mm:.2f} mm"
        )
        caption = (
            f"{row.organ} of {row.case}: {numbers}; {_volume(row.volume_reference_ml)} mL in the reference, "
            f"{_volume(row.volume_prediction_ml)} mL in the prediction. {contour.note}"
        )
        pictures.append(Picture(contour.picture, caption, f"{row.organ}, {row.case}"))
    text = (
        "Contours with the lowest surface DSC, at most one of each pair of organs, in the slices where "
        "reference and prediction differ most. Without a CT the difference is shaded. The patient's right is "
        "on the left of axial and coronal pictures."
    )
    return Section(heading="Lowest agreement", text=[text], pictures=pictures)


def _left_out(evaluation: Evaluation) -> list[str]:
    unknown = [f"{case}: {', '.join(organs)}" for case, organs in evaluation.unknown.items()]
    unmatched = [
        f"{name} ({side}, {cases[0] if len(cases) == 1 else f'{len(cases)} cases'})"
        for side, names in evaluation.unmatched.items()
        for name, cases in names.items()
    ]
    missed = [f"{row.case}: {row.organ}" for row in evaluation.rows if row.is_missed]
    sources = [
        f"{side}: {source} ({count} cases)"
        for side, counts in evaluation.values_from.items()
        for source, count in counts.items()
    ]
    refused = [f"{case}: {reason}" for case, reason in evaluation.refused.items()]
    parts = {
        "Missed by the prediction (DSC and surface DSC 0, no distance)": missed,
        "Not contoured in the reference (unknown, left out)": unknown,
        "Names and values that are not a known organ (left out)": unmatched,
        "Organs that were not requested (left out)": evaluation.not_requested,
        "Cases without a prediction (left out)": evaluation.only_reference,
        "Cases without a reference (left out)": evaluation.only_prediction,
        "Cases that could not be compared": refused,
        "Source of the organ names of label values": sources,
    }
    return [f"{title}: {'; '.join(entries) or 'none'}." for title, entries in parts.items()]


def _view(
    reference: CroppedMask, prediction: CroppedMask | None, grid: Grid
) -> tuple[Box, list[int]]:
    """Return the box to show, a cube cut to the grid, and the voxel where the three slices meet."""
    union = union_box([piece.box for piece in (reference, prediction) if piece is not None])
    expected = reference.within(union)
    differs = expected if prediction is None else expected ^ prediction.within(union)
    cut = [union[a].start + offset for a, offset in enumerate(_cut(differs, expected, grid))]
    spacing = grid.spacing_mm
    extents = [(union[a].stop - union[a].start) * spacing[a] for a in range(3)]
    side_mm = max(*extents, SMALLEST_VIEW_MM - 2 * MARGIN_MM) + 2 * MARGIN_MM
    side_mm = min(side_mm, LARGEST_VIEW_MM)
    slices = []
    for a in range(3):
        half = side_mm / 2 / spacing[a]
        fits = extents[a] <= side_mm
        middle = (union[a].start + union[a].stop) / 2 if fits else cut[a] + 0.5
        low, high = math.floor(middle - half), math.ceil(middle + half)
        slices.append(slice(max(0, low), min(grid.shape_vox[a], high)))
    return (slices[0], slices[1], slices[2]), cut


def _cut(differs: MaskArray, reference: MaskArray, grid: Grid) -> tuple[int, int, int]:
    """Return the voxel where the three slices meet: for z, then y, then x, where most voxels differ."""
    x, y, z = closest_ras(grid)[0]
    # Slices beyond the reference would show the prediction alone.
    in_reach = differs & reference.any(axis=(x, y), keepdims=True)
    remaining = in_reach if in_reach.any() else reference
    cut = [0, 0, 0]
    for axis in (z, y, x):
        others = tuple(a for a in range(3) if a != axis)
        cut[axis] = int(remaining.sum(axis=others).argmax())
        remaining = remaining.take([cut[axis]], axis)
    return cut[0], cut[1], cut[2]


def _number(value: float | None, digits: int, *, sign: str = "") -> str:
    if value is None or math.isnan(value):
        return "\N{EN DASH}"
    return f"{value:{sign}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _percent(value: float | None) -> str:
    return _number(None if value is None else 100 * value, 1)


def _volume(value: float | None, *, sign: str = "") -> str:
    return _number(value, 2 if value is not None and abs(value) < 10 else 1, sign=sign)


def _mean_sd(s: Mapping[str, float | int | None], digits: int, *, scale: float = 1) -> str:
    mean, sd = s["mean"], s["sd"]
    if mean is None:
        return _number(None, digits)
    spread = "" if sd is None else f" ± {_number(scale * sd, digits)}"
    return _number(scale * mean, digits) + spread
