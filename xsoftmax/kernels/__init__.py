"""Compiled kernels: the arithmetic of rows, without arrays' names, axes or options."""
