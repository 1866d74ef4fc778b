"""Verilog or VHDL of the network, its simulation, and its look-up tables."""

from pquant.export.rtl.exporter import RTL

__all__ = ["RTL"]
