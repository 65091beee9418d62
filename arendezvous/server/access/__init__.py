"""Who may do what at a server, and how much of it: tokens, limits, and what comes from one address."""
