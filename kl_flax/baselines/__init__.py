"""Attention mechanisms that are no kernel attention, one file each."""
