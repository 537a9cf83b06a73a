"""The proof: does training on latents pay? See `run.py`."""
