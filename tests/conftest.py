from __future__ import annotations

from hypothesis import settings

settings.register_profile("suite", deadline=None)  # a busy machine fails no test that only takes long
settings.load_profile("suite")
