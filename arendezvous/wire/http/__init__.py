"""The data that goes over HTTP: bodies, names in URLs, and server-sent events."""
