"""Sparse autoencoders: trained on a layer's activations, and spliced into the network so that their latents are components."""
