"""No bad command is taken: each ends soon, in one line that names what is wrong, and changes no file of a run that is there."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from .command_server import Commands
from .test_config import NEEDED
from .test_fuzz import WRONG

SECONDS = 5.0
LENGTHS = ["training.pretraining_epochs=0", "training.epochs=1", "training.fine_tuning_epochs=0", "tracker=none", "progress=quiet"]
PLATEAU = "~scheduler.T_max ~scheduler.eta_min scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau"
GROUPS = "data model optimizer scheduler training pruning quantization fitcompress distillation finetuning tracker export".split()
SYNTAX: dict[str, str] = {
    "training.epochs": "training.epochs",
    "training.epochs = 3": "training.epochs",
    "training.epochs=[1": "training.epochs",
    "training.epochs==3": "training.epochs",
    "=3": "=3",
    "@a=3": "@a=3",
    "++": "++",
    "training.epochs=3,4": "training.epochs",
    "training.epochs=": "training.epochs",
    "resume=5": "resume",
    "resume=": "resume",
    "from_run=[a]": "from_run",
    "from_run={a: 1}": "from_run",
    "hydra.run.dir=": "hydra.run.dir",
    "hydra.run.dir=/proc/none/run": "/proc",
    "--config-dir=/nonexistent": "/nonexistent",
    "--config-name=nonexistent": "nonexistent",
    "experiment=nonexistent": "nonexistent",
    "hydra/launcher=nonexistent": "nonexistent",
    "hydra/sweeper=nonexistent": "nonexistent",
    "hydra.mode=SIDEWAYS": "SIDEWAYS",
    "hydra.job.chdir=maybe": "hydra.job.chdir",
    "+defaults=[a]": "defaults",
    "model.sizes=${nope}": "nope",
    "model.sizes=${nope:3}": "nope",
    "seed=${oc.env:PQUANT_NO_SUCH_VARIABLE}": "PQUANT_NO_SUCH_VARIABLE",
    "~training.epochs": "epochs",
    "from_epoch=3": "from_epoch",
    "finetuning=tpe": "-m",
    "finetuning.num_trials=3": "-m",
}
MODEL = "~model +model._target_=torch.nn."
ONE_CYCLE = "~scheduler.T_max ~scheduler.eta_min scheduler._target_=torch.optim.lr_scheduler.OneCycleLR +scheduler.max_lr=0.1"
LATE: dict[str, str] = {
    f"{ONE_CYCLE} +scheduler.total_steps=3 training.epochs=6": "OneCycleLR",
    f"{MODEL}Linear +model.in_features=64 +model.out_features=9": "Linear gives a tensor of shape (2, 9)",
    f"{MODEL}Linear +model.in_features=64 +model.out_features=12": "(2, 12)",
    f"{MODEL}Linear +model.in_features=63 +model.out_features=10": "does not take the data",
    f"{MODEL}Identity": "Identity",
    f"{MODEL}LSTM +model.input_size=64 +model.hidden_size=10": "LSTM gives a tuple",
    f"{MODEL}Module": "Module",
    f"{MODEL}CrossEntropyLoss": "CrossEntropyLoss",
    "model.sizes=[null,9223372036854775807,null]": "cannot be built",
    "hydra.job_logging.root.level=NOPE": "NOPE",
    "+hydra.job.env_set.PQUANT_ALLOW=os": "PQUANT_ALLOW",
    "finetuning.storage=postgresql://u:secret@h/db": "finetuning.storage has a password",
    "scheduler.T_max=0": "T_max",
    "scheduler.T_max=null": "T_max",
    "scheduler.T_max=abc": "T_max",
    "scheduler.T_max=[1]": "T_max",
    "scheduler.eta_min=abc": "eta_min",
    "scheduler=multistep scheduler.gamma=abc": "gamma",
    "scheduler=multistep scheduler.gamma=null": "gamma",
    "scheduler=multistep scheduler.milestones=[a]": "milestones",
    "scheduler=multistep scheduler.milestones=3": "milestones",
    "scheduler=constant scheduler.factor=abc": "factor",
    "scheduler=constant scheduler.factor=-3": "factor",
    f"{PLATEAU} +scheduler.patience=abc": "patience",
    f"{PLATEAU} +scheduler.mode=sideways": "mode",
    "scheduler._target_=torch.optim.lr_scheduler.LambdaLR": "LambdaLR",
    "scheduler._target_=torch.optim.Adam": "torch.optim.Adam",
    "optimizer._target_=torch.optim.SparseAdam ~optimizer.weight_decay ~optimizer.fused": "SparseAdam",
    "optimizer._target_=torch.optim.LBFGS ~optimizer.weight_decay ~optimizer.fused": "LBFGS",
    "optimizer._target_=torch.nn.Linear": "torch.nn.Linear",
    "optimizer._target_=torch.optim.Adma": "'Adma'",
    "+optimizer.betas=[0.9]": "betas",
    "+optimizer.betas=[a,b]": "betas",
    "+optimizer.betas=abc": "betas",
    "+optimizer.eps=abc": "eps",
    "+optimizer.amsgrad=perhaps": "amsgrad",
    "optimizer.lr=abc": "optimizer.lr",
    "optimizer.lr=null": "lr",
    "optimizer.lr=-1": "learning rate",
    "optimizer.lr=[1]": "lr",
    "optimizer.weight_decay=abc": "weight_decay",
    "optimizer.weight_decay=-1": "weight_decay",
    "optimizer=sgd optimizer.momentum=abc": "momentum",
    "training.batch_size=100000000000000000000000000": "batch_size",
    "training.threads=100000": "threads",
    "training.epochs=1000000000000": "epochs",
    "training.rounds=1000000 training.epochs=100": "epochs",
    "training.device=meta": "device",
    "training.device=gpu": "device",
    "training.device=cuda:77": "device",
    "training.device=''": "device",
    "model.batch_norm=3": "batch_norm",
    "model.batch_norm=yes": "batch_norm",
    "model.activation=gelu": "activation",
    "model.sizes=[]": "sizes",
    "model.sizes=[null]": "sizes",
    "model.sizes=[null,-3,null]": "sizes",
    "model.sizes=[null,0,null]": "sizes",
    "model.sizes=[null,a,null]": "sizes",
    "model.sizes=[3,4,null]": "sizes",
    "model.sizes=abc": "sizes",
    "model.sizes=null": "sizes",
    "model=cnn": "images",
    "model=cnn data.flatten=false model.channels=[]": "channels",
    "model=cnn data.flatten=false model.channels=[1,2,3,4,5,6,7]": "channels",
    "model=resnet20 data.flatten=false model.blocks=-1": "blocks",
    "model=resnet20 data.flatten=false model.blocks=0": "blocks",
    "model=deep_sets": "data=constituents",
    "model=particle_transformer": "data=constituents",
    "model=conv1d": "data=constituents",
    "model=autoencoder": "data.reconstruct=true",
    "model=autoencoder data.reconstruct=true model.hidden=[]": "hidden",
    "model=autoencoder data.reconstruct=true model.latent=0": "latent",
    "data=constituents": "Constituents.path",
    "data=constituents data.particles=0": "particles",
    "data=images": "Images.path",
    "data=images data.path=a.npz data.layout=ncwh": "did you mean 'nchw'",
    "data=images data.path=a.npz data.augment=crop data.flatten=true": "augment",
    "data=arrays": "Arrays.path",
    "data=arrays data.path=nowhere.npz": "nowhere.npz",
    "data=table data.path=a.csv data.target=w data.weight=w": "Table.weight",
    "data=digits data.weight=w": "unknown key 'weight' in section 'data'",
    "data=constituents data.path=nowhere.npz": "nowhere.npz",
    "model._target_=os.system": "os.system",
    "model._target_=my_net.Net": "my_net.Net",
    "model._target_=pquant.models.MPL": "did you mean 'MLP'",
    "tracker._target_=os.system": "os.system",
    "pruning._target_=pquant.quantization.Quantization": "pquant.quantization.Quantization",
    "pruning.disable_pruning_for_layers=[layers.9]": "layers.9",
    "pruning.disable_pruning_for_layers=layers.0": "disable_pruning_for_layers",
    "quantization.layer_specific={layers.9: {weight: {f: 3}}}": "layers.9",
    "quantization.layer_specific={layers.1: {weight: {f: 3}}}": "layers.1",
    "quantization.layer_specific={layers.0: {wieght: {f: 3}}}": "wieght",
    "quantization.layer_specific={layers.0: {weight: {bits: 3}}}": "bits",
    "quantization.layer_specific={layers.0: 3}": "layers.0",
    "quantization.use_hgq=true quantization.hgq_beta_schedule=[[0,1e-6],[0,1e-5]]": "hgq_beta_schedule",
    "quantization.use_hgq=true quantization.hgq_beta_schedule=[[0,1e-6],[1.5,1e-5]]": "hgq_beta_schedule",
    "quantization.use_hgq=true quantization.hgq_beta_schedule=[[5,1e-6],[0,1e-5]]": "hgq_beta_schedule",
    "quantization.use_hgq=true quantization.hgq_beta_schedule=[3]": "hgq_beta_schedule",
    "training.rewind=every-round": "save_weights_epoch",
    "training.save_weights_epoch=7": "save_weights_epoch",
    "training.rewind=post-training-stage training.save_weights_epoch=0": "rewind",
    "data=table": "Table.path",
    "data=table data.path=/nonexistent.csv": "/nonexistent.csv",
    "data=table data.path=README.md": "README.md",
    "data=table data.path=~nouser/x.csv": "~nouser",
    "data.validation_fraction=0.9 data.test_fraction=0.9": "validation_fraction",
    "resume=/nonexistent": "/nonexistent",
    "from_run=/nonexistent": "/nonexistent",
    "from_run=/nonexistent resume=/nonexistent": "only one of them",
}
STUDY: dict[str, str] = {
    "finetuning.sampler.type=TPESampeler": "did you mean 'TPESampler'",
    "finetuning.sampler.type=BaseSampler": "BaseSampler",
    "finetuning.sampler.params.n_startup=3": "n_startup",
    "finetuning.sampler.params.n_startup_trials=abc": "n_startup_trials",
    "finetuning.early_stopping.type=MedianPruna": "did you mean 'MedianPruner'",
    "finetuning.early_stopping={type: MedianPruner, params: {n_startup: 3}}": "n_startup",
    "finetuning.num_trials=-3": "num_trials",
    "finetuning.num_trials=0": "num_trials",
    "finetuning.objectives=[]": "objectives",
    "finetuning.directions=[up]": "directions",
    "finetuning.storage=study.txt": "storage",
    "finetuning.storage=/tmp/study.db": "storage",
    "finetuning.storage=../study.db": "storage",
    "finetuning.storage=nosuchdb://x": "storage",
    "finetuning.experiment_name=../x": "experiment_name",
    "finetuning.hyperparameter_search.numerical={pruning.alhpa: [0, 1, 0.1]}": "alhpa",
    "finetuning.hyperparameter_search.numerical={pruning.alpha: [1, 0, 0.1]}": "numerical",
    "finetuning.hyperparameter_search.numerical={pruning.alpha: [0, 1]}": "numerical",
    "finetuning.hyperparameter_search.categorical={pruning: []}": "categorical",
    "finetuning.hyperparameter_search.categorical={pruning: [dst, wnda]}": "wnda",
    "dry_run=true": "dry_run",
}


def misspelt(word: str) -> str:
    """Return a word with one letter too many."""
    return f"{word[:1]}q{word[1:]}"


def commands() -> Iterator[tuple[list[str], str]]:
    """Yield bad commands, each with what its line must name."""
    for section, cases in (([], SYNTAX), ([], LATE), (["-m", "finetuning=tpe", "finetuning.num_trials=2"], STUDY)):
        yield from (([*section, *(given.split() if "{" not in given else [given])], name) for given, name in cases.items())
    for option, field, bad in WRONG:
        group = option.split("=")[0]
        yield ["-m"] * (group == "finetuning") + [option, *NEEDED.get(option, []), f"{group}.{field}={bad}"], field
    for group in GROUPS:
        yield [f"{group}=nonexistent"], group
        yield [f"{group}=null"], group
        yield [f"{group}=3"], group
        yield [f"{misspelt(group)}.x=3"], misspelt(group)
    for option, field, _ in WRONG:
        group, word = option.split("=")[0], misspelt(field)
        if group != "training":
            yield ["-m"] * (group == "finetuning") + [option, *NEEDED.get(option, []), f"{group}.{word}=1"], word


CASES = list({" ".join(given): (given, name) for given, name in commands()}.values())


def check(commands: Commands, given: list[str], name: str, folder: Path) -> str | None:
    """Return what is wrong with the way in which a bad command ended; None if all is well."""
    places = [] if any(one.startswith("hydra.run.dir") for one in given) else [f"hydra.run.dir={folder}"]
    done = commands(*LENGTHS, *given, *places, f"hydra.sweep.dir={folder}")
    lines = done.err.splitlines()
    faults = {
        "was taken": done.code == 0,
        "has a traceback": "Traceback" in done.err,
        f"took {done.seconds:.1f} s": done.seconds > SECONDS,
        f"has {len(lines)} lines": len(lines) != 1,
        f"does not name {name}": name not in done.err,
        "has output": bool(done.out),
    }
    found = [fault for fault, there in faults.items() if there]
    return f"{' '.join(given)}: {', '.join(found)}: {done.err[-300:]}" if found else None


def test_there_are_five_hundred_bad_commands() -> None:
    assert len(CASES) >= 500


@pytest.mark.parametrize("part", range(4))
def test_a_sample_of_bad_commands(part: int, commands: Commands, tmp_path: Path) -> None:
    sample = random.Random(0).sample(CASES, 40)[part::4]
    assert not [fault for number, (given, name) in enumerate(sample) if (fault := check(commands, given, name, tmp_path / str(number)))]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_no_bad_command_is_taken(part: int, commands: Commands, tmp_path: Path) -> None:
    assert not [fault for number, (given, name) in enumerate(CASES[part::8]) if (fault := check(commands, given, name, tmp_path / str(number)))]
