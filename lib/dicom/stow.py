"""STOW-RS (PS3.18 section 10.5): what an object is, and the answer that says what became of each."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pydicom
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.sequence import Sequence as Items

from lib.errors import ScanError

SEG = "1.2.840.10008.5.1.4.1.1.66.4"
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"

OUT_OF_RESOURCES = 0xA700
DOES_NOT_MATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
PROCESSING_FAILURE = 0x0110
"""Failure reasons (PS3.18 Annex I.2.2)."""

COMMENT_CREATOR = "ORGANNET LABEL"
COMMENT_GROUP = 0x0099
"""Private block of the sentence for people: the standard's answer has numbers alone."""

OK, ACCEPTED, CONFLICT = 200, 202, 409


@dataclass(frozen=True, slots=True)
class ObjectId:
    """Which object a file holds.

    Attributes:
        sop_class_uid: What kind of object it is.
        sop_instance_uid: Which one.
        study_uid: Its study.
    """

    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreResult:
    """What became of one part of a request.

    Attributes:
        object_id: What it was; None where that cannot be told.
        comment: What to tell people.
        failure: Why it is not stored, as a number of the standard; None where it is.
    """

    object_id: ObjectId | None
    comment: str = ""
    failure: int | None = None


def read_object_id(path: Path) -> ObjectId:
    """Return what a file of PS3.10 holds.

    Raises:
        ScanError: If it is none, or does not say what it holds.
    """
    wanted = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID"]
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=wanted)
        values = [str(dataset[name].value) for name in wanted]
    except (InvalidDicomError, KeyError, ValueError, TypeError, EOFError, AttributeError) as error:
        raise ScanError(f"this is no DICOM object with its UIDs ({error})") from error
    if not all(values):
        raise ScanError("this DICOM object leaves one of its UIDs empty")
    return ObjectId(*values)


def status_of(outcomes: Sequence[StoreResult]) -> int:
    """Return the HTTP status: all stored, some, or none (PS3.18 table 10.5.3-1)."""
    failed = sum(outcome.failure is not None for outcome in outcomes)
    if not failed:
        return OK
    return CONFLICT if failed == len(outcomes) else ACCEPTED


def response_dataset(outcomes: Sequence[StoreResult]) -> Dataset:
    """Return the Store Instances Response Module (PS3.18 table 10.5.3-2)."""
    response = Dataset()
    # Type 2, empty: what is kept here is not for retrieval until the PACS has it.
    response.RetrieveURL = ""
    stored = [_item(one) for one in outcomes if one.failure is None and one.object_id]
    failed = [_item(one) for one in outcomes if one.failure is not None and one.object_id]
    other = [_item(one) for one in outcomes if one.failure is not None and not one.object_id]
    if failed:
        response.FailedSOPSequence = Items(failed)
    if stored:
        response.ReferencedSOPSequence = Items(stored)
    if other:
        response.OtherFailuresSequence = Items(other)
    return response


def _item(outcome: StoreResult) -> Dataset:
    item = Dataset()
    if outcome.object_id is not None:
        item.ReferencedSOPClassUID = outcome.object_id.sop_class_uid
        item.ReferencedSOPInstanceUID = outcome.object_id.sop_instance_uid
    if outcome.failure is not None:
        item.FailureReason = outcome.failure
    elif outcome.object_id is not None:
        item.RetrieveURL = ""
    if outcome.comment:
        block = item.private_block(COMMENT_GROUP, COMMENT_CREATOR, create=True)
        block.add_new(0x01, "UT", outcome.comment)
    return item


def encoded(response: Dataset, accept: str) -> tuple[bytes, str]:
    """Return a response and its media type: JSON (PS3.18 Annex F), or XML where only that is accepted."""
    if "xml" in accept and "json" not in accept:
        return _xml(response), "application/dicom+xml"
    return json.dumps(response.to_json_dict()).encode(), "application/dicom+json"


def decoded(content: bytes) -> Dataset:
    """Return a response that a PACS gave as JSON.

    Raises:
        ScanError: If it is none.
    """
    try:
        return Dataset.from_json(json.loads(content))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ScanError(f"expected a DICOM JSON answer, found {content[:80]!r}") from error


def _xml(dataset: Dataset) -> bytes:
    root = ElementTree.Element("NativeDicomModel")
    _append(root, dataset)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _append(parent: ElementTree.Element, dataset: Dataset) -> None:
    """Put the standard elements of a dataset below `parent`, in the Native DICOM Model (PS3.19 Annex A.1)."""
    for element in dataset:
        if element.tag.is_private:
            continue
        about = {"tag": f"{int(element.tag):08X}", "vr": element.VR}
        about["keyword"] = keyword_for_tag(element.tag)
        node = ElementTree.SubElement(parent, "DicomAttribute", about)
        for number, value in enumerate(_values(element), start=1):
            if isinstance(value, Dataset):
                _append(ElementTree.SubElement(node, "Item", number=str(number)), value)
            else:
                ElementTree.SubElement(node, "Value", number=str(number)).text = str(value)


def _values(element: DataElement) -> Sequence[object]:
    if element.VR == "SQ" or element.VM > 1:
        return tuple(element.value)
    return () if element.value in (None, "") else (element.value,)
