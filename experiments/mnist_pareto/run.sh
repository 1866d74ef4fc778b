#!/usr/bin/env bash
# All runs of this folder, then its table and plot: about twenty minutes on one core.
# experiments/mnist_pareto/run.sh [data.path=<mnist.npz>]
set -euo pipefail
cd "$(dirname "$0")/../.."
out=outputs/mnist_pareto
sweep() {
    python run.py -m data=mnist seed=0,1,2 training.batch_size=256 training.pretraining_epochs=8 optimizer.lr=1e-3 tracker=none progress=quiet \
        hydra.sweep.dir="$out/$1" "${@:2}"
}
sweep hgq pruning=none quantization=hgq quantization.hgq_gamma=0 quantization.hgq_lr=0.03 "quantization.hgq_beta_schedule=[[0,3e-7],[60,1e-4]]" \
    training.epochs=60 training.fine_tuning_epochs=0 scheduler=constant "$@"
sweep dst_8bit pruning=dst pruning.alpha=1e-3,2e-2 training.epochs=20 training.fine_tuning_epochs=4 "$@"
python experiments/mnist_pareto/table.py "$out"
