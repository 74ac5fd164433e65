"""OrganNet Label: OrganNet2.5D behind MONAI Label, for contouring organs at risk in CT."""

__version__ = "0.1.0"
