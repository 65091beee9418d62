"""The network, as every part needs it: endpoints and addresses, connecting, credentials and TLS."""
