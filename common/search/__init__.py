"""Policy-guided rank search: sample plans, measure them, log every trial."""

from common.search.candidates import LEVEL_NAMES
from common.search.study import SearchResult, SearchSettings, search_ranks

__all__ = ["LEVEL_NAMES", "SearchResult", "SearchSettings", "search_ranks"]
