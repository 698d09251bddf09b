"""Policy-guided rank search: propose plans, measure them, log every trial, on any number of machines."""

from common.search.search import search_ranks
from common.search.session import SearchResult
from common.search.settings import SearchSettings

__all__ = ["SearchResult", "SearchSettings", "search_ranks"]
