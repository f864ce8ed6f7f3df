"""Running a simulation on this machine, and reading a finished run."""
