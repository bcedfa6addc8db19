"""Model directories in the published file layouts, made without any download (never trained models)."""
