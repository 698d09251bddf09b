"""Low-rank compression of trained CNNs; import from the rooms, e.g. ``from common.compression import compress``."""
