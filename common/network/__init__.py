"""A network as the suite sees it: which layers can be factored, their shapes and costs, hooks, modes, provenance."""

from common.network.profiling import LayerProfile, Profile, profile

__all__ = ["LayerProfile", "Profile", "profile"]
