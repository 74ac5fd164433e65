"""The report: one HTML page with its charts inside, without scripts, read from anywhere."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html import escape
from pathlib import Path

from lib.errors import OrganNetError, ScanError
from lib.evaluation.charts import (
    bland_altman,
    dsc_chart,
    hd95_chart,
    surface_dsc_chart,
    volume_chart,
)
from lib.evaluation.published_results import HUMAN, NETWORKS
from lib.evaluation.table import Evaluation, Row, organ_statistics, overall, read_pair
from lib.evaluation.worst_cases import worst_picture, worst_rows
from lib.imaging.geometry import require_same_grid
from lib.imaging.scans import read_ct
from lib.organs.table import NIKOLOV, ORGANS
from lib.reports.html_page import figure, page
from lib.storage.atomic_files import replacing

_log = logging.getLogger(__name__)

WORST = 6

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


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstCase:
    """One of the contours that agree least.

    Attributes:
        row: Its numbers.
        picture: PNG.
        note: What else the caption says.
    """

    row: Row
    picture: bytes
    note: str


def draw_worst(
    found: Evaluation,
    references: Mapping[str, Path],
    predictions: Mapping[str, Path],
    images: Mapping[str, Path],
    *,
    values: Mapping[str, int] | None = None,
    count: int = WORST,
) -> list[WorstCase]:
    """Return pictures of the contours that agree least, over the CT where `images` has it.

    A CT that cannot be read, or lies on another grid than the contours, is named in the note and left out.

    Args:
        found: What was evaluated.
        references: Case -> files, as evaluated.
        predictions: Likewise.
        images: Case -> CT.
        values: As evaluated.
        count: How many contours.
    """
    drawn: dict[Row, WorstCase] = {}
    rows = worst_rows(found, count)
    with ThreadPoolExecutor(2) as pool:
        for case in dict.fromkeys(row.case for row in rows):
            pair = read_pair(case, references[case], predictions[case], values, pool)
            ct, note = None, "No CT was given; other organs of the reference in grey."
            if case in images:
                try:
                    ct = read_ct(images[case], image_id=case)
                    require_same_grid(case, label=pair[0].grid, image=ct.grid)
                    note = f"CT window -160 to 240 HU ({images[case].name})."
                except ScanError as error:
                    ct, note = None, f"Drawn without its CT: {error}."
                    _log.warning("%s: drawn without its CT: %s", case, error)
            for row in (r for r in rows if r.case == case):
                picture = worst_picture(row.organ, *pair, ct)
                drawn[row] = WorstCase(row=row, picture=picture, note=note)
    return [drawn[row] for row in rows]


def charts(found: Evaluation) -> dict[str, bytes]:
    """Return the charts by the stem of their file's name, each a PNG."""
    draw: Mapping[str, Callable[[Evaluation], bytes]] = {
        "dsc": dsc_chart,
        "surface-dsc": surface_dsc_chart,
        "hd95": hd95_chart,
        "volumes": volume_chart,
    }
    return {name: chart(found) for name, chart in draw.items()}


def write_report(
    path: Path,
    found: Evaluation,
    pictures: Mapping[str, bytes],
    worst: Sequence[WorstCase],
    *,
    sides: tuple[str, str],
    made: str,
) -> None:
    """Write the report to `path`, atomically.

    Args:
        path: An HTML file.
        found: What was evaluated.
        pictures: What `charts` returned.
        worst: What `draw_worst` returned.
        sides: What the reference and the prediction are called.
        made: How and when the report was made, in words.

    Raises:
        OrganNetError: If there is nothing to report.
    """
    if not found.rows:
        raise OrganNetError(
            "there is nothing to report: no reference of a readable case contains an organ; "
            "see what was left out in summary.json"
        )
    body = "\n".join(
        [
            *_opening(found, sides, made),
            _table(found),
            *_figures(found, pictures),
            *_worst_section(worst, 5),
            *_left_out(found),
            *_definitions(),
        ]
    )
    with replacing(path) as beside:
        beside.write_text(page(f"Agreement of {sides[1]} with {sides[0]}", body), encoding="utf-8")


def _opening(found: Evaluation, sides: tuple[str, str], made: str) -> list[str]:
    every = overall(found)
    missed = sum(row.is_missed for row in found.rows)
    return [
        f"<h1>Agreement of {escape(sides[1])} with {escape(sides[0])}</h1>",
        f'<p class="by">{escape(made)}</p>',
        f"<p>{len(found.rows)} contours of {len(found.organs)} organs in {len(found.cases)} cases were "
        f"compared with <b>{escape(sides[0])}</b> as the reference. The mean of the organs' means is "
        f"{_percent(every['dsc']['mean_of_organ_means'])} % DSC, "
        f"{_number(every['hd95_mm']['mean_of_organ_means'], 2)} mm HD95 and "
        f"{_percent(every['surface_dsc']['mean_of_organ_means'])} % surface DSC. "
        f"{missed} contour{'' if missed == 1 else 's'} of the reference "
        f"{'was' if missed == 1 else 'were'} missed by the prediction.</p>",
    ]


def _table(found: Evaluation) -> str:
    head = (
        "Organ", "<i>n</i>", "DSC (%)", "DSC (%)<br>median [P5, P95]", "HD95 (mm)",
        "Surface<br>DSC (%)", "&tau; (mm)", "MSD (mm)", "Reference<br>(mL)", "Difference<br>(mL)",
        "Missed",
    )  # fmt: skip
    lines = []
    for organ in found.organs:
        rows = found.of(organ)
        s = organ_statistics(rows)
        dsc = s["dsc"]
        cells = (
            escape(organ),
            str(dsc["n"]),
            _mean_sd(s["dsc"], 1, scale=100),
            f"{_percent(dsc['median'])} [{_percent(dsc['p5'])}, {_percent(dsc['p95'])}]",
            _mean_sd(s["hd95_mm"], 2),
            _mean_sd(s["surface_dsc"], 1, scale=100),
            f"{ORGANS[organ].tolerance_mm:.2f}",
            _mean_sd(s["msd_mm"], 2),
            _volume(s["volume_reference_ml"]["mean"]),
            _volume(s["volume_difference_ml"]["mean"], sign="+"),
            str(sum(row.is_missed for row in rows)),
        )
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    every = overall(found)
    last = (
        "Mean of organs", str(len(found.rows)), _percent(every["dsc"]["mean_of_organ_means"]), "",
        _number(every["hd95_mm"]["mean_of_organ_means"], 2),
        _percent(every["surface_dsc"]["mean_of_organ_means"]), "",
        _number(every["msd_mm"]["mean_of_organ_means"], 2), "", "",
        str(sum(row.is_missed for row in found.rows)),
    )  # fmt: skip
    return (
        '<div class="wide"><table><caption><b>Table 1.</b> Agreement per organ: mean &plusmn; standard '
        "deviation over <i>n</i> contours, and the median with 5th and 95th percentile of the DSC. Organs "
        "in order of "
        "their mean DSC, sides of a pair together. &tau;: tolerance of the surface DSC. Difference: prediction "
        "minus reference, mean. A missed organ counts with DSC and surface DSC 0; HD95 and MSD are the "
        "means of the others.</caption><thead><tr>"
        + "".join(f"<th>{cell}</th>" for cell in head)
        + "</tr></thead><tbody>"
        + "\n".join(lines)
        + "</tbody><tfoot><tr>"
        + "".join(f"<td>{cell}</td>" for cell in last)
        + "</tr></tfoot></table></div>"
    )


def _figures(found: Evaluation, pictures: Mapping[str, bytes]) -> list[str]:
    counts = [len(found.of(organ)) for organ in found.organs]
    n = f"<i>n</i> = {min(counts)}" + (f" to {max(counts)}" if max(counts) > min(counts) else "")
    n += f" contours an organ, {len(found.cases)} cases"
    box = "Boxes: quartiles and median; whiskers: 5th and 95th percentile; points: single contours"
    limits = bland_altman(found.rows)
    named = {o for o in found.organs if any(o in line.dsc for line in (*NETWORKS, HUMAN))}
    marks = (
        " Open and grey marks: mean DSC of published networks on the PDDCA test set; red line: mean DSC of "
        "two observers on 28 scans. Those are other patients and, for the networks, other training sets: "
        "landmarks, not a comparison. Values per organ, but for OrganNet2.5D, are from secondary sources."
        if named
        else " No published value is at hand for these organs."
    )
    captions = (
        ("dsc", f"Dice similarity coefficient ({n}). {box}.{marks}"),
        (
            "surface-dsc",
            f"Surface DSC ({n}), each organ at its tolerance, on the right: the 95th percentile of the "
            f"distance between two experts, {NIKOLOV}, where it lists the organ. {box}.",
        ),
        ("hd95", f"95th percentile Hausdorff distance ({n}, missed contours left out). {box}."),
        (
            "volumes",
            f"Bland-Altman plot of the volumes (<i>n</i> = {limits.n} contours, missed ones left out). Bias "
            f"{_number(limits.bias_percent, 1, sign='+')} %, limits of agreement "
            f"{_number(limits.low_percent, 1, sign='+')} to {_number(limits.high_percent, 1, sign='+')} % of "
            "the mean volume, over all organs together; contours of one patient are not independent, so that "
            "the limits describe these data and are no confidence bounds. The horizontal axis is logarithmic.",
        ),
    )
    return ["<h2>Figures</h2>"] + [
        figure(number, pictures[name], caption, alt=name)
        for number, (name, caption) in enumerate(captions, start=1)
    ]


def _worst_section(worst: Sequence[WorstCase], first: int) -> list[str]:
    if not worst:
        return []
    figures = []
    for number, one in enumerate(worst, start=first):
        row = one.row
        numbers = (
            "missed by the prediction"
            if row.is_missed
            else f"DSC {_percent(row.dsc)} %, HD95 {row.hd95_mm:.1f} mm, surface DSC "
            f"{_percent(row.surface_dsc)} % at {row.tolerance_mm:.2f} mm"
        )
        caption = (
            f"{escape(row.organ)} of {escape(row.case)}: {numbers}; {_volume(row.volume_reference_ml)} mL "
            f"in the reference, {_volume(row.volume_prediction_ml)} mL in the prediction. {escape(one.note)}"
        )
        figures.append(figure(number, one.picture, caption, alt=f"{row.organ}, {row.case}"))
    return [
        "<h2>Where agreement is lowest</h2>",
        '<p class="notes">The contours of lowest surface DSC, at most one of each kind of organ, in the slices '
        "where reference and prediction differ most; where they differ is shaded if there is no CT. The "
        "patient's right is on the picture's left.</p>",
        *figures,
    ]


def _left_out(found: Evaluation) -> list[str]:
    unknown = [f"{case}: {', '.join(organs)}" for case, organs in found.unknown.items()]
    unmatched = [
        f"{name} ({side}, {_cases(cases)})"
        for side, names in found.unmatched.items()
        for name, cases in names.items()
    ]
    missed = [f"{row.case}: {row.organ}" for row in found.rows if row.is_missed]
    read = [
        f"{side}: {source} ({count} cases)"
        for side, sources in found.values_from.items()
        for source, count in sources.items()
    ]
    parts = (
        ("Missed by the prediction: DSC and surface DSC 0, no distance", missed),
        ("Not contoured in the reference: unknown, left out", unknown),
        ("Names and values that mean no organ of ours: left out", unmatched),
        ("Organs that were not asked for: left out", found.unasked),
        ("Cases without a prediction: left out", found.only_reference),
        ("Cases without a reference: left out", found.only_prediction),
        ("Cases that could not be compared", [f"{c}: {why}" for c, why in found.refused.items()]),
        ("Label values were named by", read),
    )
    items = [
        f"<li>{escape(title)}: {escape('; '.join(entries)) if entries else 'none'}.</li>"
        for title, entries in parts
        if entries or "read" not in title
    ]
    return [
        "<h2>What was counted, and what was left out</h2>",
        "<ul class='notes'>",
        *items,
        "</ul>",
    ]


def _definitions() -> list[str]:
    definitions: Iterable[tuple[str, str]] = (
        ("DSC", "2|A&cap;B| / (|A|+|B|) over voxels [1]."),
        (
            "Surface DSC",
            "the share of both surfaces, by area, that lies no further than the tolerance &tau; from the other "
            "surface [2].",
        ),
        (
            "HD95",
            "the 95th percentile, by area, of the distances from one surface to the other; the larger of both "
            "directions [2].",
        ),
        ("MSD", "the mean, by area, of those distances; the mean of both directions [2]."),
        (
            "Missing organs",
            "an organ that the reference does not contain is unknown, not absent, and left out, whatever was "
            "predicted. An organ that the prediction does not contain has DSC and surface DSC 0; its distances "
            "are not defined and enter no mean.",
        ),
        (
            "Volumes",
            "number of voxels times their size. Bland-Altman: bias &plusmn; 1.96 standard deviations [3].",
        ),
        ("Names", "AAPM TG-263 [4]. PDDCA is the data set of the MICCAI 2015 challenge [5]."),
    )
    cited = [*REFERENCES, *(f"{line.name}: {line.citation}." for line in (*NETWORKS, HUMAN))]
    return [
        "<h2>Definitions</h2>",
        "<ul class='notes'>",
        *(f"<li><b>{name}</b>: {text}</li>" for name, text in definitions),
        "</ul>",
        "<h2>References</h2>",
        "<ol class='notes'>",
        *(f"<li>{escape(text)}</li>" for text in cited),
        "</ol>",
    ]


def _cases(cases: Sequence[str]) -> str:
    return cases[0] if len(cases) == 1 else f"{len(cases)} cases"


def _number(value: float | None, digits: int, *, sign: str = "") -> str:
    if value is None or value != value:
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
    spread = "" if sd is None else f" &plusmn; {_number(scale * sd, digits)}"
    return _number(scale * mean, digits) + spread
