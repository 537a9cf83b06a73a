"""Who does the units of a run: this process, processes of this machine, or a Ray cluster."""
