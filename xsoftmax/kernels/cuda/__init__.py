"""CUDA C++ and its launch."""
