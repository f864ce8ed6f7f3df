"""Devices: local training, evaluation, and the modules that never leave."""
