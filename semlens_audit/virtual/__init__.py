"""Virtual neurons (PURE, arXiv 2404.06453): components split by what drives them in the layer before, spliced into the network."""
