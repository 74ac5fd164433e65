"""STOW-RS responses in the forms that the standard defines."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lib.dicom.ct_writer import write_ct_series
from lib.dicom.stow import (
    CANNOT_UNDERSTAND,
    PROCESSING_FAILURE,
    SEG,
    ObjectId,
    StoreResult,
    decode_response,
    encode_response,
    http_status,
    read_object_id,
    response_dataset,
)
from lib.errors import ScanError
from tests.phantoms import make_ct

ONE = ObjectId(SEG, "1.2.1", "1.2")
TWO = ObjectId(SEG, "1.2.2", "1.2")
KEPT = StoreResult(object_id=ONE, comment="kept as version 3")
REFUSED = StoreResult(object_id=TWO, comment="no organ of ours", failure=PROCESSING_FAILURE)
GARBAGE = StoreResult(object_id=None, comment="no DICOM", failure=CANNOT_UNDERSTAND)


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        ([KEPT], 200),
        ([KEPT, KEPT], 200),
        ([KEPT, REFUSED], 202),
        ([REFUSED], 409),
        ([GARBAGE, REFUSED], 409),
    ],
)
def test_the_status_depends_on_whether_all_some_or_no_objects_are_stored(
    outcomes: list[StoreResult], status: int
) -> None:
    assert http_status(outcomes) == status


def test_json_lists_stored_and_failed_objects_with_codes_and_comments() -> None:
    content, media_type = encode_response(response_dataset([KEPT, REFUSED, GARBAGE]), "*/*")
    assert media_type == "application/dicom+json"
    answer = json.loads(content)
    (stored,) = answer["00081199"]["Value"]
    (failed,) = answer["00081198"]["Value"]
    (other,) = answer["0008119A"]["Value"]
    assert stored["00081150"]["Value"] == [SEG]
    assert stored["00081155"]["Value"] == ["1.2.1"]
    assert stored["00991001"]["Value"] == ["kept as version 3"]
    assert stored["00990010"]["Value"] == ["ORGANNET LABEL"]
    assert failed["00081155"]["Value"] == ["1.2.2"]
    assert failed["00081197"]["Value"] == [0x0110]
    assert failed["00991001"]["Value"] == ["no organ of ours"]
    assert other["00081197"]["Value"] == [0xC000]
    assert "00081155" not in other


def test_json_is_read_back() -> None:
    content, _ = encode_response(response_dataset([KEPT, REFUSED]), "application/dicom+json")
    assert decode_response(content).FailedSOPSequence[0].FailureReason == PROCESSING_FAILURE


def test_xml_is_written_if_only_xml_is_accepted() -> None:
    content, media_type = encode_response(
        response_dataset([KEPT, REFUSED]), "application/dicom+xml"
    )
    assert media_type == "application/dicom+xml"
    root = ElementTree.fromstring(content)  # noqa: S314 - our own
    assert root.tag == "NativeDicomModel"
    uid = root.find("DicomAttribute[@keyword='ReferencedSOPSequence']/Item[@number='1']/"
                    "DicomAttribute[@tag='00081155'][@vr='UI']/Value[@number='1']")  # fmt: skip
    reason = root.find("DicomAttribute[@tag='00081198']/Item/DicomAttribute[@tag='00081197']/Value")
    assert uid is not None
    assert uid.text == "1.2.1"
    assert reason is not None
    assert reason.text == "272"


def test_json_is_written_if_both_are_accepted() -> None:
    accept = "application/dicom+xml, application/dicom+json"
    assert encode_response(response_dataset([KEPT]), accept)[1] == "application/dicom+json"


def test_the_object_id_of_a_file_is_read(tmp_path: Path) -> None:
    series_uid = write_ct_series(make_ct(), tmp_path / "ct", patient_id="p")
    first, *_ = sorted((tmp_path / "ct").iterdir())
    found = read_object_id(first)
    assert found.sop_class_uid == "1.2.840.10008.5.1.4.1.1.2"
    assert found.sop_instance_uid != series_uid
    assert len({found.sop_instance_uid, found.study_uid, series_uid}) == 3


@pytest.mark.filterwarnings("ignore:End of file reached:UserWarning")
@pytest.mark.parametrize(
    "content",
    [b"", b"no DICOM at all", bytes(128) + b"DICM", bytes(128) + b"DICM" + b"\xff" * 400],
    ids=["empty", "text", "no meta", "rubbish"],
)
def test_a_file_that_is_not_a_dicom_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sent.dcm").write_bytes(content)
    with pytest.raises(ScanError, match="DICOM"):
        read_object_id(tmp_path / "sent.dcm")


def test_a_truncated_object_is_refused(tmp_path: Path) -> None:
    write_ct_series(make_ct(), tmp_path / "ct", patient_id="p")
    first, *_ = sorted((tmp_path / "ct").iterdir())
    first.write_bytes(first.read_bytes()[:500])
    with pytest.raises(ScanError, match="DICOM"):
        read_object_id(first)


def test_an_invalid_response_is_refused() -> None:
    for content in (b"", b"<html>", b"[1]", b'{"0008": 1}'):
        with pytest.raises(ScanError, match="expected a DICOM JSON response"):
            decode_response(content)
