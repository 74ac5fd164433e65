"""Everything that this project raises on purpose.

    OrganNetError
    |-- ConfigError       (ValueError)    a setting, a flag or a recipe is wrong
    |-- ScanError         (ValueError)    a file or folder is not one readable CT volume
    |   `-- GeometryError (ValueError)    its slices, or two grids, do not fit together
    |-- LabelError        (ValueError)    a label volume cannot be what it claims to be
    |-- DatastoreError    (LookupError)   an image, label or session is not there, or its name is not allowed
    |   `-- ImageExistsError (ValueError) another image has the id already
    |-- CheckpointError   (ValueError)    weights do not belong to the network, or are damaged
    |   |-- NoModelError  (LookupError)   no model is served yet
    |   `-- UnknownModelError (LookupError) no model has that version
    |-- TrainingError     (RuntimeError)  a training run cannot start or go on
    |-- StateError        (RuntimeError)  the workflow's database cannot be used
    |-- PacsError         (RuntimeError)  the PACS does not answer, or refuses
    |   `-- NotDeliveredError (RuntimeError) it answers, but does not deliver one thing that it lists
    `-- StorageFullError  (RuntimeError)  the disk is full; what is on it is untouched

A message names the case, what was found, what was expected, and what to do; it names the image id,
never the patient.
"""


class OrganNetError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(OrganNetError, ValueError):
    """A setting, a flag or a recipe is wrong."""


class ScanError(OrganNetError, ValueError):
    """A file or folder is not one readable CT volume."""


class GeometryError(ScanError):
    """Slices do not form a regular grid, or two grids differ."""


class LabelError(OrganNetError, ValueError):
    """A label volume cannot be what it claims to be."""


class DatastoreError(OrganNetError, LookupError):
    """An image, label or session is not there, or its name is not allowed."""


class ImageExistsError(DatastoreError, ValueError):
    """Another image has the id already."""


class CheckpointError(OrganNetError, ValueError):
    """Weights do not belong to the network, or are damaged."""


class NoModelError(CheckpointError, LookupError):
    """No model is served yet."""


class UnknownModelError(CheckpointError, LookupError):
    """No model has that version."""


class TrainingError(OrganNetError, RuntimeError):
    """A training run cannot start or go on."""


class StateError(OrganNetError, RuntimeError):
    """The workflow's database cannot be used."""


class PacsError(OrganNetError, RuntimeError):
    """The PACS cannot be reached, or does not do what it is asked for."""


class NotDeliveredError(PacsError):
    """The PACS answers, but not for one series or object: the next one may well be delivered."""


class StorageFullError(OrganNetError, RuntimeError):
    """The disk is full: nothing new was kept, and everything that was there is untouched."""
