"""Entry point of MONAI Label, which looks for the app class in this file."""

from lib.app import OrganNetApp

__all__ = ["OrganNetApp"]
