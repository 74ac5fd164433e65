"""ohif."""
