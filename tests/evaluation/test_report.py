import re
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from lib.errors import OrganNetError
from lib.evaluation.case_loading import CaseContours, read_contours
from lib.evaluation.charts import HUMAN, NETWORKS, bland_altman, charts, volume_chart
from lib.evaluation.report import draw_worst, worst_picture, worst_rows, write_report
from lib.evaluation.table import Evaluation, Row
from lib.imaging.scans import write_label
from lib.imaging.volumes import LabelVolume
from lib.organs.table import ORGANS
from tests.phantoms import make_grid, make_label

VALUES = {"Brainstem": 1, "Parotid_R": 2, "Larynx": 7}
SIDES = ("experts <1>", "network")


def row(case: str, organ: str, dsc: float, *, reference: float = 10, prediction: float = 10) -> Row:
    is_missed = prediction == 0
    return Row(
        case=case,
        organ=organ,
        dsc=0 if is_missed else dsc,
        hd95_mm=float("nan") if is_missed else 10 * (1 - dsc),
        surface_dsc=0 if is_missed else dsc,
        tolerance_mm=ORGANS[organ].tolerance_mm,
        msd_mm=float("nan") if is_missed else 1 - dsc,
        volume_reference_ml=reference,
        volume_prediction_ml=prediction,
    )


EVALUATION = Evaluation(
    rows=[
        *(row(f"case_{i}", "Brainstem", 0.8 + 0.02 * i, prediction=9 + i) for i in range(5)),
        *(row(f"case_{i}", "Lens_L", 0.6 + 0.02 * i) for i in range(2)),
        row("case_0", "Parotid_R", 0.5),
        row("case_1", "Parotid_L", 0.9, prediction=0),
    ],
    cases=[f"case_{i}" for i in range(5)],
    unknown={"case_2": ["Parotid_L"]},
    unmatched={"prediction": {"GTV": ["case_0", "case_1"]}},
    refused={"case_9": "case_9: the label lies on another grid & so on"},
)


class Page(HTMLParser):
    """Every tag's attributes, and whether tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, EVALUATION, charts(EVALUATION), [], sides=SIDES, made="today")
    return path.read_text(encoding="utf-8")


def test_the_report_needs_no_other_file_and_no_script(page: str) -> None:
    parsed = Page(page)
    assert not parsed.open
    assert not {"script", "link", "iframe", "object"} & set(parsed.tags)
    sources = [value or "" for name, value in parsed.attributes if name in ("src", "href")]
    assert len(sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"url\(|@import|https?://", page)


def test_the_report_lists_what_was_left_out(page: str) -> None:
    assert "experts &lt;1&gt;" in page
    assert "case_1: Parotid_L" in page
    assert "case_2: Parotid_L" in page
    assert "GTV (prediction, 2 cases)" in page
    assert "another grid &amp; so on" in page
    assert "1 contour of the reference was missed" in page


def test_the_table_holds_the_organs_numbers(page: str) -> None:
    # Brainstem: 0.80, 0.82, .. 0.88: mean 84.0, SD sqrt(0.001) = 3.2, percentiles 80.4 and 87.6.
    assert "<td>Brainstem</td><td>5</td><td>84.0 ± 3.2</td><td>84.0 [80.4, 87.6]</td>" in page


def test_a_report_without_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OrganNetError, match="nothing to report"):
        write_report(tmp_path / "r.html", Evaluation(), {}, [], sides=SIDES, made="")


@pytest.mark.parametrize("rows", [EVALUATION.rows, EVALUATION.rows[:1], EVALUATION.rows[-1:]])
def test_every_chart_is_a_picture_however_few_contours_there_are(rows: list[Row]) -> None:
    for picture in charts(Evaluation(rows=rows)).values():
        assert imread(BytesIO(picture)).shape[2] == 4


def test_a_far_outlier_is_drawn_on_a_logarithmic_axis() -> None:
    rows = [row("a", "Brainstem", dsc) for dsc in (0.9, 0.91, 0.92, 0.93, -40.0)]
    assert volume_chart(Evaluation(rows=rows))
    assert charts(Evaluation(rows=rows))["hd95"]


def test_limits_of_agreement_by_hand() -> None:
    # Differences of +20 % and 0 % of the mean: bias 10, SD sqrt(200) = 14.142, 1.96 SD = 27.719.
    limits = bland_altman(
        [
            row("a", "Brainstem", 0.9, reference=9, prediction=11),
            row("b", "Brainstem", 0.9),
            row("c", "Brainstem", 0.9, prediction=0),
        ]
    )
    assert limits.n == 2
    assert limits.bias_percent == pytest.approx(10)
    assert limits.low_percent == pytest.approx(10 - 27.719, abs=1e-3)
    assert limits.high_percent == pytest.approx(10 + 27.719, abs=1e-3)


def test_published_values_are_those_of_the_publications() -> None:
    names = [line.name for line in NETWORKS]
    assert names == sorted(names, key=lambda name: int(name[-4:]))
    means = {line.name: np.mean(list(line.dsc.values())) for line in NETWORKS}
    printed = {"AnatomyNet 2018": 79.3, "FocusNet 2019": 80.3, "UaNet 2019": 81.2, "SOARS 2020": 82.4,
               "OrganNet2.5D 2021": 81.3}  # fmt: skip
    assert means == {name: pytest.approx(v / 100, abs=6e-4) for name, v in printed.items()}
    assert all(set(line.dsc) <= set(ORGANS) for line in (*NETWORKS, HUMAN))


def test_the_worst_are_missed_ones_first_and_one_of_each_pair() -> None:
    chosen = [(r.case, r.organ) for r in worst_rows(EVALUATION, 3)]
    assert chosen == [("case_1", "Parotid_L"), ("case_0", "Lens_L"), ("case_0", "Brainstem")]


@pytest.fixture
def both(tmp_path: Path) -> tuple[CaseContours, CaseContours]:
    reference = make_label()
    prediction = np.roll(reference, 2, axis=0)
    prediction[prediction == 7] = 0
    with ThreadPoolExecutor(1) as pool:
        sides = []
        for name, array in (("reference", reference), ("prediction", prediction)):
            path = tmp_path / name / "a.nrrd"
            write_label(path, LabelVolume(array, make_grid(), VALUES))
            sides.append(read_contours("a", path, values=VALUES, pool=pool))
    return sides[0], sides[1]


@pytest.mark.parametrize("organ", sorted(VALUES))
def test_a_worst_case_is_drawn_even_if_it_was_missed(
    organ: str, both: tuple[CaseContours, CaseContours]
) -> None:
    picture = imread(BytesIO(worst_picture(organ, *both, None)))[..., :3]
    blue = np.abs(picture - np.array([0x00, 0x72, 0xB2]) / 255).max(axis=-1) < 0.1
    third = picture.shape[1] // 3
    above_legend = int(0.85 * picture.shape[0])
    for panel in range(3):
        assert blue[:above_legend, panel * third : (panel + 1) * third].any(), panel


def test_the_note_says_why_a_ct_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    write_label(path, LabelVolume(make_label(), make_grid(), VALUES))
    (tmp_path / "ct.nrrd").write_bytes(b"")
    evaluation = Evaluation(rows=[row("a", "Brainstem", 0.5)], cases=["a"])
    worst = draw_worst(
        evaluation, {"a": path}, {"a": path}, {"a": tmp_path / "ct.nrrd"}, values=VALUES
    )
    assert worst[0].note == "Drawn without the CT: a: ct.nrrd is empty (0 bytes); copy it again."
