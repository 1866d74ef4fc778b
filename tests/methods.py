"""The pruning methods that many tests share, with settings that prune in a few steps."""

from pquant.pruning import CS, DST, MDMM, PDP, ActivationPruning, AutoSparse, Magnitude, PruningMethod, Wanda


def every_method(start: int, delta: int, autotune_epochs: int = 0) -> list[PruningMethod]:
    """Return every method; Wanda and activation pruning collect ``delta`` batches from batch ``start``."""
    return [
        CS(threshold_decay=1e-3),
        DST(alpha=1e-2),
        PDP(sparsity=0.5, epsilon="auto"),
        Wanda(sparsity=0.5, t_start_collecting_batch=start, t_delta=delta),
        AutoSparse(threshold_init=-2.0, alpha_reset_epoch=3, autotune_epochs=autotune_epochs),
        ActivationPruning(threshold=0.4, t_start_collecting_batch=start, t_delta=delta),
        MDMM(target_sparsity=0.5),
        Magnitude(sparsity=0.5),
    ]
