"""What every part needs of the network: endpoints and addresses, connecting, credentials and TLS."""
