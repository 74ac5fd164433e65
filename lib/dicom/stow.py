"""STOW-RS (PS3.18 section 10.5): identity of an object, and the response with the result of each object."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from lib.errors import ScanError
from lib.imaging.dicom_files import PARSING_ERRORS, read_dicom

SEG = "1.2.840.10008.5.1.4.1.1.66.4"
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"

OUT_OF_RESOURCES = 0xA700
DOES_NOT_MATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
PROCESSING_FAILURE = 0x0110
"""Failure reasons (PS3.18 Annex I.2.2)."""

COMMENT_CREATOR = "ORGANNET LABEL"
COMMENT_GROUP = 0x0099
"""Private block with a readable message: the standard's response contains numbers only."""

OK, ACCEPTED, CONFLICT = 200, 202, 409


@dataclass(frozen=True, slots=True)
class ObjectId:
    """Identity of the DICOM object in a file.

    Attributes:
        sop_class_uid: SOPClassUID, the type of the object.
        sop_instance_uid: SOPInstanceUID.
        study_uid: StudyInstanceUID.
    """

    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreResult:
    """Result of one part of a request.

    Attributes:
        object_id: Identity of the object; None if it cannot be read.
        comment: Message for the user.
        failure: Failure reason as a number of the standard; None if it is stored.
    """

    object_id: ObjectId | None
    comment: str = ""
    failure: int | None = None


def read_object_id(path: Path) -> ObjectId:
    """Return the identity of the object in a DICOM file (PS3.10).

    Raises:
        ScanError: If it is not such a file, or a UID is missing.
    """
    keywords = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID"]
    try:
        dataset = read_dicom(path, keywords=keywords)
        values = [str(dataset[name].value) for name in keywords]
    except PARSING_ERRORS as error:
        raise ScanError(f"not a DICOM object with UIDs ({error})") from error
    if not all(values):
        raise ScanError("a UID of the DICOM object is empty")
    return ObjectId(*values)


def http_status(outcomes: Sequence[StoreResult]) -> int:
    """Return the HTTP status for all, some or no objects stored (PS3.18 table 10.5.3-1)."""
    failed = sum(outcome.failure is not None for outcome in outcomes)
    if not failed:
        return OK
    return CONFLICT if failed == len(outcomes) else ACCEPTED


def response_dataset(outcomes: Sequence[StoreResult]) -> Dataset:
    """Return the Store Instances Response Module (PS3.18 table 10.5.3-2)."""
    response = Dataset()
    # Type 2, empty: an object cannot be retrieved before the PACS has it.
    response.RetrieveURL = ""
    stored = [_item(o) for o in outcomes if o.failure is None and o.object_id]
    failed = [_item(o) for o in outcomes if o.failure is not None and o.object_id]
    other = [_item(o) for o in outcomes if o.failure is not None and not o.object_id]
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


def encode_response(response: Dataset, accept: str) -> tuple[bytes, str]:
    """Return a response and its media type: JSON (PS3.18 Annex F), or XML if only XML is accepted."""
    if "xml" in accept and "json" not in accept:
        return _xml(response), "application/dicom+xml"
    return json.dumps(response.to_json_dict()).encode(), "application/dicom+json"


def decode_response(content: bytes) -> Dataset:
    """Return a PACS's JSON response as a dataset.

    Raises:
        ScanError: If it is not DICOM JSON.
    """
    try:
        return Dataset.from_json(json.loads(content))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ScanError(f"expected a DICOM JSON response, found {content[:80]!r}") from error


def _xml(dataset: Dataset) -> bytes:
    root = ElementTree.Element("NativeDicomModel")
    _append(root, dataset)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _append(parent: ElementTree.Element, dataset: Dataset) -> None:
    """Append the standard elements of a dataset to `parent`, as Native DICOM Model (PS3.19 Annex A.1)."""
    for element in dataset:
        if element.tag.is_private:
            continue
        attributes = {"tag": f"{int(element.tag):08X}", "vr": element.VR}
        attributes["keyword"] = keyword_for_tag(element.tag)
        node = ElementTree.SubElement(parent, "DicomAttribute", attributes)
        for number, value in enumerate(_values(element), start=1):
            if isinstance(value, Dataset):
                _append(ElementTree.SubElement(node, "Item", number=str(number)), value)
            else:
                ElementTree.SubElement(node, "Value", number=str(number)).text = str(value)


def _values(element: DataElement) -> Sequence[object]:
    if element.VR == "SQ" or element.VM > 1:
        return tuple(element.value)
    return () if element.value in (None, "") else (element.value,)
