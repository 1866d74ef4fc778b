#!/usr/bin/env bash
# All runs of this folder, then its table and plot. About ten minutes on one core.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=outputs/digits_methods
sweep() { python run.py -m seed=0,1,2,3,4 training.epochs=24 tracker=none progress=quiet hydra.sweep.dir="$out/$1" "${@:2}"; }
sweep presets pruning=none,cs,dst,pdp,wanda,autosparse,activation_pruning,mdmm
sweep ninety_pdp pruning=pdp pruning.sparsity=0.9
sweep ninety_wanda pruning=wanda pruning.sparsity=0.9
sweep ninety_mdmm pruning=mdmm pruning.target_sparsity=0.9
python experiments/digits_methods/table.py "$out"
