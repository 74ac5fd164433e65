"""What the DICOM object of a label version says of itself, wherever it goes."""

from lib.dicom.object_attributes import ObjectProvenance, derived_uid
from lib.dicom.objects import Kind
from lib.storage.tables import LabelVersion

MODEL = "OrganNet2.5D"


def provenance_of(version: LabelVersion, kind: Kind, series_uid: str) -> ObjectProvenance:
    """Return what the object of a label's version says of itself; the same ids each time.

    Args:
        version: The version.
        kind: Of the object.
        series_uid: SeriesInstanceUID of the CT.
    """
    what = (series_uid, kind, version.tag, str(version.number), version.digest)
    has_model = bool(version.model_version)
    return ObjectProvenance(
        sop_instance_uid=derived_uid("instance", *what),
        series_instance_uid=derived_uid("series", *what),
        author=version.author,
        model=MODEL if has_model else None,
        model_version=version.model_version or "",
        is_automatic=has_model and version.source == "infer",
        description=f"OrganNet Label {version.tag} {version.number}",
        created=version.submitted_at,
    )
