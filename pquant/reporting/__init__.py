"""Reporting: the display of training, the headline of a run, plots and the HTML report."""

from pquant.reporting.console import Console
from pquant.reporting.html import write_report

__all__ = ["Console", "write_report"]
