"""Stand-in for pydicom-seg 0.4.1, which allows only pydicom < 3 and numpy < 2.

MONAI Label 0.8.5 imports the module at start (`monailabel/datastore/utils/convert.py`) and uses it in functions
that OrganNet Label replaces by its own reader and writer of DICOM SEG (`lib.dicom.seg`).
"""


def __getattr__(name: str) -> object:
    raise AttributeError(
        f"pydicom_seg.{name}: this is a stand-in for pydicom-seg, installed with OrganNet Label; "
        "to use the library itself, install it in another environment: pip install pydicom-seg"
    )
