"""OrganNet Label: OrganNet2.5D behind MONAI Label, for contouring organs at risk in CT."""

import os

# Before MLflow is imported, which MONAI does: a hospital's computer must not send usage data.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

__version__ = "0.1.0"
