"""What MONAI Label loads."""

from lib.app import OrganNetApp

__all__ = ["OrganNetApp"]
