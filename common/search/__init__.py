"""Policy-guided rank search: sample plans, measure them, log every trial."""

from common.search.study import SearchResult, SearchSettings, search_ranks

__all__ = ["SearchResult", "SearchSettings", "search_ranks"]
