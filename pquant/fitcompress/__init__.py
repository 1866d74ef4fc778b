"""FITCompress: search the joint pruning and quantization configuration."""

from pquant.fitcompress.fisher import Fisher, StoppingRule, fisher
from pquant.fitcompress.fitcompress import FITCompress, PruningSchedule
from pquant.fitcompress.result import Result
from pquant.fitcompress.search import search

__all__ = ["FITCompress", "Fisher", "PruningSchedule", "Result", "StoppingRule", "fisher", "search"]
