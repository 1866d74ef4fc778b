"""Compose one job from conf/ and run it: ``python run.py pruning=wanda quantization.use_hgq=true``."""

import gc
import multiprocessing
import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while importing: end at once, without a traceback
if __name__ == "__main__":
    gc.disable()  # while importing: imports create many objects and no garbage
if __name__ == "__main__" and "hydra/launcher=joblib" in sys.argv and "forkserver" in multiprocessing.get_all_start_methods():
    # joblib forks its workers from a server process that imports the same modules, in parallel with this process.
    from multiprocessing import forkserver

    from joblib.externals.loky.backend.context import set_start_method

    forkserver.set_forkserver_preload(["__main__", "pquant.finetuning.workers"])
    forkserver.ensure_running()
    set_start_method("forkserver")

from pquant.command_line import main

if __name__ == "__main__":
    main()
