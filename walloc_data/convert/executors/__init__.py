"""Executors of units of work: this process, worker processes on this machine, or a Ray cluster."""
