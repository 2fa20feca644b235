"""Coverage-guided fuzzing of what reads bytes from elsewhere: `python -m tests.fuzz --help`."""
