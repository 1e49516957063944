"""What the long measurements of control share, and what of Table 1 is neither its settings nor its runs."""
