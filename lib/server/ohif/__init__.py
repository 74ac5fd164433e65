"""OHIF viewer: patches of its bundle, and the scripts that are added to it."""
