"""Tracking: the local files of a run, its environment, and trackers such as Weights & Biases."""

from pquant.tracking.environment import config_hash, environment
from pquant.tracking.files import MetricsCsv, write_atomic, write_json
from pquant.tracking.mlflow import MlflowTracker
from pquant.tracking.tracker import NoTracker, Tracker
from pquant.tracking.wandb import WandbTracker

__all__ = ["MetricsCsv", "MlflowTracker", "NoTracker", "Tracker", "WandbTracker", "config_hash", "environment", "write_atomic", "write_json"]
