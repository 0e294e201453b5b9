"""Generative heads: diffusion with per-step likelihoods, and its one-step consistency student."""
