"""The TCP listener: native sessions, and the protocol of torch's TCPStore, on one port."""
