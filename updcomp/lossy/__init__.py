"""Lossy updates of two models that exist: what is given up of which leaf, for a step, an error or a number of bytes."""
