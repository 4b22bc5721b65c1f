"""Work of several processes: what of the ideal is reached, what it costs beside the work, and that its bytes are those of one."""
