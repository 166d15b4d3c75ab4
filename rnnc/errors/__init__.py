"""All diagnostics, one file a subject."""
