"""Compiled kernels: the arithmetic of rows, without arrays' names, axes or options."""

ACROSS = 32  # classes; shorter rows are worked across
