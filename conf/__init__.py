"""The configuration of jobs, one folder per section; a regular package, so that Hydra finds it in a wheel as ``pkg://pquant.conf``."""
