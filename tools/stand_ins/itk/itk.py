"""Stand-in for itk 5.4 (1.5 GB).

MONAI Label 0.8.5 imports the module at start (`monailabel/transform/writer.py`) and uses it in `write_itk`,
which OrganNet Label does not call: it reads and writes volumes with SimpleITK (`lib.imaging`).
"""


def __getattr__(name: str) -> object:
    raise AttributeError(
        f"itk.{name}: this is a stand-in for itk, installed with OrganNet Label; "
        "to use the library itself, install it in another environment: pip install itk"
    )
