"""One module a network: a wrapper that replaces control flow, dummy inputs, dynamic sizes and bounds."""
