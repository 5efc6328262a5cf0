"""The analyzers: one file each; the folder it stands in is its kind."""
