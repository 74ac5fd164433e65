"""Adapters of MONAI Label's interfaces: inference, training, strategies and sessions."""
