"""Series on disk become volumes in patient coordinates, or are refused with the reason."""
