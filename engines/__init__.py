"""Engines: what a compiler or a provider makes of a bundle's graphs, one module each."""
