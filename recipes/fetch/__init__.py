"""Getting published weights: what a family needs, from where, and the download itself."""
