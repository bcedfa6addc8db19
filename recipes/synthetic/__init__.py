"""Models without training: in the published layouts, with weights set by hand or at random."""
