"""FITCompress: search the joint pruning and quantization configuration."""

from pquant.fitcompress.fitcompress import FITCompress, PruningSchedule

__all__ = ["FITCompress", "PruningSchedule"]
