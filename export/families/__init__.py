"""One module a model family: which networks it has and how a frame goes through them."""
