"""Loops of the CPU, compiled by Numba."""
