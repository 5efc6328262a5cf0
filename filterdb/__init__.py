"""The filter database: collect convolution filters from models, store them, query them."""

from __future__ import annotations

from filterdb.database import Database as Database
from filterdb.database import open as open
from filterdb.published import export as export
from filterdb.published import read_published as read_published
from filterdb.records import Entry as Entry
from filterdb.records import entries as entries
from filterdb.store import Collected as Collected
from filterdb.store import collect as collect
from filterdb.sums import Sums as Sums
from filterdb.sums import layer_sums as layer_sums

__all__ = ["Collected", "Database", "Entry", "Sums", "collect", "entries", "export", "layer_sums", "open",
           "read_published"]
