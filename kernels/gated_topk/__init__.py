"""GatedTopKAttention: the operator, in every form of it."""
