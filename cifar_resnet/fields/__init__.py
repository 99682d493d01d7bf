"""Receptive fields: exact ones from a trace of the network, effective ones from its gradients."""
