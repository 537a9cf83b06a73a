"""Training of codecs: encoder and decoder jointly, or a new decoder for an existing encoder."""
