"""Inspect a network: its factorable layers, their shapes and costs, its hooks, training modes and provenance."""

from common.network.profiling import LayerProfile, Profile, profile

__all__ = ["LayerProfile", "Profile", "profile"]
