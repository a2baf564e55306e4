"""Attention mechanisms that the learned kernels are compared with, one file each."""
