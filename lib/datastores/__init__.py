"""MONAI Label's stores made safe."""
