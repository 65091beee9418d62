"""``tcp://``: native sessions to our server, which a node may host itself."""
