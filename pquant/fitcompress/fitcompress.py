"""The fitcompress section: search for per-layer bits and sparsity before training.

B. Zandonati et al., "Towards Optimal Compression: Joint Pruning and Quantization", 2023, arXiv 2302.07612.
"""

from dataclasses import dataclass

from pquant.errors import NotAvailableError
from pquant.settings import Settings, schema, setting


@dataclass(frozen=True)
class PruningSchedule(Settings):
    """Shares of weights to try: 1 - 10^x for ``steps`` values of x from ``start`` to ``end``."""

    start: float = setting(0.0, le=0)
    end: float = setting(-3.0, le=0)
    steps: int = setting(40, ge=2)

    def __post_init__(self) -> None:
        """Check the fields and that the curve falls."""
        super().__post_init__()
        if self.start <= self.end:
            raise self.error("start", f"above end = {self.end:g}")


@schema("fitcompress", "fitcompress")
@dataclass(frozen=True)
class FITCompress(Settings):
    """Search settings; switched off by default.

    Raises:
        ConfigError: a value out of range.
        NotAvailableError: ``enable_fitcompress`` is true; the search is not part of this version.
    """

    enable_fitcompress: bool = False
    optimize_quantization: bool = True
    quantization_schedule: list[float] = setting([7.0, 4.0, 3.0, 2.0])
    pruning_schedule: PruningSchedule = PruningSchedule()
    compression_goal: float = setting(0.10, gt=0, le=1)
    optimize_pruning: bool = False
    greedy_astar: bool = True
    approximate: bool = True
    f_lambda: float = setting(1.0, ge=0)

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        if any(bits < 1 for bits in self.quantization_schedule) or not self.quantization_schedule:
            raise self.error("quantization_schedule", "a list of at least one bit width, each at least 1")
        if self.enable_fitcompress:
            raise NotAvailableError("FITCompress.enable_fitcompress: the search is not available yet; use fitcompress=off")
