"""``http://``: a rendezvous at our server where only HTTP gets through."""
