"""Training on the server: data, models, shifts, compiled epochs, evaluation, checkpoints and device meshes."""
