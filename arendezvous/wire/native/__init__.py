"""Our session protocol: messages in frames, and the login of a client of the store."""
